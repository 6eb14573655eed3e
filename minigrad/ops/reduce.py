"""Reductions over axes.

`axis` is None (all axes), a tuple of axes counted from 0, or () (no axes, so nothing is added up). `keepdims` is as in
NumPy. `spread` puts the reduced axes back with size 1, so that the result broadcasts against x.
"""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module
from .precision import add_up, choose, computed_in_single, count, kept_where


def spread(y, shape, axis):
    """Put back, with size 1, the axes that the reduction of `shape` over `axis` removed from `y`."""
    return y.reshape([1 if axis is None or i in axis else n for i, n in enumerate(shape)])


class Sum(Function):
    """y = sum of x.    dy/dx_i = 1 for every x_i: g is copied to all of them."""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        ctx.shape, ctx.axis = x.shape, axis
        return add_up(x, axis, keepdims)

    @staticmethod
    def backward(ctx, g):
        return get_array_module(g).broadcast_to(spread(g, ctx.shape, ctx.axis), ctx.shape)


@computed_in_single
class Mean(Function):
    """y = (sum of x) / n.    dy/dx_i = 1/n."""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        ctx.shape, ctx.axis = x.shape, axis
        return add_up(x, axis, keepdims) / count(x.shape, axis)

    @staticmethod
    def backward(ctx, g):
        n = count(ctx.shape, ctx.axis)
        return get_array_module(g).broadcast_to(spread(g, ctx.shape, ctx.axis) / max(n, 1), ctx.shape)


@computed_in_single
class Var(Function):
    """y = sum of (x - mean)^2 / (n - correction).

    Backward. With d_i = x_i - mean, the derivative of the sum of squares is sum_j 2 d_j (dx_j/dx_i - dmean/dx_i).
    The mean's part vanishes because the d_j add up to 0, which leaves dy/dx_i = 2 d_i / (n - correction).
    """

    @staticmethod
    def forward(ctx, x, axis, keepdims, correction):
        ctx.axis, ctx.n = axis, count(x.shape, axis) - correction
        if ctx.n <= 0:
            raise ValueError(f"expected more than {correction} elements along axis {axis}, for correction {correction}")
        d = x - add_up(x, axis, keepdims=True) / count(x.shape, axis)
        d = d - add_up(d, axis, keepdims=True) / count(x.shape, axis)  # what the rounding of a large mean left
        ctx.save(d)
        return add_up(d * d, axis, keepdims) / ctx.n

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved
        return spread(g, d.shape, ctx.axis) * d * (2 / ctx.n)


class Max(Function):
    """y = the largest x.    g goes to the largest element; elements that tie share it equally.

    If any x is NaN, y is NaN, and so is the gradient of each x.
    """

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        y = x.max(axis=axis, keepdims=keepdims)
        ctx.axis = axis
        ctx.save(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved
        y, g = spread(y, x.shape, ctx.axis), spread(g, x.shape, ctx.axis)
        winners = (x == y) | (y != y)  # a NaN differs from itself
        share = choose(y == y, g, y) / winners.sum(axis=ctx.axis, keepdims=True, dtype=g.dtype)
        return kept_where(winners, share)


class Min(Max):
    """y = the smallest x.    The backward is that of `Max`: it only asks which elements equal y."""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        y = x.min(axis=axis, keepdims=keepdims)
        ctx.axis = axis
        ctx.save(x, y)
        return y


def finite_max(x, axis):
    """The maximum along `axis`, which stays with size 1. Subtracted before exp, it prevents overflow.

    Where the maximum is -inf the result is 0: -inf - -inf would be NaN, but -inf - 0 stays -inf, and e^-inf is 0.
    It is 0 for an empty axis too.
    """
    xp = get_array_module(x)
    m = x.max(axis=axis, keepdims=True) if x.size else x.sum(axis=axis, keepdims=True)
    return xp.where(m == -xp.inf, 0, m)


@computed_in_single
class LogSumExp(Function):
    """y = ln(sum of e^x), computed as m + ln(sum of e^(x - m)) with m = max(x) so that nothing overflows.

    Backward. dy/dx_i = e^(x_i) / sum_j e^(x_j) = e^(x_i - y): the softmax of x.
    A row of only -inf gives y = -inf and a gradient of 0; so does an empty row. A row with +inf gives y = inf and a
    gradient of NaN.
    """

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        xp = get_array_module(x)
        m = finite_max(x, axis)
        e = xp.exp(x - m)
        total = add_up(e, axis, keepdims=True)
        e /= xp.where(total == 0, 1, total)
        ctx.axis = axis
        ctx.save(e)
        y = xp.log(xp.where(total == 0, 1, total)) + m
        y = xp.where(total == 0, -xp.inf, xp.where(m == xp.inf, xp.inf, y)).astype(e.dtype)
        return y if keepdims else y.squeeze(axis=axis)

    @staticmethod
    def backward(ctx, g):
        (softmax,) = ctx.saved
        return spread(g, softmax.shape, ctx.axis) * softmax
