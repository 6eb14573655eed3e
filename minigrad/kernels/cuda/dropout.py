"""Dropout without a mask. See ops/dropout.py for the formula, and random/counter.py for the random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import get_array_module
from ...random import counter
from . import philox
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
        ctx.dropout = philox.draw_dropout(p)
        return _drop(x, ctx.dropout)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return _drop(g, ctx.dropout), None


def _drop(x: Any, dropout: Any) -> Any:
    """x m / (1 - p) for the mask m that the draw `dropout` stands for."""
    x = packed(x)
    y = get_array_module(x).empty_like(x)
    blocks = -(-x.size // (8 * THREADS))
    Kernel("dropout.cu", "dropout", x.dtype)(blocks, THREADS, x, np.int64(x.size), dropout, counter.earlier, y)
    return y
