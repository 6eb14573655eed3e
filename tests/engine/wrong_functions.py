"""Functions with deliberate mistakes. gradcheck must catch each of them, with the message that belongs to it.

`missed_by_pytorch` marks those that torch.autograd.gradcheck lets pass with its default settings, in the translations
of tests/parity/test_gradcheck.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg


class Wrong(NamedTuple):
    fn: Callable[..., Any]
    inputs: list[np.ndarray]
    message: str  # a regular expression
    missed_by_pytorch: bool = False


def operation(forward, backward, **attributes):
    """An operation from two functions; `forward` returns the output, or a tuple of outputs, and what to save."""

    class Operation(mg.Function):
        @staticmethod
        def forward(ctx, *args):
            y, *saved = forward(*args)
            ctx.save(*saved)
            return y

        @staticmethod
        def backward(ctx, *gs):
            return backward(*gs, *ctx.saved)

    for name, value in attributes.items():
        setattr(Operation, name, value)
    return Operation.apply


def square(backward, **attributes):
    return operation(lambda x: (x * x, x), backward, **attributes)


def double(backward, **attributes):
    return operation(lambda x: (x * 2,), backward, **attributes)


def product(backward, **attributes):
    return operation(lambda a, b: (a * b, a, b), backward, **attributes)


def add(x, b):
    return (x + b,)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum(), e / e.sum()


def in_place(change):
    def forward(x):
        change(x)
        return x * 1, x

    return operation(forward, lambda g, x: g)


class RemembersOnTheClass(mg.Function):
    """x^2 that keeps its input on the class instead of on the tape: right when used once, wrong when used twice."""

    @staticmethod
    def forward(ctx, x):
        RemembersOnTheClass.x = x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * RemembersOnTheClass.x * g


class GrowsWithItsUses(mg.Function):
    """The identity, whose gradient carries a factor of how often it was called since the last backward."""

    uses = 0

    @staticmethod
    def forward(ctx, x):
        GrowsWithItsUses.uses += ctx.needs_input_grad[0]
        return x + 0

    @staticmethod
    def backward(ctx, g):
        uses, GrowsWithItsUses.uses = GrowsWithItsUses.uses, 0
        return g * max(uses, 1)


class NeedsBoth(mg.Function):
    """a b, whose gradient of a is lost where b needs none."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        return g * b * all(ctx.needs_input_grad), g * a


class DiffersWithoutGradients(mg.Function):
    """exp, which returns its series up to x^2 where no gradient is needed."""

    @staticmethod
    def forward(ctx, x):
        ctx.save(y := np.exp(x))
        return y if ctx.needs_input_grad[0] else 1 + x + x * x / 2

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        return g * y


def writes(g):
    g *= 2
    return g


def writes_if_contiguous(g):
    g = np.ascontiguousarray(g)
    g *= 2
    return g


def writes_and_restores(x):
    x += 1
    y = (x - 1) ** 2
    x -= 1
    return y, x.copy()


def writes_to_saved(g, x):
    x *= 2 * g
    return x.copy()


def writes_to_output(g, y):
    y *= g
    return y.copy()


def reused_output(memory):
    def forward(x):
        np.multiply(x, x, out=memory)
        return memory, x.copy()

    return operation(forward, lambda g, x: 2 * x * g)


def reused_gradient(memory, **attributes):
    return double(lambda g: np.multiply(g, 2, out=memory), **attributes)


def two_outputs(backward):
    return operation(lambda x: ((x * 2, x * x), x), backward)


def slide(x, w):
    """A convolution along one axis, written as a sum over the places of the kernel."""
    n = len(x) - len(w) + 1
    return sum(w[i] * x[i : i + n] for i in range(len(w))), x, w


def slide_backward(g, x, w):
    """dx is g and w convolved, which numpy.convolve does: here w is flipped once too often."""
    return np.convolve(g, w[::-1]), np.array([g @ x[i : i + len(g)] for i in range(len(w))])


def largest_of_pairs_backward(g, x):
    """A pixel that two windows chose gets the gradient of the second alone."""
    dx = np.zeros_like(x)
    for p in range(len(g)):
        dx[p + np.argmax(x[p : p + 2])] = g[p]
    return dx


row, matrix = np.array([0.5, -1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
square_matrix = np.array([[1.0, 2.0], [-1.0, 0.5]])
noise = np.random.default_rng(0)
hundreds = 100 * np.cos(np.arange(50.0))

WRONG = {
    # the gradient has another value
    "a broadcast axis is not summed": Wrong(operation(add, lambda g: (g, g[0])), [matrix, row], "input 1.* is wrong"),
    "a broadcast axis is averaged": Wrong(
        operation(add, lambda g: (g, g.mean(0))), [matrix, row], "input 1.* is wrong"
    ),
    "sign": Wrong(operation(lambda x: (np.cos(x), x), lambda g, x: g * np.sin(x)), [row], "input 0.* is wrong"),
    "sign of the second input": Wrong(operation(lambda a, b: (a - b,), lambda g: (g, g)), [row, row], "input 1.* is"),
    "factor": Wrong(square(lambda g, x: g * x), [row], "input 0.* is wrong"),
    "exponent": Wrong(operation(lambda x: (x**3, x), lambda g, x: 3 * x * g), [row], "input 0.* is wrong"),
    "forgotten term": Wrong(operation(softmax, lambda g, y: g * y), [row], "input 0.* is wrong"),
    "wrong axis": Wrong(
        operation(lambda x: (x / x.sum(0), x), lambda g, x: (g - (g * x / x.sum(0)).sum(1, keepdims=True)) / x.sum(0)),
        [np.abs(square_matrix)],
        "input 0.* is wrong",
    ),
    "not transposed": Wrong(
        operation(lambda a, b: (a @ b, a, b), lambda g, a, b: (g @ b, a.T @ g)),
        [square_matrix, square_matrix + 1],
        "input 0.* is wrong",
    ),
    "gradients exchanged": Wrong(product(lambda g, a, b: (g * a, g * b)), [row, row + 1], "input 0.* is wrong"),
    "no gradient": Wrong(square(lambda g, x: (None,)), [row], "input 0.* is wrong"),
    "NaN": Wrong(square(lambda g, x: g * x * np.nan), [row], "input 0.* is wrong"),
    "infinity": Wrong(square(lambda g, x: np.full_like(x, np.inf)), [row], "input 0.* is wrong"),
    "wrong in one element": Wrong(double(lambda g: g * [2, 2, 2.001]), [row], "input 0.* is wrong"),
    "wrong for large inputs": Wrong(square(lambda g, x: 2 * g * np.clip(x, -50, 50)), [hundreds], "input 0.* is wrong"),
    "wrong in one element of many": Wrong(
        square(lambda g, x: 2 * g * x * (np.arange(x.size) != 15_000)), [np.ones(20_000)], "input 0.* is wrong"
    ),
    "a flipped kernel": Wrong(operation(slide, slide_backward), [np.cos(np.arange(6.0)), row], "input 0.* is wrong"),
    "windows that overwrite each other's gradients": Wrong(
        operation(lambda x: (np.maximum(x[1:], x[:-1]), x), largest_of_pairs_backward),
        [np.array([1.0, 3.0, 2.0])],
        "input 0.* is wrong",
    ),
    "last of repeated places wins": Wrong(
        operation(lambda x: (x[[0, 0]],), lambda g: np.array([g[1], 0, 0])), [row], "input 0.* is wrong"
    ),
    "an absolute value taken as constant": Wrong(
        operation(lambda x: (x * np.abs(x), x), lambda g, x: g * np.abs(x)), [row], "input 0.* is wrong"
    ),
    "a real part taken as constant": Wrong(
        operation(lambda x: (x * np.real(x), x), lambda g, x: g * x), [row], "input 0.* is wrong"
    ),
    "the second output": Wrong(two_outputs(lambda g, h, x: 2 * g + h * x), [row], "input 0.* is wrong"),
    "the second output is ignored": Wrong(two_outputs(lambda g, h, x: 2 * g), [row], "input 0.* is wrong"),
    "half a gradient at a kink": Wrong(
        operation(lambda x: (np.maximum(x, 0), x), lambda g, x: g * np.heaviside(x, 0.5)),
        [np.array([1.0, 0.0])],
        r"not smooth at input 0, element \(1,\): the slope of output 0 at \(1,\) is 0 on one side and 1 on the other",
        missed_by_pytorch=True,
    ),
    "a step lost to rounding": Wrong(
        square(lambda g, x: 0 * g),
        [np.array([1.0, 1e17])[1:]],
        r"input 0 at \(0,\) is 1e\+17: the step eps = 1e-06 is lost",
        missed_by_pytorch=True,
    ),
    # right at the inputs alone
    "right only at round numbers": Wrong(
        square(lambda g, x: g * x * np.where(x == np.round(x, 2), 2, 3)), [row], "wrong beside", missed_by_pytorch=True
    ),
    "single precision inside": Wrong(
        operation(lambda x: (np.exp(x), x), lambda g, x: g * np.exp(x.astype(np.float32))),
        [np.zeros(3)],
        "second derivatives are not symmetric",
        missed_by_pytorch=True,
    ),
    # used several times
    "input kept on the class, used twice": Wrong(
        lambda x: RemembersOnTheClass.apply(x) * RemembersOnTheClass.apply(x + 1), [row], "state is kept"
    ),
    "input kept on the class": Wrong(RemembersOnTheClass.apply, [row], "state is kept", missed_by_pytorch=True),
    "factor depends on the fan-out": Wrong(
        lambda x: sum(GrowsWithItsUses.apply(x) for _ in range(3)), [row], "state is kept"
    ),
    "factor counts the calls": Wrong(GrowsWithItsUses.apply, [row], "state is kept"),
    "gradient plus noise": Wrong(
        double(lambda g: 2 * g + 1e-9 * noise.standard_normal(g.shape)), [row], "not deterministic"
    ),
    "forward plus noise": Wrong(
        operation(lambda x: (x + 1e-12 * noise.standard_normal(x.shape),), lambda g: g), [row], "not deterministic"
    ),
    "no_grad differs": Wrong(DiffersWithoutGradients.apply, [row], "output 0 differs inside no_grad"),
    # memory
    "the input is doubled in place": Wrong(
        in_place(lambda x: np.multiply(x, 2, out=x)), [row], "changed its input 0 in place"
    ),
    "the input is clipped in place, which a second call does not undo": Wrong(
        in_place(lambda x: np.maximum(x, 0, out=x)), [row], "changed its input 0 in place"
    ),
    "the input is changed and restored": Wrong(
        operation(writes_and_restores, lambda g, x: 2 * x * g), [np.arange(3.0)], "writes to an input in place"
    ),
    "the backward changes the input": Wrong(square(writes_to_saved), [row], "the backward changed input 0 in place"),
    "the backward changes the output": Wrong(
        operation(lambda x: (y := np.exp(x), y), writes_to_output), [row], "output 0 was changed by the backward"
    ),
    "the gradient is written to": Wrong(double(writes), [row], "writes to the gradient", missed_by_pytorch=True),
    "a contiguous gradient is written to": Wrong(double(writes_if_contiguous), [row], "writes to the gradient"),
    "the output's memory is used again": Wrong(reused_output(np.empty(3)), [row], "output 0 was changed"),
    "the gradient's memory is used again": Wrong(
        reused_gradient(np.empty(3)), [row], "reuses the memory of a gradient", missed_by_pytorch=True
    ),
    "a promised new array is used again": Wrong(
        reused_gradient(np.empty(3), returns_new_arrays=True), [row], "promises new arrays"
    ),
    "a promised new array is given twice": Wrong(
        operation(lambda a, b: (a + b,), lambda g: (g, g), returns_new_arrays=True), [row, row], "promises new arrays"
    ),
    "a promised new array is a saved one": Wrong(
        operation(lambda x: (x * 2, np.empty_like(x)), lambda g, d: np.multiply(g, 2, out=d), returns_new_arrays=True),
        [row],
        "promises new arrays",
    ),
    # layouts
    "order of the elements in memory": Wrong(
        double(lambda g: 2 * g.ravel("K").reshape(g.shape)), [matrix], "Fortran order gradient", missed_by_pytorch=True
    ),
    "a non-contiguous gradient": Wrong(
        double(lambda g: (3 - g.flags.forc) * g), [row], "not contiguous gradient", missed_by_pytorch=True
    ),
    "a broadcast gradient": Wrong(
        double(lambda g: 2 * g * (1 if g.strides[-1] else 3)), [row], "stride 0", missed_by_pytorch=True
    ),
    "order of the inputs in memory": Wrong(
        operation(lambda x: (2 * x.ravel("K"),), lambda g: 2 * g.reshape(2, 3)),
        [matrix],
        "output 0 depends on the layout .in Fortran order inputs.",
        missed_by_pytorch=True,
    ),
    "a broadcast input": Wrong(
        operation(lambda x: (x * x, x), lambda g, x: 2 * g * x * (1 if x.strides[0] else 3)), [row], "stride 0"
    ),
    # parts of the gradients
    "clipped gradient": Wrong(
        double(lambda g: 2 * np.clip(g, -100, 100)), [row], "not linear in the gradient", missed_by_pytorch=True
    ),
    "small gradients are dropped": Wrong(
        double(lambda g: 2 * g * (np.abs(g) > 1e-6)), [row], "not linear in the gradient", missed_by_pytorch=True
    ),
    "quadratic in the gradient": Wrong(double(lambda g: 2 * g * np.abs(g)), [row], "input 0.* is wrong", True),
    "one output has no gradient": Wrong(
        two_outputs(lambda g, h, x: (2 * g + 2 * x * h) * bool(g.any())), [row], "only one output has a gradient"
    ),
    "one input has no gradient": Wrong(
        NeedsBoth.apply, [row, row + 1], "which inputs require gradients", missed_by_pytorch=True
    ),
    "one tensor given twice": Wrong(
        product(lambda g, a, b: (g * b, g * a * (a is not b))), [row, row + 1], "0 and 1 are one tensor", True
    ),
}
