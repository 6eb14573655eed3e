"""Random numbers: one seed for all devices, and a state that can be saved and restored.

    mg.manual_seed(1337)            # from here on, every run draws the same numbers
    state = mg.random.get_state()   # plain Python numbers and lists, which JSON can hold
    mg.random.set_state(state)      # continues exactly there

The CPU has NumPy's generator SFC64. GPUs have a counter, in counter.py.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend import Array, check_device, get_array_module, to_device
from . import counter
from .counter import Counter, current_seed, draws, next_draw, philox, skip_draws

__all__ = [
    "Counter",
    "blank",
    "check_state",
    "current_seed",
    "derived",
    "derived_seed",
    "draws",
    "dropout_mask",
    "dropout_threshold",
    "generator",
    "get_state",
    "manual_seed",
    "new_generator",
    "next_draw",
    "normal",
    "philox",
    "replay",
    "seeds",
    "set_state",
    "skip_draws",
    "uniform",
]

_cpu = np.random.Generator(np.random.SFC64(0))


# Seeds and states


def manual_seed(seed: int) -> None:
    """Start the generators of all devices from `seed`."""
    global _cpu
    _cpu = np.random.Generator(np.random.SFC64(int(seed)))
    counter.start(int(seed))


def get_state() -> dict[str, Any]:
    """The seed and the state of the generators, as plain Python numbers and lists."""
    return {"seed": current_seed(), "cpu": _plain(_cpu.bit_generator.state), "gpu": draws()}


def check_state(state: Any) -> None:
    """Raise ValueError unless `state` has the form of what `get_state` returns."""
    match state:
        case {
            "seed": int(seed),
            "cpu": {
                "bit_generator": "SFC64",
                "state": {"state": [int(), int(), int(), int()] as words},
                "has_uint32": 0 | 1,
                "uinteger": int(half),
            },
        } if seed >= 0 and all(0 <= word < 1 << 64 for word in words) and 0 <= half < 1 << 32:
            made = state.get("gpu", 0)  # the first versions saved no "gpu"
            if type(made) is int and made >= 0:
                return
    raise ValueError(f"expected what get_state returns, got {state!r:.100}")


def set_state(state: dict[str, Any]) -> None:
    """Continue from what `get_state` returned. Raises ValueError for anything else."""
    check_state(state)
    words = np.array(state["cpu"]["state"]["state"], np.uint64)
    _cpu.bit_generator.state = {**state["cpu"], "state": {"state": words}}
    counter.start(state["seed"], state.get("gpu", 0))


@contextlib.contextmanager
def replay(state: dict[str, Any]) -> Iterator[None]:
    """Inside this context, the numbers after `state` are drawn again. After it, the generators go on as before."""
    before = get_state()
    set_state(state)
    try:
        yield
    finally:
        set_state(before)


def _plain(state: Any) -> dict[str, Any]:
    """The state of a generator of NumPy's, with Python numbers in place of an array."""
    return {**state, "state": {"state": [int(word) for word in state["state"]["state"]]}}


def generator(device: str = "cpu") -> Any:
    """The random generator of a device: NumPy's on the CPU, a `Counter` on a GPU."""
    return _cpu if device == "cpu" else Counter(check_device(device))


def new_generator(seed: int | None) -> np.random.Generator:
    """A new NumPy generator, started from this seed; for None the CPU's generator itself."""
    return _cpu if seed is None else np.random.Generator(np.random.SFC64(seed))


def seeds(n: int) -> list[int]:
    """Seeds for n new generators, drawn from the CPU's generator."""
    return [int(word) for word in _cpu.bit_generator.random_raw(n)]


def derived_seed(number: int) -> int:
    """The seed of process `number`, derived from the state of the CPU's generator. Nothing is drawn."""
    return int(np.random.SeedSequence([*get_state()["cpu"]["state"]["state"], number]).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def derived(number: int) -> Iterator[None]:
    """Inside this context, process `number` draws from generators that are derived from the state before.

    After it, the generators go on as before. If anything was drawn inside, one word is then drawn from the CPU's, so
    the next context derives others. Either way the generators of all processes stay equal.
    """
    seed = derived_seed(number)
    inside = {"seed": seed, "cpu": _plain(np.random.SFC64(seed).state), "gpu": 0}
    with replay(inside):
        yield
        drawn = get_state() != inside
    if drawn:
        seeds(1)


# Drawing


class _Mode(threading.local):
    blank = 0  # how many `blank` contexts this thread is inside


_mode = _Mode()


@contextlib.contextmanager
def blank() -> Iterator[None]:
    """Inside this context `normal` and `uniform` draw nothing and return zeros, for weights that are loaded later.

    The system allocates the memory of zeros only when they are first written to, so a layer that is not kept costs
    nothing.
    """
    _mode.blank += 1
    try:
        yield
    finally:
        _mode.blank -= 1


def normal(shape: tuple[int, ...], std: float = 1.0, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Normal numbers with mean 0 and standard deviation `std`."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).standard_normal(shape, dtype=dtype) * np.dtype(dtype).type(std)


def uniform(shape: tuple[int, ...], low: float, high: float, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Uniform numbers in [low, high)."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).random(shape, dtype=dtype) * np.dtype(dtype).type(high - low) + np.dtype(dtype).type(low)


def _zeros(shape: tuple[int, ...], dtype: Any, device: str) -> Array:
    return to_device(np.zeros(shape, dtype), device)


def dropout_mask(shape: tuple[int, ...], p: float, device: str = "cpu", source: Any = None) -> tuple[Array, float]:
    """A boolean mask that is False with probability p, and the scale 1 / P(True).

    Each element compares 16 random bits with a threshold, which is several times faster than drawing floats. So p is
    rounded to a multiple of 1/65536. The scale belongs to the rounded value, so expectations stay exact.
    `source` is a NumPy bit generator to draw from in place of the CPU's.
    """
    dropped, scale = dropout_threshold(p)
    bits = _random_16_bits(math.prod(shape), device, source).reshape(shape)
    return (bits >= dropped) if dropped < 65536 else get_array_module(bits).zeros(shape, bool), scale


def dropout_threshold(p: float) -> tuple[int, float]:
    """The number of 16 bits below which an element is dropped, and the scale of those that are kept."""
    dropped = round(p * 65536)
    return dropped, 65536 / (65536 - dropped) if dropped < 65536 else 0.0


def _random_16_bits(n: int, device: str, source: Any) -> Array:
    """n integers from 0 to 65535."""
    if device == "cpu":
        source = _cpu.bit_generator if source is None else source
        return source.random_raw(-(-n // 4)).view(np.uint16)[:n]
    return Counter(device).words(-(-n // 2)).view(np.uint16)[:n]
