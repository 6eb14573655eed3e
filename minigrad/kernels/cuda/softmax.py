"""Softmax over the last axis, a block a row. See ops/softmax.py for the formulas and where they come from."""

from __future__ import annotations

from typing import Any

from ...backend import get_array_module
from .launch import SCALARS, Kernel, packed

THREADS = 256


class Softmax:
    """As ops/softmax.py, computed in float32."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, axis: int) -> bool:
        return str(x.dtype) in SCALARS and x.ndim > 0 and x.size > 0 and axis in (-1, x.ndim - 1)

    @staticmethod
    def forward(ctx: Any, x: Any, axis: int) -> Any:
        y = _rows("softmax_forward", packed(x))
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (y,) = ctx.saved
        return _rows("softmax_backward", packed(g), y), None


def _rows(name: str, *arrays: Any) -> Any:
    """A function of packed arrays of one shape, row by row: a new array."""
    result = get_array_module(arrays[0]).empty_like(arrays[0])
    columns = result.shape[-1]
    Kernel("softmax.cu", name, result.dtype)(result.size // columns, THREADS, *arrays, columns, result)
    return result
