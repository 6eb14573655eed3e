"""The generator of GPUs is a counter: the seed and the number of a draw decide which numbers are drawn.

The host knows both, so saving the state does not wait for the GPU, and any kernel can compute the same numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, on, to_device

_seed = 0
_draws = 0

# Added to the number of every draw on a GPU: an array (1,) of uint64 there, or None for 0. kernels/cuda/graph.py sets
# it while it captures a step: the graph contains the numbers of that time, and a replay adds how many draws came since.
earlier: Any = None

# A faster draw_words for GPUs, of the same arguments, which returns None where it must not be used; None for none.
# kernels/cuda/philox.py sets it.
words_on_gpu: Any = None


def start(seed: int, draws: int = 0) -> None:
    """Continue from this seed and this number of draws."""
    global _seed, _draws
    _seed, _draws = seed, draws


def current_seed() -> int:
    """The seed that the generators were started from."""
    return _seed


def draws() -> int:
    """How many draws there have been on GPUs since the seed was set."""
    return _draws


def next_draw() -> tuple[int, int]:
    """The seed and the number of a new draw. Together they decide what is drawn, whichever kernel computes it."""
    global _draws
    _draws += 1
    return _seed, _draws - 1


def skip_draws(n: int) -> None:
    """Count n draws that were made elsewhere. A negative n takes draws back."""
    global _draws
    _draws += n


def philox(counter: Any, key: tuple[int, int]) -> Any:
    """Philox4x32-10 (Salmon et al., 2011): four random words of 32 bits for a counter of four, under a key of two.

    counter: four integers or arrays of uint64, all below 2^32. Ten rounds of two multiplications mix the counter so
    well that consecutive counters give numbers without a pattern. Any of them can be computed without the ones before.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    word = 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits: the upper half is mixed, the lower half is kept
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
    """The random numbers of a GPU, through those methods of NumPy's generators that are used here.

    Block n of four words in a draw is philox(n, number of the draw), with the seed as the key. The CPU computes the
    same numbers.
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
        """Uniform numbers in [0, 1), with as many random bits as the dtype holds: 53 in float64, 24 in float32."""
        n = math.prod(shape)
        if np.dtype(dtype) == np.float64:
            words = self.words(2 * n).astype("float64")
            numbers = ((words[:n] // 32) * 2**26 + words[n:] // 64) / 2**53
        else:
            numbers = (self.words(n) // 256).astype("float32") / 2**24
        return numbers.reshape(shape).astype(dtype, copy=False)

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """Normal numbers: sqrt(-2 ln u) cos(2 pi v) of two uniform ones (Box and Muller, 1958)."""
        wide = np.promote_types(dtype, np.float32)
        u, v = self.random((2, *shape), wide)
        xp = get_array_module(u)
        numbers = xp.sqrt(-2 * xp.log(1 - u)) * xp.cos(2 * math.pi * v)
        return numbers.astype(dtype, copy=False)
