"""Picking elements out of an array: y = x[index]. Backward puts each gradient back where its element came from."""

from __future__ import annotations

import numpy as np

from ..autograd import Function
from ..backend import get_array_module, is_array
from .embedding import sum_rows
from .precision import choose, kept_where


class GetItem(Function):
    """y = x[index], with slices, integers, None, Ellipsis (`...`), integer arrays and boolean arrays, as in NumPy.

    Backward. dx is zero except dx[index], where element i of y adds its g_i. Slices and boolean masks name no place
    twice, so there the gradient is simply written; an integer array may name a place many times, and that place then
    receives the sum (writing instead of adding would keep only the last of them).
    """

    @staticmethod
    def forward(ctx, x, index):
        ctx.shape = x.shape
        ctx.save(*(index if isinstance(index, tuple) else (index,)))
        return x[index]

    @staticmethod
    def backward(ctx, g):
        index = ctx.saved
        xp = get_array_module(g)
        dx = xp.zeros(ctx.shape, g.dtype)
        if not any(is_array(part) and part.dtype.kind != "b" for part in index):
            dx[index] = g
        elif xp is np:
            np.add.at(dx, index, g)
        else:  # CuPy's add.at adds in another order every time
            places = xp.arange(dx.size).reshape(dx.shape)[index]  # each element's number in x
            dx = sum_rows(places.reshape(-1), g.reshape(-1, 1), dx.size).reshape(dx.shape)
        return dx


class MaskedFill(Function):
    """y = value where mask is true, x elsewhere.    Nothing flows back to what was overwritten: dx = 0 there."""

    @staticmethod
    def forward(ctx, x, mask, value):
        ctx.save(mask)
        xp = get_array_module(x)
        if np.broadcast_shapes(x.shape, mask.shape) != x.shape:
            raise ValueError(f"expected a mask that broadcasts to the shape of x, {x.shape}")
        return choose(mask, xp.asarray(value, x.dtype), x)

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved
        return kept_where(~mask, g), None, None
