"""Is a backward right? It is called on raw arrays, and its result is compared with central finite differences."""

from __future__ import annotations

import contextlib
import io
import math
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from gpt.course.own_ops import NOT_WRITTEN, RIGHT, WRONG, load_module, load_operations
from gpt.errors import ConfigError
from minigrad.autograd import Context

from .diagnosis import diagnose
from .exercises import Case, Exercise
from .verdict import Grade, Mistake, NotWritten, WrongGradient


class Functions(NamedTuple):
    """An exercise of plain functions. `check` takes the module, and raises `Mistake` or `NotWritten` if they fail."""

    file: str
    name: str
    functions: tuple[str, ...]
    check: Callable[[ModuleType], None]


def grade_file(exercise: Exercise | Functions, folder: Path) -> Grade:
    """The grade of the exercise's file in `folder`. Whatever the file does, it gets a grade."""
    path = folder / exercise.file
    if not path.exists():
        return Grade(WRONG, f"there is no {exercise.file} in {folder}")
    try:
        if isinstance(exercise, Functions):
            return grade_functions(exercise, load_module(path))
        found = load_operations(path)
    except ConfigError as error:
        return Grade(WRONG, str(error))
    except SystemExit:
        return Grade(WRONG, f"{path}: ends the program when it is imported")
    own = next((operation.own for operation in found if operation.engine is exercise.operation), None)
    if own is None:
        return Grade(WRONG, f"{exercise.file} has no class {exercise.name}")
    return grade(exercise, own)


def grade_functions(exercise: Functions, own: ModuleType) -> Grade:
    """The grade of the functions in a module."""
    for name in exercise.functions:
        if not callable(getattr(own, name, None)):
            return Grade(WRONG, f"{exercise.file} has no function {name}")
    try:
        exercise.check(own)
    except NotWritten:
        return Grade(NOT_WRITTEN, f"open {exercise.file}")
    except Mistake as mistake:
        return Grade(WRONG, str(mistake))
    return Grade(RIGHT)


def grade(exercise: Exercise, own: type[mg.Function]) -> Grade:
    """The grade of a class. The cases go from simple to tricky; the first that fails gives the message."""
    for case in exercise.cases:
        try:
            check(exercise, case, own)
        except NotWritten:
            return Grade(NOT_WRITTEN, f"open {exercise.file}")
        except Mistake as mistake:
            return Grade(WRONG, f"{case.what}: {mistake}", mistake.wrong)
    return Grade(RIGHT)


def check(exercise: Exercise, case: Case, own: type[mg.Function]) -> None:
    """Raise `Mistake` unless forward and backward are right in float64, and stay in float32 for float32 arguments.

    Only what the student's code prints in the first forward and the first backward is shown.
    """
    names, values = list(case.arguments), list(case.arguments.values())
    floating = [i for i, value in enumerate(values) if is_floating(value)]
    with explained("forward", exercise, names, values):
        ctx, y = forward(own, values)
    _, engines = forward(exercise.operation, values)
    if not isinstance(y, (np.ndarray, np.number, float)):
        raise Mistake(f"forward returns {a_or_an(y)}; expected a NumPy array; change only backward")
    if np.shape(y) != np.shape(engines) or not np.allclose(y, engines, rtol=1e-10, atol=1e-12, equal_nan=True):
        raise Mistake("forward gives a different result than the engine's; change only backward")
    g = np.asarray(np.random.default_rng(1).standard_normal(np.shape(y)))
    gradients = backward(exercise, own, ctx, g, names, values)
    for i in floating:
        with quiet():
            right = numeric_gradient(own, values, i, g)
        if gradients[i] is None:
            raise Mistake(f"backward returns None for {names[i]}; expected dL/d{names[i]}")
        given = np.asarray(gradients[i])
        if given.shape != right.shape or not np.allclose(given, right, rtol=1e-5, atol=1e-7):
            title = f"{exercise.name}, {case.what}: dL/d{names[i]}, {names[i]} {np.shape(values[i])}"
            message = diagnose(exercise, case, names[i], given, right, g)
            raise Mistake(message, WrongGradient(title, given, right))

    values = [value.astype(np.float32) if is_floating(value) else value for value in values]
    with quiet(), explained("forward", exercise, names, values):
        ctx, _ = forward(own, values)
    with quiet():
        gradients = backward(exercise, own, ctx, g.astype(np.float32), names, values)
    for i in floating:
        dtype = np.asarray(gradients[i]).dtype
        if dtype != np.float32:
            raise Mistake(
                f"dL/d{names[i]} is {dtype} although all inputs are float32: it is computed with an array or a NumPy "
                f"number of another dtype; Python numbers are fine"
            )


def is_floating(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def a_or_an(value: Any) -> str:
    """The type of a value, with its article."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}" if value is not None else "None"


def quiet() -> contextlib.redirect_stdout:
    """A context in which nothing is printed."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def read_only(values: list[Any]) -> Iterator[None]:
    """A context in which a write to one of the arrays raises an error."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    writeable = [array.flags.writeable for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    try:
        yield
    finally:
        for array, flag in zip(arrays, writeable, strict=True):
            array.flags.writeable = flag


@contextlib.contextmanager
def explained(
    method: str, exercise: Exercise, names: list[str], values: list[Any], g: Any = None, saved: tuple[Any, ...] = ()
) -> Iterator[None]:
    """A context in which an error of the student's code becomes a `Mistake` that explains it.

    Arguments and saved arrays are read-only inside.
    """
    try:
        with read_only([g, *values, *saved]), np.errstate(all="ignore"):  # NaN and infinity are reported later
            yield
    except (Exception, SystemExit) as error:
        if method == "backward" and isinstance(error, NotImplementedError):
            raise NotWritten from error
        message = explain_error(error, method, exercise, g, names, values)
        raise Mistake(message if method == "backward" else f"forward fails; change only backward. {message}") from error


def forward(own: type[mg.Function], values: list[Any]) -> tuple[Context, Any]:
    """The context and the result of a forward, which always draws the same random numbers."""
    mg.manual_seed(0)
    ctx = Context(own, tuple(map(is_floating, values)))
    return ctx, own.forward(ctx, *values)


def backward(
    exercise: Exercise, own: type[mg.Function], ctx: Context, g: Any, names: list[str], values: list[Any]
) -> list[Any]:
    """What backward returns, with one entry for each argument of forward."""
    with explained("backward", exercise, names, values, g, ctx.saved):
        result = own.backward(ctx, g)
    result = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(result) == 1 and result[0] is None:
        raise Mistake("backward returns None; is its `return` missing?")
    for each in result:
        if each is not None and not isinstance(each, (np.ndarray, np.number)):
            raise Mistake(f"backward returns {a_or_an(each)} as a gradient; expected a NumPy array")
        if each is not None and each.dtype.kind not in "biuf":
            raise Mistake(f"backward returns an array of dtype {each.dtype} as a gradient; expected real numbers")
    floating = [i for i, value in enumerate(values) if is_floating(value)]
    if len(result) == len(values):
        return result
    if len(result) == len(floating):  # one for each array that can have a gradient, as the engine allows
        return [result[floating.index(i)] if i in floating else None for i in range(len(values))]
    raise Mistake(
        f"backward returns {len(result)} gradient{'s' * (len(result) != 1)}; expected {len(values)}, one for each of "
        f"{', '.join(names)}, with None for those that have no gradient"
    )


def explain_error(
    error: BaseException, method: str, exercise: Exercise, g: Any, names: list[str], values: list[Any]
) -> str:
    """Describe an exception that forward or backward raised: where, what, the shapes involved, the likely reason."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.name == method or Path(frame.filename).name == exercise.file:
            place = frame
    shapes = [f"{name} {value.shape}" for name, value in zip(names, values, strict=True) if is_floating(value)]
    said, line, start = str(error), place.line or "", f"line {place.lineno}, {place.line}"
    if "read-only" in said:
        return (
            f"{start}: writes to g, to an argument or to a saved array; these are also used elsewhere, so make a new "
            f"array"
        )
    message = (
        f"{start}: {type(error).__name__}: {said}; {', '.join([f'g is {np.shape(g)}'] * (g is not None) + shapes)}"
    )
    return ". ".join(filter(None, [message, likely_reason(said, line, exercise, values)]))


def likely_reason(said: str, line: str, exercise: Exercise, values: list[Any]) -> str:
    """Why NumPy could not compute a line; empty if there is no guess."""
    if "core dimension" in said or "enough dimensions" in said:
        if not exercise.has_products:
            return "@ is the matrix product; write * to multiply element by element"
        if ".T" in line and any(np.ndim(value) > 2 for value in values):
            return (
                ".T reverses all axes, also the leading ones; swapaxes(-1, -2) exchanges the last two, and after "
                "reshape(-1, …) there are only two"
            )
        return "A transpose is missing, or the factors of a product are in the wrong order"
    if "broadcast together" in said:
        shapes = shapes_in(said)
        if (axis := missing_axis(shapes)) is not None:
            return (
                f"The operand of shape {min(shapes, key=len)} lacks axis {axis}. If a sum or a mean lost it, "
                f"keepdims=True keeps it, with size 1; to add it, write reshape(…) or [..., None]"
            )
        if exercise.has_products:
            return "* multiplies element by element; write @ for a matrix product"
    if found := re.search(r"cannot reshape array of size (\d+)", said):
        size, wanted = int(found[1]), math.prod(shapes_in(said)[-1])
        if size > wanted and size % wanted == 0:
            return (
                f"There are {size // wanted} times as many elements: sum over the axes that were copied (sum_to) first"
            )
    return ""


def shapes_in(said: str) -> list[tuple[int, ...]]:
    """The shapes in a message of NumPy's."""
    return [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"\(([\d,]*)\)", said)]


def missing_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """The axis that only one of two shapes has, if this is their only difference."""
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
