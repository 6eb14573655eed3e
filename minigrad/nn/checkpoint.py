"""Activation checkpointing: less memory for more computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import random
from ..arguments import any_requires_grad
from ..autograd import Function
from ..modes import call_in_scope, enable_grad, is_recording, no_grad
from ..tensor import Tensor
from .module import Module


class Checkpoint(Function):
    """y = f(x, …), without keeping what f's operations save for their backward (Chen et al., 2016).

    Backward. Only the inputs are kept; the parameters exist anyway. f runs on them a second time and is recorded on a
    tape of its own. g is then propagated through that tape. The random numbers of the first run are replayed, so
    dropout drops the same elements.
    """

    @staticmethod
    def forward(ctx, f, inputs, *arrays):
        ctx.f, ctx.inputs = f, inputs
        ctx.random = random.get_state()
        ctx.save(*arrays)  # also the parameters, so that a write to them is noticed
        with no_grad():
            return f(*inputs).data

    @staticmethod
    def backward(ctx, g):
        again = [
            Tensor(array, requires_grad=needs) if isinstance(tensor, Tensor) else tensor
            for array, tensor, needs in zip(ctx.saved, ctx.inputs, ctx.needs_input_grad[2:], strict=False)
        ]
        with random.replay(ctx.random), enable_grad():
            y = ctx.f(*again)
        if y.requires_grad:  # not if f detaches its result
            y.backward(g)  # this also adds to the `grad` of f's parameters
        gradients = [x.grad if isinstance(x, Tensor) else None for x in again]
        return (None, None, *gradients, *[None] * (len(ctx.needs_input_grad) - 2 - len(again)))


def checkpoint(f: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Compute f(*inputs) without keeping the activations of f, a module or a function without parameters of its own.

    The backward computes the activations a second time: a block keeps only its inputs, for a third more computation.
    Dropout is replayed exactly. f takes tensors (and any other arguments, passed on unchanged) and returns one tensor.
    Raises TypeError for a list of tensors that require gradients.
    """
    if is_recording() and any(any_requires_grad(x) for x in inputs if not isinstance(x, Tensor)):
        raise TypeError("checkpoint: expected each tensor that requires gradients as its own argument, got a list")
    if not isinstance(f, Module):
        return Checkpoint.apply(f, inputs, *inputs)
    return call_in_scope(f, Checkpoint.apply, (f, inputs, *inputs, *f.parameters()), {})
