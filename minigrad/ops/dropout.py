"""Dropout."""

from __future__ import annotations

from .. import random
from ..autograd import Function
from ..backend import device_of
from ..kernels import accelerated, cpu, cuda
from .precision import computed_in_single


def drop(x, dropout):
    """x m / (1 - p) with a mask that was drawn before: `dropout` is (m, 1 / (1 - p)), or None to return x itself."""
    if dropout is None:
        return x
    mask, scale = dropout
    y = x * mask
    y *= scale
    return y


@accelerated(cpu=cpu.Dropout, cuda=cuda.Dropout)
@computed_in_single
class Dropout(Function):
    """y = x m / (1 - p), where every element of the mask m is 0 with probability p, else 1 (Srivastava et al., 2014).

    Dividing by 1 - p preserves the expectation, E[y] = x, so nothing else changes when dropout is off.

    Backward. dy/dx = m / (1 - p): dropped elements get no gradient, and the others are scaled in the same way.
    """

    @staticmethod
    def forward(ctx, x, p):
        ctx.dropout = random.dropout_mask(x.shape, p, device_of(x))
        return drop(x, ctx.dropout)

    @staticmethod
    def backward(ctx, g):
        return drop(g, ctx.dropout), None
