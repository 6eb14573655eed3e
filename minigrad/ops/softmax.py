"""Softmax and its logarithm.

A row of only -inf has no softmax. Here it becomes a row of zeros with zero gradient, so that a row that is masked
everywhere stays finite in both passes. Its logarithm stays -inf, with the finite gradient dx = g: the softmax in the
formula of `LogSoftmax` is 0.
"""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cuda
from .precision import computed_in_single
from .reduce import finite_max


def softmax(x, axis):
    """e^(x - m) / sum of e^(x - m), with m = max(x) so that nothing overflows. Returns a new array."""
    xp = get_array_module(x)
    y = x - finite_max(x, axis)
    xp.exp(y, out=y)
    total = y.sum(axis=axis, keepdims=True)
    y /= xp.where(total == 0, 1, total)
    return y


def softmax_backward(g, y, axis):
    """dL/dx from g = dL/dy and y = softmax(x), as derived in `Softmax`. Returns a new array."""
    dx = g * y
    dx -= y * dx.sum(axis=axis, keepdims=True)
    return dx


@accelerated(cuda=cuda.Softmax)
@computed_in_single
class Softmax(Function):
    """y_i = e^(x_i) / sum_j e^(x_j) along `axis`.

    Backward. The quotient rule gives dy_j/dx_i = y_j (1[i = j] - y_i), so
        dx_i = sum_j g_j y_j (1[i = j] - y_i) = y_i g_i - y_i sum_j g_j y_j
    The subtracted term makes the dx_i add up to 0: adding a constant to all x_i does not change y.
    """

    @staticmethod
    def forward(ctx, x, axis):
        y = softmax(x, axis)
        ctx.axis = axis
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return softmax_backward(g, y, ctx.axis)


@computed_in_single
class LogSoftmax(Function):
    """y_i = x_i - ln(sum_j e^(x_j)) along `axis`.

    Backward. dy_j/dx_i = 1[i = j] - softmax(x)_i, so dx_i = g_i - softmax(x)_i sum_j g_j.
    """

    @staticmethod
    def forward(ctx, x, axis):
        xp = get_array_module(x)
        y = x - finite_max(x, axis)
        total = xp.exp(y).sum(axis=axis, keepdims=True)
        y -= xp.log(xp.where(total == 0, 1, total))
        ctx.axis = axis
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g - get_array_module(y).exp(y) * g.sum(axis=ctx.axis, keepdims=True)
