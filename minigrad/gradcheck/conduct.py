"""Does a backward pass keep to the rules where one right gradient does not show it?

`examine` takes the place of the tape's way to run one node. It calls the node's backward many times with gradients that
must lead to the same result: the same again, read-only, in other layouts, in parts. `check_forward` does the same with
the inputs of the whole function, and calls it in other orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..autograd import input_gradients
from ..backend import Array
from ..node import Context
from .numeric import ROUNDING, Tolerance, difference, restored, rounding_of, values_at, weigh
from .problem import GradcheckError, Gradients, Problem, Weighted, check_unchanged

LARGE = 2.0**30  # a power of two, so that scaling by it rounds nothing


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def in_steps(array: Array) -> Array:
    """Every second element, backwards, of a larger array that is NaN in between."""
    memory = np.full([2 * n for n in array.shape], np.nan, array.dtype)
    backwards: Any = (..., *[slice(None, None, -2)] * array.ndim)
    view: Array = memory[backwards]
    view[...] = array
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "read-only": lambda array: np.array(array, order="K"),
    "contiguous": lambda array: np.array(array, order="C"),
    "in Fortran order": lambda array: np.array(array, order="F"),
    "not contiguous": in_steps,
}


def one_value(array: Array) -> Array:
    """A gradient whose elements are all one element in memory, as the backward of a sum makes."""
    return np.broadcast_to(array.dtype.type(0.7), array.shape)


def agree(found: Array, expected: Array, scale: float = 1.0) -> bool:
    """Are they equal up to rounding? Half of the digits must agree, beside the largest element."""
    eps = float(np.finfo(expected.dtype).eps)
    largest = float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected)))
    return np.allclose(found, expected, rtol=0, atol=eps**0.5 * largest + 4096 * eps * scale, equal_nan=True)


def same(first: Sequence[Array], second: Sequence[Array]) -> bool:
    """Are they equal to the bit?"""
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


# One backward


def examine(node: Context, grads: list[Array]) -> list[Array | None]:
    """Run the node's backward, and raise `GradcheckError` if it does not keep to the rules of `Function.backward`."""
    if node.function is Weighted:
        return input_gradients(node, grads)
    name = f"{node.function.__name__}.backward"
    needed = [i for i, parent in enumerate(node.parents) if parent is not None]

    returned: list[list[Array]] = []

    def call(given: list[Array]) -> list[Array]:
        """Copies of the gradients of the arguments that need one; zeros for None."""
        try:
            results = input_gradients(node, [np.asarray(g) for g in given])
        except ValueError as error:
            if "read-only" in str(error):
                raise GradcheckError(f"{name} writes to the gradient that it is given, or to an input") from error
            raise
        shaped = zip(needed, (results[i] for i in needed), strict=True)
        returned.append([np.zeros(*shape_and_dtype(node, i)) if r is None else r for i, r in shaped])
        return [r.copy() for r in returned[-1]]

    def expect(found: list[Array], expected: list[Array], how: str) -> None:
        scale = max((float(np.max(np.abs(g), initial=0)) for g in grads), default=0)
        for i, a, b in zip(needed, found, expected, strict=True):
            if not agree(a, b, scale):
                raise GradcheckError(f"{name} {how}: the gradient of argument {i}: expected\n{b}\ngot\n{a}")

    given = [g.copy() for g in grads]
    expected = call(given)
    if not same(given, grads):
        raise GradcheckError(f"{name} writes to the gradient that it is given")
    repeated = call([g.copy() for g in grads])
    if not same(repeated, expected):
        raise GradcheckError(
            f"{name} is not deterministic: two calls with one gradient gave\n{expected}\nand\n{repeated}"
        )
    if node.implementation.returns_new_arrays:
        check_new(name, returned[0], [*given, *node.saved, *vars(node).values(), *returned[1]])
    for layout, arrange in LAYOUTS.items():
        expect(call([read_only(arrange(g)) for g in grads]), expected, f"depends on the layout ({layout} gradient)")
    full = call([np.array(one_value(g)) for g in grads])
    expect(call([one_value(g) for g in grads]), full, "depends on the layout (broadcast gradient, of stride 0)")

    masks = [np.random.default_rng(0).random(g.shape) < 0.5 for g in grads]
    large = call([np.where(mask, g, 0) * g.dtype.type(LARGE) for mask, g in zip(masks, grads, strict=True)])
    small = call([np.where(mask, 0, g) / g.dtype.type(LARGE) for mask, g in zip(masks, grads, strict=True)])
    linear = [a / a.dtype.type(LARGE) + b * b.dtype.type(LARGE) for a, b in zip(large, small, strict=True)]
    expect(linear, expected, "is not linear in the gradient (part of it large and part of it small)")
    if len(grads) > 1:
        parts = [call([g if j == k else np.zeros_like(g) for j, g in enumerate(grads)]) for k in range(len(grads))]
        expect([sum(p) for p in zip(*parts, strict=True)], expected, "is wrong where only one output has a gradient")
    if not same(returned[0], expected):
        raise GradcheckError(f"{name} reuses the memory of a gradient that it returned before")
    gradients: list[Array | None] = [None] * len(node.parents)
    for i, gradient in zip(needed, expected, strict=True):
        gradients[i] = gradient
    return gradients


def shape_and_dtype(node: Context, argument: int) -> tuple[tuple[int, ...], Any]:
    parent = node.parents[argument]
    if isinstance(parent, tuple):
        return parent[0].outputs[parent[1]]
    assert parent is not None
    return parent.data.shape, parent.data.dtype


def check_new(name: str, results: Sequence[Array], others: Sequence[Any]) -> None:
    """Raise if a result shares memory with another result, or with one of the others."""
    for i, result in enumerate(results):
        if any(isinstance(other, np.ndarray) and np.shares_memory(result, other) for other in (*results[:i], *others)):
            raise GradcheckError(
                f"{name} promises new arrays (returns_new_arrays = True), but a gradient that it returns is also held "
                f"elsewhere: it is the given gradient, a saved array, or another gradient"
            )


# The whole function


def check_repeats(problem: Problem, directions: Sequence[Array], eps: float) -> Gradients:
    """Run forward and backward, and raise if a second run gives anything else, or if either changes what it may not."""
    before = [x.data.copy() for x in problem.tensors]
    found = problem.gradients()
    check_unchanged(problem, before, "the backward changed input {} in place")
    found.grads = [g.copy() for g in found.grads]

    def repeat(what: str, between: Callable[[], Any] | None = None) -> None:
        again = problem.gradients(between=between)
        for kind, a, b in (("outputs", found.outputs, again.outputs), ("gradients", found.grads, again.grads)):
            if not same(a, b):
                raise GradcheckError(f"{what}, {kind} differ: expected\n{a}\ngot\n{b}")
        for j, (a, b) in enumerate(zip(again.outputs, again.held, strict=True)):
            if not same([a], [b]):
                raise GradcheckError(f"output {j} was changed by the backward or by a later call: {a}\nbecame\n{b}")

    repeat("not deterministic: in a second call with the same inputs")
    elsewhere = problem.at([x + eps * d for x, d in zip(before, directions, strict=True)])
    another_call = lambda: elsewhere.fn(*elsewhere.arguments)  # noqa: E731
    repeat("state is kept outside the tape: with another call between forward and backward", another_call)
    for j, (a, b) in enumerate(zip(problem.values(), found.outputs, strict=True)):
        if not agree(a, b):
            raise GradcheckError(f"output {j} differs inside no_grad: expected\n{b}\ngot\n{a}")
    return found


def check_inputs(problem: Problem, expected: Gradients) -> None:
    """Raise unless the function gives the same for inputs in every layout, and whichever of them need gradients."""
    arrays = [x.data.copy() for x in problem.tensors]
    for layout, arrange in LAYOUTS.items():
        try:
            found = problem.at([read_only(arrange(x)) for x in arrays]).gradients()
        except ValueError as error:
            if "read-only" in str(error):
                raise GradcheckError("the function writes to an input in place, forward or backward") from error
            raise
        compare(problem, found, expected, f"depends on the layout ({layout} inputs)")
    count = len(arrays)
    subsets = {(k,) for k in range(count)} | {(*range(k), *range(k + 1, count)) for k in range(count)}
    for needs in sorted(subsets - {(), tuple(range(count))}):
        found = problem.at(arrays, needs).gradients()
        compare(problem, found, expected, f"depends on which inputs require gradients ({needs} of {count})", needs)
    if (elsewhere := tried(problem, [np.array(first_row(x)) for x in arrays])) is not None:
        found = problem.at([first_row(x) for x in arrays]).gradients()
        if well_conditioned(problem, [np.array(first_row(x)) for x in arrays], elsewhere):
            compare(problem, found, elsewhere, "depends on the layout (broadcast inputs, of stride 0)")
    for k in range(1, count):
        if arrays[k].shape == arrays[0].shape:
            check_one_tensor_twice(problem, arrays, k)


def check_one_tensor_twice(problem: Problem, arrays: list[Array], k: int) -> None:
    """Raise unless one tensor as input 0 and input k gets the sum of what two tensors with its values get."""
    arrays = [arrays[0].copy() if i == k else x for i, x in enumerate(arrays)]
    if (apart := tried(problem, arrays)) is None:
        return
    shared = problem.at(arrays)
    shared.arguments[shared.positions[k]] = shared.tensors[0]
    found = shared.gradients()
    apart.grads[0] = apart.grads[k] = apart.grads[0] + apart.grads[k]
    compare(problem, found, apart, f"depends on whether inputs 0 and {k} are one tensor")


def first_row(x: Array) -> Array:
    """The first row of x in the place of all rows, as a view in which all have one memory."""
    return np.broadcast_to(x[:1], x.shape) if x.ndim else read_only(x.copy())


def tried(problem: Problem, arrays: Sequence[Array]) -> Gradients | None:
    """The gradients at inputs that the caller did not choose: None where the function is not defined there."""
    with np.errstate(all="ignore"):
        try:
            found = problem.at(arrays).gradients()
        except Exception:  # whatever fn raises to refuse them
            return None
    return found if all(np.all(np.isfinite(a)) for a in (*found.outputs, *found.grads)) else None


def well_conditioned(problem: Problem, arrays: Sequence[Array], expected: Gradients) -> bool:
    """Do the gradients stay as they are where the inputs change in their last digits?"""
    nearby = tried(problem, [x * (1 + 1e-14 * np.cos(np.arange(x.size).reshape(x.shape))) for x in arrays])
    return nearby is not None and all(map(agree, nearby.grads, expected.grads))


def compare(
    problem: Problem, found: Gradients, expected: Gradients, how: str, needs: Sequence[int] | None = None
) -> None:
    for j, (a, b) in enumerate(zip(found.outputs, expected.outputs, strict=True)):
        if not agree(a, b):
            raise GradcheckError(f"output {j} {how}: expected\n{b}\ngot\n{a}")
    for k, (i, a, b) in enumerate(zip(problem.positions, found.grads, expected.grads, strict=True)):
        if (needs is None or k in needs) and not agree(a, b):
            raise GradcheckError(f"the gradient of input {i} {how}: expected\n{b}\ngot\n{a}")


def check_neighbors(problem: Problem, v: Sequence[Array], seed: int, tolerance: Tolerance) -> None:
    """Raise unless the gradients beside the inputs belong to the function, and to one function.

    With g+ and g- the gradients at x + eps v and x - eps v,
        L(x + eps v) - L(x - eps v) = eps <v, g+ + g->      the trapezoidal rule
        H v = (g+ - g-) / (2 eps)                           the matrix H of second derivatives, times v
    and H is symmetric: <u, H v> = <v, H u> for a second direction u.
    """
    rng = np.random.default_rng([seed, 2])
    u = [rng.uniform(0.5, 1.5, d.shape) * rng.choice([-1.0, 1.0], d.shape) for d in v]
    eps = tolerance.eps

    def along(direction: Sequence[Array]) -> list[Array]:
        with restored(problem) as start:
            ends = []
            for step in (eps, -eps):
                values_at(problem, start, direction, step)
                ends.append(problem.gradients())
        above, below = ends
        change = weigh(problem, difference(above.outputs, below.outputs)) / (2 * eps)
        mean = [(a + b) / 2 for a, b in zip(above.grads, below.grads, strict=True)]
        allowed = 10 * tolerance.of(inner(map(np.abs, direction), map(np.abs, mean))) + rounding / eps
        if not abs(inner(direction, mean) - change) <= allowed:
            raise GradcheckError(
                f"the gradient is right at the inputs, but wrong beside them: {eps} away, along a random direction, "
                f"backward gives {inner(direction, mean)}, finite differences give {change}"
            )
        return [(a - b) / (2 * eps) for a, b in zip(above.grads, below.grads, strict=True)]

    rounding = rounding_of(problem, problem.values())
    hv, hu = along(v), along(u)
    left, right = inner(u, hv), inner(v, hu)
    size = inner(map(np.abs, u), map(np.abs, hv)) + inner(map(np.abs, v), map(np.abs, hu))
    gradient = problem.gradients().grads
    allowed = 10 * tolerance.of(size) + ROUNDING * inner(map(np.abs, v), map(np.abs, gradient)) / eps
    if not abs(left - right) <= allowed:
        raise GradcheckError(
            f"the second derivatives are not symmetric, so backward is not the gradient of one function around the "
            f"inputs: for random u and v, expected <u, H v> = <v, H u>, got {left} and {right}"
        )


def inner(a: Iterable[Array], b: Iterable[Array]) -> float:
    return float(sum(np.sum(x * y) for x, y in zip(a, b, strict=True)))
