"""Random numbers: one seed, and a state that can be saved and restored.

mg.manual_seed(1337)            # everything after this is the same in every run
state = mg.random.get_state()   # plain Python numbers and lists: fit for JSON
mg.random.set_state(state)      # continues exactly there

The CPU has NumPy's generator SFC64. GPUs have one that is a counter: its state is how many draws there have been, which
the host knows, so that saving it does not wait for the GPU.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from .backend import Array, check_device, get_array_module, on, to_device

_seed = 0
_draws = 0  # how often GPUs have drawn since the seed was set
_cpu = np.random.Generator(np.random.SFC64(_seed))

# Added to the number of every draw on a GPU: an array (1,) of uint64 there, or None for 0. kernels/cuda/graph.py sets
# it while it captures a step, so that replays, which have the numbers of that time, draw with those of theirs.
earlier: Any = None

# A faster draw_words for GPUs, of the same arguments, which returns None where it must not be used; None for none.
# kernels/cuda/philox.py sets it.
words_on_gpu: Any = None


def manual_seed(seed: int) -> None:
    """Start the generators of all devices afresh from `seed`."""
    global _seed, _draws, _cpu
    _cpu = np.random.Generator(np.random.SFC64(int(seed)))
    _seed, _draws = int(seed), 0


def generator(device: str = "cpu") -> Any:
    """The random generator of a device: NumPy's on the CPU, a `Counter` on a GPU."""
    return _cpu if device == "cpu" else Counter(check_device(device))


def next_draw() -> tuple[int, int]:
    """The seed, and the number of this draw on GPUs: together they decide what is drawn, whoever computes it."""
    global _draws
    _draws += 1
    return _seed, _draws - 1


def current_seed() -> int:
    """What the generators were started from."""
    return _seed


def draws() -> int:
    """How often GPUs have drawn since the seed was set."""
    return _draws


def skip_draws(n: int) -> None:
    """Count n draws on GPUs that somebody else has made; fewer than 0 take them back."""
    global _draws
    _draws += n


def philox(counter: Any, key: tuple[int, int]) -> Any:
    """Philox4x32-10 (Salmon et al., 2011): four random words of 32 bits for a counter of four, under a key of two.

    counter: four integers or arrays of uint64, all below 2^32. Ten rounds of two multiplications stir the counter so
    well that consecutive ones give numbers without a pattern; any of them can be computed without the ones before.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    word = 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits: the upper half is mixed, the lower kept
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & word, (p0 >> 32) ^ c3 ^ k1, p0 & word
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c0, c1, c2, c3


def draw_words(n: int, seed: int, draw: int, device: str) -> Array:
    """The first n random words of 32 bits of a draw."""
    zero = to_device(np.zeros((), np.uint64), device)
    xp = get_array_module(zero)
    block = xp.arange(-(-n // 4), dtype="uint64")
    number = zero + draw if earlier is None else earlier + draw
    counter = (block & 0xFFFFFFFF, block >> 32, number & 0xFFFFFFFF, number >> 32)
    blocks = xp.stack(philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)), axis=-1)
    return blocks.astype("uint32").reshape(-1)[:n]


class Counter:
    """Random numbers of a GPU, by the methods of NumPy's generators that are used here.

    The n-th block of four words in a draw is philox(n, number of the draw), under the seed as the key. It runs on the
    CPU as well, with the same result.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def words(self, n: int) -> Array:
        """n random words of 32 bits: one draw."""
        seed, draw = next_draw()
        with on(self.device):
            words = words_on_gpu and words_on_gpu(n, seed, draw, self.device)
            return draw_words(n, seed, draw, self.device) if words is None else words

    def random(self, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """Numbers from 0 to below 1, with as many random bits as the dtype has, float64's 53 or float32's 24."""
        n = math.prod(shape)
        if np.dtype(dtype) == np.float64:
            words = self.words(2 * n).astype("float64")
            numbers = ((words[:n] // 32) * 2**26 + words[n:] // 64) / 2**53
        else:
            numbers = (self.words(n) // 256).astype("float32") / 2**24
        return numbers.reshape(shape).astype(dtype, copy=False)

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """Normally distributed numbers: sqrt(-2 ln u) cos(2 pi v) of two evenly distributed (Box and Muller, 1958)."""
        wide = np.promote_types(dtype, np.float32)
        u, v = self.random((2, *shape), wide)
        xp = get_array_module(u)
        numbers = xp.sqrt(-2 * xp.log(1 - u)) * xp.cos(2 * math.pi * v)
        return numbers.astype(dtype, copy=False)


class _Mode(threading.local):
    blank = 0  # how many `blank` contexts this thread is inside


_mode = _Mode()


@contextlib.contextmanager
def blank() -> Iterator[None]:
    """Inside this context `normal` and `uniform` draw nothing and give zeros: for weights that are about to be read.

    The system hands out zeros only when they are first written to, so a layer that is not kept costs nothing.
    """
    _mode.blank += 1
    try:
        yield
    finally:
        _mode.blank -= 1


def normal(shape: tuple[int, ...], std: float = 1.0, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Normally distributed numbers with mean 0 and standard deviation `std`."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).standard_normal(shape, dtype=dtype) * np.dtype(dtype).type(std)


def uniform(shape: tuple[int, ...], low: float, high: float, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Numbers distributed evenly from `low` to `high`."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).random(shape, dtype=dtype) * np.dtype(dtype).type(high - low) + np.dtype(dtype).type(low)


def _zeros(shape: tuple[int, ...], dtype: Any, device: str) -> Array:
    return to_device(np.zeros(shape, dtype), device)


def dropout_mask(shape: tuple[int, ...], p: float, device: str = "cpu", source: Any = None) -> tuple[Array, float]:
    """A boolean mask that is False with probability p, and the scale 1 / P(True).

    Each element compares 16 random bits with a threshold, which is several times faster than drawing floats; p is
    thereby rounded to a multiple of 1/65536, and the scale belongs to the rounded value, so expectations stay exact.
    `source` is a NumPy bit generator to draw from in place of the CPU's.
    """
    dropped, scale = dropout_threshold(p)
    bits = _random_16_bits(math.prod(shape), device, source).reshape(shape)
    return (bits >= dropped) if dropped < 65536 else get_array_module(bits).zeros(shape, bool), scale


def _random_16_bits(n: int, device: str, source: Any) -> Array:
    """n integers from 0 to 65535."""
    if device == "cpu":
        source = _cpu.bit_generator if source is None else source
        return source.random_raw(-(-n // 4)).view(np.uint16)[:n]
    return Counter(device).words(-(-n // 2)).view(np.uint16)[:n]


def dropout_threshold(p: float) -> tuple[int, float]:
    """Below which of the 65536 values of 16 bits an element is dropped, and the scale for those that are kept."""
    dropped = round(p * 65536)
    return dropped, 65536 / (65536 - dropped) if dropped < 65536 else 0.0


def seeds(n: int) -> list[int]:
    """Seeds for n generators of their own, drawn from the CPU's generator."""
    return [int(word) for word in _cpu.bit_generator.random_raw(n)]


def get_state() -> dict[str, Any]:
    """The seed and the state of the generators, as plain Python numbers and lists."""
    state: dict[str, Any] = dict(_cpu.bit_generator.state)
    state["state"] = {"state": [int(word) for word in state["state"]["state"]]}
    return {"seed": _seed, "cpu": state, "gpu": _draws}


def set_state(state: dict[str, Any]) -> None:
    """Continue from what `get_state` returned."""
    global _draws
    manual_seed(state["seed"])
    _cpu.bit_generator.state = _cpu_state(state)
    _draws = state.get("gpu", 0)  # states of before there were GPUs have none


def _cpu_state(state: dict[str, Any]) -> dict[str, Any]:
    words = np.array(state["cpu"]["state"]["state"], np.uint64)
    return {**state["cpu"], "state": {"state": words}}


@contextlib.contextmanager
def replay(state: dict[str, Any]) -> Iterator[None]:
    """Inside this context is drawn again what was drawn after `state`; then it goes on as if nothing had been."""
    global _seed, _draws
    before = _cpu.bit_generator.state, _seed, _draws
    _cpu.bit_generator.state, _seed, _draws = _cpu_state(state), state["seed"], state.get("gpu", 0)
    try:
        yield
    finally:
        _cpu.bit_generator.state, _seed, _draws = before


def new_generator(seed: int | None) -> np.random.Generator:
    """A NumPy generator of its own for this seed; for None the CPU's generator itself."""
    return _cpu if seed is None else np.random.Generator(np.random.SFC64(seed))
