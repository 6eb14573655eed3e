"""GELU in pieces that fit into the cache. See ops/activation.py for the formulas and their derivation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pieces import for_each, in_pieces, is_large, pieces
from .products import same_floats


class GELUTanh:
    """The steps of ops/activation.py in few arrays: the memory of a new array has to be fetched before it is written.

    float16 is left to the reference.
    """

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any) -> bool:
        return same_floats(x) and is_large(x) and x.flags.c_contiguous

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        c, ca = ctx.function.c, ctx.function.c * ctx.function.a
        y = np.empty_like(x)
        keep = ctx.needs_input_grad[0]
        slope = np.empty_like(x) if keep else y  # without a backward, only an intermediate result
        flat_x, flat_y, flat_slope = x.reshape(-1), y.reshape(-1), slope.reshape(-1)

        def work(_: int, own: slice) -> None:
            x, y, squares = flat_x[own], flat_y[own], flat_slope[own]
            np.multiply(x, x, out=squares)
            h = squares * ca
            h += c
            h *= x
            np.tanh(h, out=h)
            h += 1
            h *= 0.5
            np.multiply(x, h, out=y)
            if keep:
                squares *= 6 * ca
                squares += 2 * c
                squares *= y
                squares *= 1 - h
                squares += h

        for_each(*pieces(x.size, 1), work)
        ctx.save(slope)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (slope,) = ctx.saved
        dx = np.empty_like(slope)
        in_pieces([(np.multiply, [g, slope, dx])])
        return dx
