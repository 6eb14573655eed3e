"""Is a backward right? It is called on raw arrays, and its result is compared with central finite differences."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from gpt.course.own_ops import NOT_WRITTEN, RIGHT, WRONG, load_operations
from gpt.errors import ConfigError
from minigrad.autograd import Context

from .diagnosis import diagnose
from .exercises import Case, Exercise


class Grade(NamedTuple):
    """The state of an exercise, RIGHT, WRONG or NOT_WRITTEN, and a message about it."""

    state: str
    message: str = ""


class Mistake(Exception):
    """Something is wrong; the message says what."""


def grade_file(exercise: Exercise, folder: Path) -> Grade:
    """The grade of the class in the exercise's file in `folder`."""
    path = folder / exercise.file
    if not path.exists():
        return Grade(WRONG, f"there is no {exercise.file} in {folder}")
    try:
        found = load_operations(path)
    except ConfigError as error:
        return Grade(WRONG, str(error))
    own = next((operation.own for operation in found if operation.engine is exercise.operation), None)
    if own is None:
        return Grade(WRONG, f"{exercise.file} has no class {exercise.name}")
    return grade(exercise, own)


def grade(exercise: Exercise, own: type[mg.Function]) -> Grade:
    """The grade of a class. The cases go from simple to tricky; the first that fails gives the message."""
    for case in exercise.cases:
        try:
            check(exercise, case, own)
        except NotImplementedError:
            return Grade(NOT_WRITTEN, f"open {exercise.file}")
        except Mistake as mistake:
            return Grade(WRONG, f"{case.what}: {mistake}")
    return Grade(RIGHT)


def check(exercise: Exercise, case: Case, own: type[mg.Function]) -> None:
    """Raise `Mistake` unless forward and backward are right in float64, and stay in float32 for float32 arguments."""
    names, values = list(case.arguments), list(case.arguments.values())
    floating = [i for i, value in enumerate(values) if is_floating(value)]
    ctx, y = forward(own, values)
    _, engines = forward(exercise.operation, values)
    if np.shape(y) != np.shape(engines) or not np.allclose(y, engines, rtol=1e-10, atol=1e-12, equal_nan=True):
        raise Mistake("forward gives a different result than the engine's; change only backward")
    g = np.asarray(np.random.default_rng(1).standard_normal(np.shape(y)))
    gradients = backward(own, ctx, g, names, values)
    for i in floating:
        right = numeric_gradient(own, values, i, g)
        if gradients[i] is None:
            raise Mistake(f"backward returns None for {names[i]}; expected dL/d{names[i]}")
        given = np.asarray(gradients[i])
        if given.shape != right.shape or not np.allclose(given, right, rtol=1e-5, atol=1e-7):
            raise Mistake(diagnose(exercise, case, names[i], given, right, g))

    values = [value.astype(np.float32) if is_floating(value) else value for value in values]
    ctx, _ = forward(own, values)
    gradients = backward(own, ctx, g.astype(np.float32), names, values)
    for i in floating:
        dtype = np.asarray(gradients[i]).dtype
        if dtype != np.float32:
            raise Mistake(
                f"dL/d{names[i]} is {dtype} although all inputs are float32: it is computed with an array or a NumPy "
                f"number of another dtype; Python numbers are fine"
            )


def is_floating(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def forward(own: type[mg.Function], values: list[Any]) -> tuple[Context, Any]:
    """The context and the result of a forward, which always draws the same random numbers."""
    mg.manual_seed(0)
    ctx = Context(own, tuple(map(is_floating, values)))
    return ctx, own.forward(ctx, *values)


def backward(own: type[mg.Function], ctx: Context, g: Any, names: list[str], values: list[Any]) -> list[Any]:
    """What backward returns, with one entry for each argument of forward. It must not write to its inputs."""
    borrowed = [array for array in (g, *values, *ctx.saved) if isinstance(array, np.ndarray)]
    writeable = [array.flags.writeable for array in borrowed]
    for array in borrowed:
        array.flags.writeable = False
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are reported later
            result = own.backward(ctx, g)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Mistake(describe_error(error, g, names, values)) from error
    finally:
        for array, flag in zip(borrowed, writeable, strict=True):
            array.flags.writeable = flag
    result = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(values) > 1 and len(result) == 1 and result[0] is None:
        raise Mistake("backward returns None; is its `return` missing?")
    for each in result:
        if each is not None and not isinstance(each, (np.ndarray, np.number)):
            raise Mistake(f"backward returns a {type(each).__name__} as a gradient; expected a NumPy array")
    floating = [i for i, value in enumerate(values) if is_floating(value)]
    if len(result) == len(values):
        return result
    if len(result) == len(floating):  # one for each array that can have a gradient, as the engine allows
        return [result[floating.index(i)] if i in floating else None for i in range(len(values))]
    raise Mistake(
        f"backward returns {len(result)} gradient{'s' * (len(result) != 1)}; expected {len(values)}, one for each of "
        f"{', '.join(names)}, with None for those that have no gradient"
    )


def describe_error(error: Exception, g: Any, names: list[str], values: list[Any]) -> str:
    """Describe an exception that backward raised: where, what, the shapes involved, and the likely reason."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.name == "backward" or Path(frame.filename).name.startswith("ex"):
            place = frame
    shapes = ", ".join(f"{name} {value.shape}" for name, value in zip(names, values, strict=True) if is_floating(value))
    said = str(error)
    message = f"line {place.lineno}, {place.line}: {type(error).__name__}: {said}; g is {np.shape(g)}, {shapes}"
    if "read-only" in said:
        return (
            f"line {place.lineno}, {place.line}: writes to g, to an argument or to a saved array; these are also used "
            f"elsewhere, so make a new array"
        )
    if "broadcast together" in said and (lost := lost_axis(said)) is not None:
        return f"{message}. Does a sum or a mean lose axis {lost}? With keepdims=True the axis stays, with size 1"
    if "core dimension" in said:
        return f"{message}. A transpose is missing, or the factors of a product are in the wrong order"
    return message


def lost_axis(said: str) -> int | None:
    """The axis that only one of the two shapes in NumPy's message has, if this is their only difference."""
    shapes = [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"\(([\d,]*)\)", said)]
    if len(shapes) != 2:
        return None
    short, long = sorted(shapes, key=len)
    return next((i for i in range(len(long)) if long[:i] + long[i + 1 :] == short), None)


def numeric_gradient(own: type[mg.Function], values: list[Any], i: int, g: Any, eps: float = 1e-6) -> np.ndarray:
    """dL/d(argument i) for L = sum(g forward(…)), from the forward alone: (L(x + eps) - L(x - eps)) / (2 eps)."""
    x, gradient = values[i], np.empty_like(values[i])
    for place in np.ndindex(x.shape):
        losses = []
        for step in (eps, -eps):
            moved = x.copy()
            moved[place] += step
            losses.append(np.sum(g * forward(own, [*values[:i], moved, *values[i + 1 :]])[1]))
        gradient[place] = (losses[0] - losses[1]) / (2 * eps)
    return gradient
