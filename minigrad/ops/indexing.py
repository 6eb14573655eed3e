"""Picking elements out of an array: y = x[index]. Backward puts each gradient back where its element came from."""

from __future__ import annotations

import numpy as np

from ..autograd import Function
from ..backend import get_array_module, is_array
from .embedding import sum_rows
from .precision import choose, kept_where


class GetItem(Function):
    """y = x[index], with slices, integers, None, Ellipsis (`...`), integer arrays and boolean arrays, as in NumPy.

    Backward. dx is zero except at dx[index], where each element y_i adds its g_i. Slices and boolean masks select no
    element twice, so the gradient is simply assigned. An integer array may select an element many times; its gradient
    is then the sum (assignment would keep only the last term).
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
        else:  # CuPy's add.at adds in a different order every time
            places = xp.arange(dx.size).reshape(dx.shape)[index]  # the flat index in x of each element of y
            dx = sum_rows(places.reshape(-1), g.reshape(-1, 1), dx.size).reshape(dx.shape)
        return dx


class MaskedFill(Function):
    """y = value where mask is true, x elsewhere.    An element that was overwritten gets no gradient: dx is 0 there."""

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
