"""Dropout without a mask. See ops/dropout.py for the formula, and random.py for the random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import random
from ...backend import get_array_module
from .launch import SCALARS, Kernel, packed

THREADS = 256


class Dropout:
    """As ops/dropout.py on a GPU, with the same random numbers; what is kept is the number of the draw."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, p: float) -> bool:
        return str(x.dtype) in SCALARS and x.ndim > 0

    @staticmethod
    def forward(ctx: Any, x: Any, p: float) -> Any:
        ctx.p, ctx.draw = p, random.next_draw()
        return Dropout.apply(ctx, x)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return Dropout.apply(ctx, g), None

    @staticmethod
    def apply(ctx: Any, x: Any) -> Any:
        x = packed(x)
        y = get_array_module(x).empty_like(x)
        dropped, scale = random.dropout_threshold(ctx.p)
        seed, draw = (np.uint64(number % 2**64) for number in ctx.draw)
        blocks = -(-x.size // (8 * THREADS))
        kernel = Kernel("dropout.cu", "dropout", x.dtype)
        kernel(blocks, THREADS, x, np.int64(x.size), np.uint32(dropped), scale, draw, random.earlier, seed, y)
        return y
