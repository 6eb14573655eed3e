"""Normalization over the last axis."""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cpu, cuda
from .precision import computed_in_single
from .shape import sum_to


def check_scale(x, *parameters):
    if x.ndim == 0 or any(p is not None and p.shape != x.shape[-1:] for p in parameters):
        raise ValueError("expected x (…, C), and weight and bias (C,) or None")


def row_mean(x):
    return x.sum(axis=-1, keepdims=True) / x.shape[-1]


@accelerated(cpu=cpu.LayerNorm, cuda=cuda.LayerNorm)
@computed_in_single
class LayerNorm(Function):
    """Layer normalization (Ba, Kiros and Hinton, 2016): every row is shifted to mean 0 and scaled to variance 1.

        mu = mean(x)    var = mean((x - mu)^2)    r = 1/sqrt(var + eps)    x_hat = (x - mu) r    y = gamma x_hat + beta

    Shapes: x and y (…, C); gamma and beta (C,), or None for 1 and 0.

    Backward. Let g = dL/dy and g_hat = g gamma = dL/dx_hat.
        dL/dbeta  = sum over rows of g              beta is added to every row
        dL/dgamma = sum over rows of g x_hat        gamma scales every row
    x affects x_hat in three ways: directly, through mu and through var. With n = C elements in a row,
        directly:     r g_hat
        through mu:   -r mean(g_hat)                dmu/dx_i = 1/n, and every x_hat contains -r mu
        through var:  -r x_hat mean(g_hat x_hat)    dvar/dx_i = 2 (x_i - mu)/n, dr/dvar = -r^3/2
        dL/dx = r (g_hat - mean(g_hat) - x_hat mean(g_hat x_hat))
    The last two terms remove from g_hat its mean and its component along x_hat: shifting or scaling a row of x does not
    change y (except for eps), so the gradient must not point in either direction.
    """

    @staticmethod
    def forward(ctx, x, gamma, beta, eps):
        check_scale(x, gamma, beta)
        x_hat = x - row_mean(x)  # (…, C)
        x_hat -= row_mean(x_hat)  # what the rounding of a large mean left: 1e-3 for a float32 mean of 1e4
        r = 1 / get_array_module(x).sqrt(row_mean(x_hat * x_hat) + eps)  # (…, 1)
        x_hat *= r
        ctx.save(x_hat, r, gamma)
        y = x_hat.copy() if gamma is None else x_hat * gamma  # always a new array: x_hat is saved
        if beta is not None:
            y += beta
        return y

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved
        _, wants_gamma, wants_beta, _ = ctx.needs_input_grad
        g_hat = g if gamma is None else g * gamma
        dx = g_hat - row_mean(g_hat)
        dx -= x_hat * row_mean(g_hat * x_hat)
        dx *= r
        dgamma = sum_to(g * x_hat, x_hat.shape[-1:]) if wants_gamma else None
        dbeta = sum_to(g, x_hat.shape[-1:]) if wants_beta else None
        return dx, dgamma, dbeta, None


@accelerated(cpu=cpu.RowByRow)
@computed_in_single
class RMSNorm(Function):
    """Root-mean-square normalization (Zhang and Sennrich, 2019): layer norm without the shift.

        r = 1/sqrt(mean(x^2) + eps)    x_hat = x r    y = gamma x_hat

    Shapes: x and y (…, C); gamma (C,), or None for 1.

    Backward. With g_hat = g gamma, dL/dgamma = sum over rows of g x_hat. x affects x_hat directly, which gives r g_hat,
    and through r: dr/dx_i = -r^3 x_i / C, which gives -r x_hat mean(g_hat x_hat). Together
        dL/dx = r (g_hat - x_hat mean(g_hat x_hat))
    """

    @staticmethod
    def forward(ctx, x, gamma, eps):
        check_scale(x, gamma)
        r = 1 / get_array_module(x).sqrt(row_mean(x * x) + eps)  # (…, 1)
        x_hat = x * r
        ctx.save(x_hat, r, gamma)
        return x_hat.copy() if gamma is None else x_hat * gamma

    @staticmethod
    def backward(ctx, g):
        x_hat, r, gamma = ctx.saved
        g_hat = g if gamma is None else g * gamma
        dx = g_hat - x_hat * row_mean(g_hat * x_hat)
        dx *= r
        return dx, sum_to(g * x_hat, x_hat.shape[-1:]) if ctx.needs_input_grad[1] else None, None
