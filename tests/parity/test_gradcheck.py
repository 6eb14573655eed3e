"""Mistakes that torch.autograd.gradcheck lets pass, with its default settings, and minigrad's gradcheck does not."""

import numpy as np
import pytest

from tests.engine.wrong_functions import WRONG
from tests.parity.compare import torch


def operation(forward, backward):
    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            y, *saved = forward(*args)
            ctx.save_for_backward(*saved)
            return y

        @staticmethod
        def backward(ctx, g):
            return backward(g, *ctx.saved_tensors)

    return Operation.apply


def square(backward):
    return operation(lambda x: (x * x, x), backward)


def double(backward):
    return operation(lambda x: (x * 2,), backward)


def writes(g):
    g *= 2
    return g


class RemembersOnTheClass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        RemembersOnTheClass.x = x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * RemembersOnTheClass.x * g


class NeedsBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * b * all(ctx.needs_input_grad), g * a


memory = torch.empty(3, dtype=torch.float64)
TRANSLATED = {
    "half a gradient at a kink": operation(
        lambda x: (x.clamp(min=0), x), lambda g, x: g * torch.heaviside(x, torch.full_like(x, 0.5))
    ),
    "a step lost to rounding": square(lambda g, x: 0 * g),
    "right only at round numbers": square(lambda g, x: g * x * torch.where(x == x.round(decimals=2), 2, 3)),
    "single precision inside": operation(lambda x: (x.exp(), x), lambda g, x: g * x.float().exp()),
    "input kept on the class": RemembersOnTheClass.apply,
    "the gradient is written to": double(writes),
    "a non-contiguous gradient": double(lambda g: (2 if g.is_contiguous() else 3) * g),
    "a broadcast gradient": double(lambda g: 2 * g * (1 if g.stride()[-1] else 3)),
    "order of the inputs in memory": operation(
        lambda x: (2 * x.as_strided((6,), (1,)),), lambda g: 2 * g.reshape(2, 3)
    ),
    "clipped gradient": double(lambda g: 2 * g.clamp(-100, 100)),
    "small gradients are dropped": double(lambda g: 2 * g * (g.abs() > 1e-6)),
    "quadratic in the gradient": double(lambda g: 2 * g * g.abs()),
    "one input has no gradient": NeedsBoth.apply,
    "the gradient's memory is used again": double(lambda g: torch.mul(g, 2, out=memory)),
    "order of the elements in memory": double(lambda g: 2 * g.as_strided((6,), (1,)).reshape(g.shape)),
    "one tensor given twice": operation(
        lambda a, b: (a * b, a, b), lambda g, a, b: (g * b, g * a * (a.data_ptr() != b.data_ptr()))
    ),
}


def test_all_that_are_marked_are_tried():
    assert set(TRANSLATED) == {name for name, wrong in WRONG.items() if wrong.missed_by_pytorch}


@pytest.mark.parametrize("name", TRANSLATED)
def test_pytorch_lets_it_pass(name):
    inputs = [torch.tensor(np.array(x), requires_grad=True) for x in WRONG[name].inputs]
    assert torch.autograd.gradcheck(TRANSLATED[name], inputs)
