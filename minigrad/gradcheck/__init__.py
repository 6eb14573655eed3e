"""Is a backward pass right? Compare it with derivatives of the forward, and try it in every way that training may.

For a function f and a random direction u, of the shape of its output, L = sum(u f(x)) is a number. Its derivative with
respect to an element x_i is found from the forward alone (numeric.py):

    (L(x_i + eps) - L(x_i - eps)) / (2 eps)         with an error of order eps^2
    Im L(x_i + 1e-20 i) / 1e-20                     with an error near 1e-16, where f is analytic

It must equal what backward(u) leaves in x.grad. The direction is random because all ones would prove too little: with
ones the gradient of softmax, for example, is zero, and a wrong sign or factor would not show.

Then every backward on the tape, and the function as a whole, is called in other ways that must not matter: twice, with
read-only arrays, in other memory layouts, for one output or one input alone (conduct.py).
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..viz.figures import NO_FIGURE, draw_comparison
from .conduct import check_inputs, check_neighbors, check_repeats, examine
from .numeric import (
    EACH_UP_TO,
    Tolerance,
    check_step_and_kinks,
    derivatives,
    elements_of,
    groups_of,
    random_directions,
    slope_along,
)
from .problem import GradcheckError, Gradients, Problem, prepare


def gradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
    show: bool | str | PathLike[str] = False,
) -> bool:
    """Check the gradient of `fn` for every element of every floating input. Returns True or raises `GradcheckError`.

    fn: takes one argument for each input and returns a tensor or several. It must compute the same result every time:
        set the seed inside it if it draws random numbers.
    inputs: a tensor, an array, or a sequence of them. Floating inputs are checked, as float64 copies; others are passed
        on unchanged. With more than 10,000 elements, 100 groups of elements are checked in each input.
    eps: the step of finite differences. The inputs must be farther than this from every kink of fn.
    atol, rtol: two gradients agree where |analytic - numeric| <= atol + rtol |numeric|.
    show: draw a gradient that is wrong beside the right one, as heat maps, to gradcheck.png or to the path given. The
        error says where the picture is. It needs matplotlib, and an input of at most 10,000 elements.
    """
    largest_error(fn, inputs, eps, atol, rtol, seed, show)
    return True


def largest_error(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
    show: bool | str | PathLike[str] = False,
) -> float:
    """Like `gradcheck`, but returns the largest |analytic - numeric| / max(1, |numeric|)."""
    problem, tolerance = prepare(fn, inputs, seed), Tolerance(eps, atol, rtol)
    path = Path("gradcheck.png" if isinstance(show, bool) else show)
    directions = random_directions(problem, seed)
    found = check_repeats(problem, directions, eps)
    check_step_and_kinks(problem, directions, tolerance)
    groups = groups_of(problem, directions)
    analytic = np.array([np.sum(g.weights * found.grads[g.tensor].flat[g.places]) for g in groups])
    numeric = derivatives(problem, groups, analytic, directions, tolerance)
    error = np.abs(analytic - numeric)
    for k, (i, x) in enumerate(zip(problem.positions, problem.tensors, strict=True)):
        mine = np.array([g.tensor == k for g in groups], bool)
        if not np.all(error[mine] <= tolerance.of(numeric[mine])):  # `not all`, so that NaN fails
            shape = x.shape if np.sum(mine) == x.size else (-1,)
            raise GradcheckError(
                f"the gradient of input {i}, of shape {x.shape}, is wrong "
                f"(largest difference {np.max(error[mine]):.3g})\nbackward gives\n{analytic[mine].reshape(shape)}\n"
                f"finite differences give\n{numeric[mine].reshape(shape)}"
                + (f"\npicture: {picture(problem, found, k, directions, tolerance, path)}" if show else "")
            )
    problem.gradients(run=examine)
    check_inputs(problem, found)
    check_neighbors(problem, directions, seed, tolerance)
    return float(np.max(error / np.maximum(1, np.abs(numeric)), initial=0))


def picture(
    problem: Problem, found: Gradients, k: int, directions: Any, tolerance: Tolerance, path: Path
) -> Path | str:
    """Draw the gradient of tensor k beside the numeric one. Returns the path, or why there is no picture."""
    x, i = problem.tensors[k], problem.positions[k]
    if x.size > EACH_UP_TO:
        return f"none: input {i} has {x.size:,} elements, more than {EACH_UP_TO:,}; check a smaller input"
    numeric = derivatives(problem, elements_of(k, x.size), found.grads[k].ravel(), directions, tolerance)
    fn = getattr(problem.fn, "__self__", problem.fn)  # of MyOperation.apply, the class
    name = getattr(fn, "__name__", type(fn).__name__).replace("<lambda>", "fn")
    title = f"{name}: gradient of input {i}, of shape {x.shape}"
    try:
        return draw_comparison(title, found.grads[k], numeric.reshape(x.shape), path) or NO_FIGURE
    except OSError as error:
        return f"none: {error}"


def gradcheck_directional(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> bool:
    """Check the gradient along one random direction d of all floating inputs at once, with few forwards at any size.

    The sum of d x.grad must equal (L(x + eps d) - L(x - eps d)) / (2 eps). Returns True or raises `GradcheckError`.
    float64 tensors that require gradients, such as a model's parameters, are not copied: fn may also use them directly.
    """
    problem, tolerance = prepare(fn, inputs, seed, copy=False), Tolerance(eps, atol, rtol)
    rng = np.random.default_rng(seed + 1)
    directions = [rng.standard_normal(x.shape) for x in problem.tensors]
    found = problem.gradients()
    analytic = sum(float(np.sum(d * g)) for d, g in zip(directions, found.grads, strict=True))
    numeric = slope_along(problem, directions, eps)
    if not abs(analytic - numeric) <= tolerance.of(numeric):
        raise GradcheckError(f"along a random direction, backward gives {analytic}, finite differences give {numeric}")
    grads = [x.grad for x in problem.tensors]
    problem.gradients(run=examine)
    for x, grad in zip(problem.tensors, grads, strict=True):
        x.grad = grad
    return True
