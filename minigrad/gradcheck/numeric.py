"""Derivatives from the forward alone: by a complex step where the forward is analytic, otherwise by differences.

    central differences    (L(x + eps) - L(x - eps)) / (2 eps)     error eps^2, and rounding of L divided by eps
    a complex step         Im L(x + i h) / h                       error h^2 and no rounding, for h = 1e-20

(Squire and Trapp, 1998.) A forward that takes no complex numbers, or takes the absolute value of one, is not analytic:
then the complex step fails, or disagrees with a difference along a random direction, and differences are used.
Differences are taken output by output before they are summed: large outputs that do not change cancel exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from .problem import GradcheckError, Problem

COMPLEX_STEP = 1e-20
EACH_UP_TO = 10_000  # elements; with more, they are checked in groups, each along a random direction
GROUPS = 100
ROUNDING = 64 * np.finfo(np.float64).eps


class Tolerance(NamedTuple):
    """The step of a difference, and what two derivatives may differ by."""

    eps: float
    atol: float
    rtol: float

    def of(self, derivative: Any) -> Any:
        return self.atol + self.rtol * np.abs(derivative)


def random_directions(problem: Problem, seed: int) -> list[Array]:
    """A direction for each tensor. No element is near 0, so that a kink in one element shows."""
    rng = np.random.default_rng([seed, 1])
    return [rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.5, x.shape) for x in problem.tensors]


@contextmanager
def restored(problem: Problem) -> Iterator[list[Array]]:
    """Inside, the tensors may be moved; afterwards they hold what they held."""
    arrays = [x.data for x in problem.tensors]
    before = [array.copy() for array in arrays]
    try:
        yield before
    finally:
        for x, array, original in zip(problem.tensors, arrays, before, strict=True):
            x.data = array
            array[...] = original


def values_at(problem: Problem, start: Sequence[Array], directions: Sequence[Array], step: float) -> list[Array]:
    """The outputs at start + step * directions. The tensors stay there."""
    for x, origin, direction in zip(problem.tensors, start, directions, strict=True):
        x.data[...] = origin + step * direction
    return problem.values()


def difference(above: Sequence[Array], below: Sequence[Array]) -> list[Array]:
    """above - below for each output. Equal infinities have not changed."""
    with np.errstate(invalid="ignore"):
        return [np.where(a == b, 0, a - b) for a, b in zip(above, below, strict=True)]


def weigh(problem: Problem, changes: Sequence[Array]) -> float:
    """The change of L, from the changes of the outputs."""
    return float(sum(np.sum(d * change) for d, change in zip(problem.u, changes, strict=True)))


def slope_along(problem: Problem, directions: Sequence[Array], eps: float) -> float:
    """(L(x + eps d) - L(x - eps d)) / (2 eps) for the directions d."""
    with restored(problem) as start:
        above = values_at(problem, start, directions, eps)
        below = values_at(problem, start, directions, -eps)
    return weigh(problem, difference(above, below)) / (2 * eps)


def rounding_of(problem: Problem, values: Sequence[Array]) -> float:
    """How much rounding may change L."""
    finite = [np.where(np.isfinite(y), y, 0) for y in values]
    return ROUNDING * float(sum(np.sum(np.abs(d * y)) for d, y in zip(problem.u, finite, strict=True)))


# Is there anything to differentiate?


def check_step_and_kinks(problem: Problem, directions: Sequence[Array], tolerance: Tolerance) -> None:
    """Raise if eps is lost to rounding beside an input, or if an output is not smooth at the inputs."""
    for i, x in zip(problem.positions, problem.tensors, strict=True):
        lost = (x.data + tolerance.eps == x.data) | (x.data - tolerance.eps == x.data)
        if np.any(lost):
            place = first(lost)
            raise GradcheckError(
                f"input {i} at {place} is {x.data[place]}: the step eps = {tolerance.eps} is lost to rounding "
                f"beside it; give a larger eps"
            )
    if find_kink(problem, directions, tolerance):
        one_at_a_time = single_elements(problem) if sum(x.size for x in problem.tensors) <= EACH_UP_TO else []
        found = ((where, find_kink(problem, direction, tolerance)) for where, direction in one_at_a_time)
        where, kink = next(((w, k) for w, k in found if k), ("the inputs", find_kink(problem, directions, tolerance)))
        raise GradcheckError(
            f"not smooth at {where}: {kink}. Either the inputs are at a kink or a jump, or "
            f"eps = {tolerance.eps} is too large or too small"
        )


def single_elements(problem: Problem) -> Iterator[tuple[str, list[Array]]]:
    for k, i in enumerate(problem.positions):
        for place in np.ndindex(problem.tensors[k].shape):
            direction = [np.zeros(x.shape) for x in problem.tensors]
            direction[k][place] = 1
            yield f"input {i}, element {place}", direction


def find_kink(problem: Problem, directions: Sequence[Array], tolerance: Tolerance) -> str:
    """What shows that an output is not smooth along the directions; empty if nothing does.

    The slopes on both sides of a smooth point differ by about eps f'', so a smaller step shrinks their difference; at a
    kink it stays. Beside a kink, central differences with two steps disagree.
    """
    narrow_eps = tolerance.eps / 10
    with restored(problem) as start:
        wide, narrow = (
            [values_at(problem, start, directions, distance) for distance in (step, 0.0, -step)]
            for step in (tolerance.eps, narrow_eps)
        )
    sides = [
        [np.stack([a, b]) / step for a, b in zip(difference(above, here), difference(here, below), strict=True)]
        for (above, here, below), step in ((wide, tolerance.eps), (narrow, narrow_eps))
    ]
    inputs = max((float(np.max(np.abs(x), initial=0)) for x in start), default=0)
    for j, (two, two_narrow) in enumerate(zip(*sides, strict=True)):
        if not np.all(np.isfinite(two)):
            continue  # the comparison of the gradients reports it
        slope, jump = np.abs(two).max(initial=0), np.abs(two[0] - two[1])
        size = max(slope * inputs, np.max(np.abs(wide[1][j]), initial=0, where=np.isfinite(wide[1][j])))
        allowed = tolerance.of(slope) + ROUNDING * size / narrow_eps
        ratio = np.abs(two_narrow[0] - two_narrow[1]) / np.maximum(jump, 1e-300)
        at = (jump > allowed) & (ratio > 0.5) & (ratio < 2)
        beside = np.abs(two.mean(0) - two_narrow.mean(0)) > allowed
        if np.any(at):
            place = first(at)
            right, left = two[:, *place]
            return f"the slope of output {j} at {place} is {left:.6g} on one side and {right:.6g} on the other"
        if np.any(beside):
            place = first(beside)
            return (
                f"output {j} at {place} has the slope {two.mean(0)[place]:.6g} with the step {tolerance.eps} and "
                f"{two_narrow.mean(0)[place]:.6g} with {narrow_eps}"
            )
    return ""


def first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


# The derivatives


class Group(NamedTuple):
    """Elements of one tensor that are moved together: usually a single one, with weight 1."""

    tensor: int
    places: Array  # in x.flat
    weights: Array


def groups_of(problem: Problem, directions: Sequence[Array]) -> list[Group]:
    sizes = [x.size for x in problem.tensors]
    if sum(sizes) <= EACH_UP_TO:
        return [group for k, size in enumerate(sizes) for group in elements_of(k, size)]
    places = [(k, np.arange(size)[i::GROUPS]) for k, size in enumerate(sizes) for i in range(min(GROUPS, size))]
    return [Group(k, part, directions[k].flat[part]) for k, part in places]


def elements_of(tensor: int, size: int) -> list[Group]:
    """Each element of a tensor by itself."""
    return [Group(tensor, np.array([i]), np.ones(1)) for i in range(size)]


def derivatives(
    problem: Problem, groups: Sequence[Group], expected: Array, directions: Sequence[Array], tolerance: Tolerance
) -> Array:
    """dL along each group. Where `expected` differs only by rounding, a difference with a larger step decides."""
    by_complex_step = _by_complex_step(problem, groups)
    if by_complex_step is not None and _agrees(problem, groups, by_complex_step, directions, tolerance):
        return by_complex_step
    found = np.empty(len(groups))
    with restored(problem):
        noise = rounding_of(problem, problem.values())
        for i, group in enumerate(groups):
            found[i] = _central(problem, group, tolerance.eps)
            allowed = tolerance.of(found[i])
            if abs(found[i] - expected[i]) > allowed and noise / tolerance.eps > allowed:
                found[i] = _central(problem, group, 2 * noise / tolerance.of(expected[i]))
    return found


def _central(problem: Problem, group: Group, step: float) -> float:
    """(L(x + step) - L(x - step)) / (2 step), divided by the step that was really made: x + step is rounded."""
    flat = problem.tensors[group.tensor].data.flat
    before = flat[group.places]
    flat[group.places] = before + step * group.weights
    above, high = problem.values(), flat[group.places]
    flat[group.places] = before - step * group.weights
    below, low = problem.values(), flat[group.places]
    flat[group.places] = before
    realised = np.linalg.norm(high - low) / np.linalg.norm(group.weights)
    return weigh(problem, difference(above, below)) / float(realised)


def _by_complex_step(problem: Problem, groups: Sequence[Group]) -> Array | None:
    """The derivatives by a complex step, or None if the forward cannot take one."""
    found = np.empty(len(groups))
    with restored(problem), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        for x in problem.tensors:
            x.data = x.data.astype(np.complex128)
        for i, group in enumerate(groups):
            flat = problem.tensors[group.tensor].data.flat
            before = flat[group.places]
            flat[group.places] = before + 1j * COMPLEX_STEP * group.weights
            try:
                values = problem.values()
            except Exception:  # whatever a forward raises that does not expect complex numbers
                return None
            flat[group.places] = before
            if any(y.dtype.kind != "c" for y in values):
                return None
            found[i] = weigh(problem, [y.imag for y in values]) / COMPLEX_STEP
    return found


def _agrees(
    problem: Problem, groups: Sequence[Group], found: Array, directions: Sequence[Array], tolerance: Tolerance
) -> bool:
    """Does the complex step agree with a central difference along the directions, in which all groups move at once?"""
    scales = [directions[group.tensor].flat[group.places[0]] / group.weights[0] for group in groups]
    by_difference = slope_along(problem, directions, tolerance.eps)
    allowed = tolerance.atol + tolerance.rtol * np.sum(np.abs(found * scales))
    return bool(
        abs(np.sum(found * scales) - by_difference) <= allowed + rounding_of(problem, problem.values()) / tolerance.eps
    )
