"""Activation functions. Every element passes through the same curve, so its gradient is g times the curve's slope."""

from __future__ import annotations

import functools
import importlib
import math

import numpy as np

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cpu, cuda
from .precision import choose, computed_in_single


@accelerated(cpu=cpu.RowByRow)
class Tanh(Function):
    """y = tanh x.    dy/dx = 1 - y^2."""

    @staticmethod
    def forward(ctx, x):
        y = get_array_module(x).tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g * (1 - y * y)


def sigmoid(x):
    """1 / (1 + e^-x) where x >= 0, else the equal e^x / (1 + e^x). e^-|x| never overflows; tiny results stay exact."""
    xp = get_array_module(x)
    e = xp.exp(-abs(x))
    return xp.where(x >= 0, 1, e) / (1 + e)


@accelerated(cpu=cpu.RowByRow)
@computed_in_single
class Sigmoid(Function):
    """y = 1 / (1 + e^-x).    dy/dx = e^-x / (1 + e^-x)^2 = y (1 - y)."""

    @staticmethod
    def forward(ctx, x):
        y = sigmoid(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g * y * (1 - y)


class ReLU(Function):
    """y = max(x, 0).    dy/dx = 1 where x > 0, else 0 (0 at the kink x = 0); NaN where x is NaN."""

    @staticmethod
    def forward(ctx, x):
        y = get_array_module(x).maximum(x, 0)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return choose(y > 0, g, y)  # elsewhere y is 0, or NaN


@accelerated(cpu=cpu.RowByRow)
class SquaredReLU(Function):
    """y = r^2 with r = max(x, 0) (So et al., 2021).    dy/dx = 2 r, which is continuous: there is no kink at x = 0.

    An infinite g gives NaN where r = 0, and not 0: it cannot go unnoticed.
    """

    @staticmethod
    def forward(ctx, x):
        r = get_array_module(x).maximum(x, 0)
        ctx.save(r)
        return r * r

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved
        return g * (2 * r)


@accelerated(cpu=cpu.RowByRow)
@computed_in_single
class SiLU(Function):
    """y = x s with s = sigmoid(x) (Elfwing et al., 2017).    dy/dx = s + x s (1 - s) = s (1 + x (1 - s))."""

    @staticmethod
    def forward(ctx, x):
        s = sigmoid(x)
        ctx.save(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved
        return g * (s * (1 + x * (1 - s)))


@accelerated(cpu=cpu.RowByRow)
@computed_in_single
class Softplus(Function):
    """y = ln(1 + e^x) (Dugas et al., 2001).    dy/dx = e^x / (1 + e^x) = sigmoid(x).

    e^x overflows for large x. Taking the factor e^x out of the logarithm where x > 0,
        ln(1 + e^x) = x + ln(1 + e^-x),
    so for either sign y = max(x, 0) + ln(1 + e^-|x|), in which the exponent is never positive.
    """

    @staticmethod
    def forward(ctx, x):
        xp = get_array_module(x)
        ctx.save(x)
        return xp.maximum(x, 0) + xp.log1p(xp.exp(-abs(x)))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved
        return g * sigmoid(x)


@accelerated(cpu=cpu.GELUTanh, cuda=cuda.GELU)
@computed_in_single
class GELUTanh(Function):
    """y = x/2 (1 + t) with t = tanh(u), u = c (x + a x^3), c = sqrt(2/pi), a = 0.044715.

    The approximation of GELU that GPT-2 was trained with (Hendrycks and Gimpel, 2016).

    Backward. By the product rule, with dt/du = 1 - t^2 and du/dx = c (1 + 3 a x^2),
        dy/dx = (1 + t)/2 + x/2 (1 - t^2) c (1 + 3 a x^2)
    With h = (1 + t)/2 this is h + 2 x h (1 - h) du/dx, since 1 - t^2 = 4 h (1 - h). The forward has computed h, so it
    computes the slope too: it saves one array instead of two, and the backward is one multiplication.
    """

    c = math.sqrt(2 / math.pi)
    a = 0.044715

    @staticmethod
    def forward(ctx, x):
        c, ca = GELUTanh.c, GELUTanh.c * GELUTanh.a
        squares = x * x
        h = squares * ca  # u = (c + c a x^2) x, then tanh and h
        h += c
        h *= x
        h = get_array_module(x).tanh(h)
        h += 1
        h *= 0.5
        y = x * h
        if ctx.needs_input_grad[0]:
            squares *= 6 * ca  # 2 du/dx, then times x h (1 - h), plus h
            squares += 2 * c
            squares *= y
            slope = 1 - h
            slope *= squares
            slope += h
            ctx.save(slope)
        return y

    @staticmethod
    def backward(ctx, g):
        (slope,) = ctx.saved
        return g * slope


@accelerated(cpu=cpu.RowByRow)
@computed_in_single
class GELUErf(Function):
    """y = x Phi(x), with the normal distribution function Phi(x) = (1 + erf(x / sqrt 2)) / 2 (Hendrycks, Gimpel, 2016).

    Backward. Phi' is the normal density: dy/dx = Phi(x) + x e^(-x^2/2) / sqrt(2 pi).
    """

    @staticmethod
    def forward(ctx, x):
        phi = 0.5 * (1 + erf(x * math.sqrt(0.5)))
        ctx.save(x, phi)
        return x * phi

    @staticmethod
    def backward(ctx, g):
        x, phi = ctx.saved
        density = get_array_module(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return g * (phi + x * density)


@functools.cache
def _erf_grid():
    """erf at 0, 1/16, 2/16, … 6. At 6 it is 1 in double precision."""
    return np.array([math.erf(i / 16) for i in range(6 * 16 + 1)])


def erf(x):
    """The error function: 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x. NumPy does not have it.

    It is a Taylor series around p, the multiple of 1/16 nearest to |x|, in h = |x| - p. The derivatives of erf at p are
    2/sqrt(pi) e^(-p^2) times the polynomials H_0 = 1, H_1 = -2p, H_(n+1) = -2p H_n - 2n H_(n-1). Since |h| <= 1/32,
    nine terms reach the precision of float64. erf is odd, so the sign of x is the sign of the result.
    """
    xp = get_array_module(x)
    if xp is not np:
        return importlib.import_module("cupyx.scipy.special").erf(x).astype(x.dtype, copy=False)  # float64 for float16
    magnitude = np.minimum(np.abs(x), 6)
    nearest = np.rint(16 * np.where(np.isnan(magnitude), 0, magnitude)).astype(np.intp)
    p = nearest.astype(x.dtype) / 16
    h = magnitude - p
    before, polynomial, power, series = np.zeros_like(h), np.ones_like(h), h, h
    for n in range(1, 9):
        before, polynomial = polynomial, -2 * p * polynomial - 2 * (n - 1) * before  # H_(n-1), H_n
        power = power * h / (n + 1)  # h^(n+1) / (n+1)!
        series = series + polynomial * power
    value = _erf_grid()[nearest].astype(x.dtype) + (2 / math.sqrt(math.pi)) * np.exp(-p * p) * series
    return np.copysign(value, x)
