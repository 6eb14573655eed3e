"""The gradient of an embedding table, a warp a row. See ops/embedding.py for the formula."""

from __future__ import annotations

from typing import Any

from ...backend import get_array_module
from .launch import SCALARS, WARP, Kernel, multiprocessors, packed, width
from .sums import add_strips

THREADS = 256
LONGEST_ROW = 4096  # a row lies in the registers of 32 threads
LEAST_STRIP = 256  # places


class Embedding:
    """As ops/embedding.py, with a gradient that is added up without sorting the ids."""

    returns_new_arrays = True

    @staticmethod
    def fits(ids: Any, weight: Any) -> bool:
        return (
            str(weight.dtype) in SCALARS
            and weight.ndim == 2
            and 0 < weight.shape[1] <= LONGEST_ROW
            and ids.dtype.kind in "iu"
            and ids.size > 0
        )

    @staticmethod
    def forward(ctx: Any, ids: Any, weight: Any) -> Any:
        ctx.save(get_array_module(ids).ascontiguousarray(ids.reshape(-1), dtype="int32"))
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (ids,) = ctx.saved
        xp = get_array_module(g)
        vocabulary, channels = ctx.shape
        blocks = -(-vocabulary // (THREADS // WARP))
        number = max(1, min(8 * multiprocessors() // max(blocks, 1), -(-ids.size // LEAST_STRIP)))
        strips = xp.empty((number, vocabulary * channels), "float32")
        kernel = Kernel(
            "embedding.cu", "embedding_backward", g.dtype, CHANNELS=channels, WIDTH=width(g.dtype, channels)
        )
        kernel((blocks, number), THREADS, packed(g), ids, ids.size, vocabulary, strips)
        return None, add_strips(strips, g.dtype).reshape(ctx.shape)
