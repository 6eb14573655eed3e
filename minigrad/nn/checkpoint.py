"""Activation checkpointing: memory for time."""

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
    """y = f(x, …), without what f's operations keep for their backward (Chen et al., 2016).

    Backward. Only the inputs are kept, beside the parameters, which are there anyway. With them f runs a second time,
    recorded on a tape of its own, and that tape is walked with g. Random numbers are those of the first run again, so
    dropout drops the same elements.
    """

    @staticmethod
    def forward(ctx, f, inputs, *arrays):
        ctx.f, ctx.inputs = f, inputs
        ctx.random = random.get_state()
        ctx.save(*arrays)  # the parameters, too, so that a write to them is noticed
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
        y.backward(g)  # gradients of f's parameters arrive in their `grad` here
        gradients = [x.grad if isinstance(x, Tensor) else None for x in again]
        return (None, None, *gradients, *[None] * (len(ctx.needs_input_grad) - 2 - len(again)))


def checkpoint(f: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """f(*inputs) for a module (or a function that uses no parameters of its own) whose activations are not kept.

    The backward computes them a second time: a block's memory shrinks to its inputs, for a third more computation.
    Dropout is replayed exactly. f takes tensors (and anything else, passed on as it is) and returns one tensor.
    """
    if is_recording() and any(any_requires_grad(x) for x in inputs if not isinstance(x, Tensor)):
        raise TypeError("checkpoint: got a list of tensors that require gradients; give each as an argument of its own")
    if not isinstance(f, Module):
        return Checkpoint.apply(f, inputs, *inputs)
    return call_in_scope(f, Checkpoint.apply, (f, inputs, *inputs, *f.parameters()), {})
