"""Dropout."""

from __future__ import annotations

from .. import random
from ..autograd import Function
from ..backend import device_of


class Dropout(Function):
    """y = x m / (1 - p), where every element of the mask m is 0 with probability p, else 1 (Srivastava et al., 2014).

    Dividing by 1 - p keeps the expectation: E[y] = x, so nothing has to change when dropout is off.

    Backward. dy/dx = m / (1 - p): what was dropped gets no gradient, the rest is scaled alike.
    """

    @staticmethod
    def forward(ctx, x, p):
        mask, ctx.scale = random.dropout_mask(x.shape, p, device_of(x))
        ctx.save(mask)
        y = x * mask
        y *= ctx.scale
        return y

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved
        dx = g * mask
        dx *= ctx.scale
        return dx, None
