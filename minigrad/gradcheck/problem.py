"""The function under test, its inputs in float64, and a random upstream gradient u for each of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Function, RunNode, Variable, backward, describe, input_gradients
from ..backend import Array
from ..modes import no_grad
from ..tensor import Tensor


class GradcheckError(AssertionError):
    """A backward pass is wrong. The message says which check failed, where, what was expected and what was found."""


class Weighted(Function):
    """L = sum(u y) over all outputs y. Its backward hands the arrays u to the backward of what made y, uncopied."""

    @staticmethod
    def forward(ctx, u, *ys):
        ctx.u = u
        with np.errstate(
            invalid="ignore"
        ):  # infinite outputs of both signs have no sum, but their gradients are checked
            return np.array(sum(float(np.sum(d * y)) for d, y in zip(u, ys, strict=True)))

    @staticmethod
    def backward(ctx, g):
        return None, *ctx.u


@dataclass
class Problem:
    """fn, its arguments, the positions of the tensors among them whose gradients are checked, and u."""

    fn: Callable[..., Any]
    arguments: list[Any]
    positions: list[int]
    u: list[Array]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.arguments[i] for i in self.positions]

    def values(self) -> list[Array]:
        """Copies of the outputs of fn at the arrays that the tensors now hold, without recording."""
        with no_grad():
            return [y.data.copy() for y in floating_outputs(self.fn(*self.arguments))]

    def at(self, arrays: Sequence[Array], needs_grad: Sequence[int] | None = None) -> Problem:
        """The same function at new tensors around these arrays. needs_grad: which of them require gradients."""
        arguments = list(self.arguments)
        for k, (position, array) in enumerate(zip(self.positions, arrays, strict=True)):
            arguments[position] = Tensor(array, requires_grad=needs_grad is None or k in needs_grad)
        return Problem(self.fn, arguments, self.positions, self.u)

    def gradients(self, run: RunNode = input_gradients, between: Callable[[], Any] | None = None) -> Gradients:
        """Run forward and backward. `run` runs one node's backward; `between` is called before the backward begins."""
        for x in self.tensors:
            x.zero_grad()
        ys = floating_outputs(self.fn(*self.arguments))
        outputs = [y.data.copy() for y in ys]
        total = Weighted.apply([d.astype(y.dtype) for d, y in zip(self.u, ys, strict=True)], *ys)
        if between is not None:
            between()
        if total.requires_grad:
            backward(total, retain_graph=run is not input_gradients, run=run)
        for i, x in zip(self.positions, self.tensors, strict=True):
            if x.grad is not None and (x.grad.shape != x.shape or x.grad.dtype != x.dtype):
                raise GradcheckError(f"the gradient of input {i}: expected {describe(x)}, got {describe(x.grad)}")
        grads = [np.zeros_like(x.data) if x.grad is None else x.grad for x in self.tensors]
        return Gradients(outputs, grads, [y.data for y in ys])


@dataclass
class Gradients:
    """What a forward and a backward gave."""

    outputs: list[Array]  # copied before the backward
    grads: list[Array]  # of the tensors under test; zeros where none arrived
    held: list[Array]  # the outputs as the user holds them


def floating_outputs(result: Any) -> list[Any]:
    """The floating-point tensors among what fn returned: only these have gradients."""
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    if not all(isinstance(y, Variable) for y in outputs):
        raise TypeError(
            f"gradcheck: expected fn to return a tensor or several, got {', '.join(map(describe, outputs))}"
        )
    floating = [y for y in outputs if y.data.dtype.kind in "fc"]
    if not floating:
        raise ValueError(f"gradcheck: expected a floating output, got {', '.join(map(describe, outputs)) or 'none'}")
    return floating


def prepare(fn: Callable[..., Any], inputs: Any, seed: int, copy: bool = True) -> Problem:
    """The problem, with inputs copied to float64. Raises if no input is floating or if fn changes an input."""
    given: Sequence[Any] = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    arguments, positions = list(given), []
    for i, x in enumerate(given):
        array = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
        if array.dtype.kind != "f":
            continue
        positions.append(i)
        if copy or not (isinstance(x, Tensor) and x.requires_grad and x.dtype == np.float64):
            arguments[i] = Tensor(float64_copy(array), requires_grad=True)
    if not positions:
        raise ValueError(
            f"gradcheck: expected at least one floating input, since only floating inputs have gradients; "
            f"got {', '.join(map(describe, given)) or 'none'}"
        )
    problem = Problem(fn, arguments, positions, [])
    rng = np.random.default_rng(seed)
    before = [x.data.copy() for x in problem.tensors]
    problem.u = [rng.standard_normal(y.shape) for y in problem.values()]
    check_unchanged(problem, before, "the function changed its input {} in place")
    return problem


def check_unchanged(problem: Problem, before: Sequence[Array], message: str) -> None:
    for i, x, array in zip(problem.positions, problem.tensors, before, strict=True):
        if not np.array_equal(x.data, array, equal_nan=True):
            raise GradcheckError(message.format(i))


def float64_copy(array: Array) -> Array:
    """A float64 copy with the strides of the original, counted in elements. Overlapping elements are taken apart."""
    step, extent = [s // array.itemsize for s in array.strides], 1
    for stride, n in sorted((abs(s), n) for s, n in zip(step, array.shape, strict=True) if n > 1):
        if stride < extent:
            return array.astype(np.float64, order="C")
        extent += (n - 1) * stride
    if not array.size:
        return array.astype(np.float64)
    first = sum((n - 1) * max(-s, 0) for s, n in zip(step, array.shape, strict=True))
    memory = np.zeros(extent)[first:]
    copy = np.lib.stride_tricks.as_strided(memory, array.shape, [8 * s for s in step])
    copy[...] = array
    return copy
