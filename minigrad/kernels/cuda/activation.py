"""GELU. See ops/activation.py for the formulas and where they come from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import get_array_module
from .launch import SCALARS, Kernel, packed, width

THREADS = 256


class GELU:
    """As GELUTanh in ops/activation.py; what is kept is x, and the backward computes the slope."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any) -> bool:
        return str(x.dtype) in SCALARS and x.ndim > 0

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        x = packed(x)
        ctx.save(x)
        return _elementwise("gelu_forward", x)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved
        return _elementwise("gelu_backward", packed(g), x)


def _elementwise(name: str, *arrays: Any) -> Any:
    """A function of packed arrays of one shape, element by element: a new array."""
    result = get_array_module(arrays[0]).empty_like(arrays[0])
    w = width(result.dtype, result.size)
    blocks = -(-result.size // (THREADS * w))
    Kernel("gelu.cu", name, result.dtype, WIDTH=w)(blocks, THREADS, *arrays, np.int64(result.size), result)
    return result
