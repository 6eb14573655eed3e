"""Is a backward pass right? Compare it with finite differences, which use only the forward.

For a function f and a random direction u, of the shape of its output, L = sum(u f(x)) is a number. Its derivative with
respect to an element x_i is

    (L(x_i + eps) - L(x_i - eps)) / (2 eps)         with an error of order eps^2

It must equal what backward(u) leaves in x.grad. The direction is random because all ones would prove too little: with
ones the gradient of softmax, for example, is zero, and a wrong sign or factor would not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..autograd import describe
from ..modes import no_grad
from ..tensor import Tensor


class GradcheckError(AssertionError):
    """A backward pass does not agree with finite differences. The message shows both gradients."""


def gradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> bool:
    """Check the gradient of `fn` for every element of every floating input. Returns True or raises `GradcheckError`.

    fn: takes one argument for each input and returns a tensor or several. It must compute the same result every time:
        set the seed inside it if it draws random numbers.
    inputs: a tensor, an array, or a sequence of them. Floating inputs are checked, as float64 copies; others are passed
        on unchanged.
    atol, rtol: two gradients agree where |analytic - numeric| <= atol + rtol |numeric|.
    """
    largest_error(fn, inputs, eps, atol, rtol, seed)
    return True


def largest_error(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> float:
    """Like `gradcheck`, but returns the largest |analytic - numeric| / max(1, |numeric|)."""
    checked, u, loss = _prepare(fn, inputs, seed)
    _backward(fn, checked, u)
    worst = 0.0
    for i, x in enumerate(checked):
        if not (isinstance(x, Tensor) and x.requires_grad):
            continue
        numeric = np.empty_like(x.data)
        for place in np.ndindex(x.shape):
            before = x.data[place]
            x.data[place] = before + eps
            above = loss()
            x.data[place] = before - eps
            below = loss()
            x.data[place] = before
            numeric[place] = (above - below) / (2 * eps)
        analytic: Any = np.zeros_like(x.data) if x.grad is None else x.grad
        error = np.abs(analytic - numeric)
        if not np.all(error <= atol + rtol * np.abs(numeric)):  # `not all`, so that NaN fails
            raise GradcheckError(
                f"the gradient of input {i}, of shape {x.shape}, is wrong (largest difference {np.max(error):.3g})\n"
                f"backward gives\n{analytic}\nfinite differences give\n{numeric}"
            )
        worst = max(worst, float(np.max(error / np.maximum(1, np.abs(numeric)), initial=0)))
    return worst


def gradcheck_directional(
    fn: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    seed: int = 0,
) -> bool:
    """Check the gradient along one random direction d of all floating inputs at once, with two forwards at any size.

    The sum of d x.grad must equal (L(x + eps d) - L(x - eps d)) / (2 eps). Returns True or raises `GradcheckError`.
    float64 tensors that require gradients, such as a model's parameters, are not copied: fn may also use them directly.
    """
    checked, u, loss = _prepare(fn, inputs, seed, copy=False)
    _backward(fn, checked, u)
    rng = np.random.default_rng(seed + 1)
    xs = [x for x in checked if isinstance(x, Tensor) and x.requires_grad]
    before = [x.data.copy() for x in xs]
    directions = [rng.standard_normal(x.shape) for x in xs]

    def loss_at(distance: float) -> float:
        for x, start, direction in zip(xs, before, directions, strict=True):
            x.data[...] = start + distance * direction
        return loss()

    numeric = (loss_at(eps) - loss_at(-eps)) / (2 * eps)
    loss_at(0)
    analytic = sum(float(np.sum(d * x.grad)) for x, d in zip(xs, directions, strict=True) if x.grad is not None)
    if not abs(analytic - numeric) <= atol + rtol * abs(numeric):
        raise GradcheckError(f"along a random direction, backward gives {analytic}, finite differences give {numeric}")
    return True


def _prepare(fn: Callable[..., Any], inputs: Any, seed: int, copy: bool = True) -> tuple[list[Any], list[Any], Any]:
    """The inputs in float64, a random direction u for each output, and a function that computes the number L.

    Raises if no input is floating, and if the function changes an input.
    """
    given: Sequence[Any] = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    checked: list[Any] = []
    for x in given:
        array = x.numpy() if isinstance(x, Tensor) else np.asarray(x)
        if array.dtype.kind != "f":
            checked.append(x)
        elif not copy and isinstance(x, Tensor) and x.requires_grad and x.dtype == np.float64:
            x.zero_grad()
            checked.append(x)
        else:  # a copy with the strides of the original, so that unusual memory layouts are checked too
            copied: Any = np.empty_like(array, np.float64) if copy else array.astype(np.float64)
            copied[...] = array
            checked.append(Tensor(copied, requires_grad=True))
    if not any(isinstance(x, Tensor) and x.requires_grad for x in checked):
        raise ValueError(
            f"gradcheck: expected at least one floating input, since only floating inputs have gradients; "
            f"got {', '.join(map(describe, given)) or 'none'}"
        )
    rng = np.random.default_rng(seed)
    before: list[Any] = [x.data.copy() if isinstance(x, Tensor) else None for x in checked]
    with no_grad():
        u = [rng.standard_normal(y.shape) for y in _outputs(fn(*checked))]
    for i, (x, original) in enumerate(zip(checked, before, strict=True)):
        if isinstance(x, Tensor) and not np.array_equal(x.data, original, equal_nan=x.dtype.kind == "f"):
            raise GradcheckError(f"the function changed its input {i} in place")

    def loss() -> float:
        with no_grad():
            return sum(float(np.sum(d * y.numpy())) for d, y in zip(u, _outputs(fn(*checked)), strict=True))

    return checked, u, loss


def _backward(fn: Callable[..., Any], checked: list[Any], u: list[Any]) -> None:
    """Run forward and backward once. Raises if a gradient and its input differ in shape or dtype."""
    outputs = _outputs(fn(*checked))
    total = sum((y * Tensor(d)).sum() for y, d in zip(outputs, u, strict=True))
    if isinstance(total, Tensor) and total.requires_grad:
        total.backward()
    for i, x in enumerate(checked):
        if isinstance(x, Tensor) and x.grad is not None and (x.grad.shape != x.shape or x.grad.dtype != x.dtype):
            raise GradcheckError(f"the gradient of input {i}: expected {describe(x)}, got {describe(x.grad)}")


def _outputs(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]
