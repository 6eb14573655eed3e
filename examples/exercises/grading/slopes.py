"""The check of exercise 0: the numeric derivative, and a table of pairs. This file contains the answers."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np

from .verdict import Mistake, mistakes_in

FILE = "ex00_slopes.py"


def same(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-7, atol=1e-9)


def check_slopes(own: ModuleType) -> None:
    """Raise `Mistake` or `NotWritten` unless all four functions are right."""
    check_derivative(own.derivative)
    check_gradient(own.gradient)
    check_count_pairs(own.count_pairs)
    check_probabilities(own.probabilities)


def call(function: Any, *arguments: Any) -> Any:
    """What the student's function returns: real numbers. The arrays and lists that it is given must not change."""
    before = copy.deepcopy(arguments)
    with mistakes_in(FILE), np.errstate(all="ignore"):
        result = function(*arguments)
    name = function.__name__
    for given, original in zip(arguments, before, strict=True):
        if isinstance(given, (np.ndarray, list)) and not np.allclose(given, original, rtol=0, atol=1e-9):
            raise Mistake(f"{name}: its argument has changed; work on a copy")
    if result is None:
        raise Mistake(f"{name} returns None; is its `return` missing?")
    try:
        array = np.asarray(result)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise Mistake(f"{name} returns {type(result).__name__} {result!r:.40}; expected real numbers")
    return array


def compare(what: str, given: Any, right: Any, known: dict[str, Any]) -> None:
    """Raise `Mistake` unless both arrays are equal. known: what each known mistake gives."""
    right = np.asarray(right)
    if same(given, right):
        return
    for message, wrong in known.items():
        if same(given, wrong):
            raise Mistake(f"{what}: {message}")
    if np.shape(given) != np.shape(right):
        raise Mistake(f"{what}: the result has the shape {np.shape(given)}; expected {np.shape(right)}")
    if not np.any(given):
        raise Mistake(f"{what}: the result is zero everywhere")
    place = tuple(int(i) for i in np.argwhere(~np.isclose(given, right, rtol=1e-7, atol=1e-9))[0])
    where = f" at {place}" if place else ""
    raise Mistake(f"{what}: got {given[place]:.6g}{where}; expected {right[place]:.6g}")


# The derivative


def quotients(above: Any, here: Any, below: Any, h: float) -> dict[str, Any]:
    """What known mistakes make of f(x + h), f(x) and f(x - h)."""
    return {
        "only the step from x to x + h is taken; also take the one from x - h": (above - here) / h,
        "only the step from x - h to x is taken; also take the one to x + h": (here - below) / h,
        "divided by h; from x - h to x + h it is 2h": (above - below) / h,
        "wrong sign; it is f(x + h) minus f(x - h)": (below - above) / (2 * h),
        "divided by 2, then multiplied by h; write / (2 * h)": (above - below) / 2 * h,
        "divided by 2; the distance is 2h": (above - below) / 2,
        "not divided by the distance, 2h": above - below,
    }


def check_derivative(derivative: Any) -> None:
    for what, f, x, h, slope in [
        ("x^3 at 2, with h = 0.5", lambda x: x**3, 2.0, 0.5, 12.0),
        ("e^x at 0.3, with h = 0.01", np.exp, 0.3, 0.01, np.exp(0.3)),
    ]:
        right = (f(x + h) - f(x - h)) / (2 * h)
        given = call(derivative, f, x, h)
        if not same(given, right) and np.isclose(given, slope, rtol=1e-6).all():
            raise Mistake(f"derivative of {what}: another step than h is used")
        compare(f"derivative of {what}", given, right, quotients(f(x + h), f(x), f(x - h), h))


# The gradient


def check_gradient(gradient: Any) -> None:
    weights = np.random.default_rng(0).standard_normal((2, 3))
    for what, x, factors in [
        ("of an array (3,)", np.array([1.0, -2.0, 0.5]), weights[0]),
        ("of an array (2, 3)", weights + 1, weights),
        ("of an array without axes", np.array(1.5), weights[0, 0]),
    ]:
        h = 0.25

        def f(x: Any, factors: Any = factors) -> float:
            return float(np.sum(factors * x**3) + np.sum(x) ** 2)

        def moved(x: Any, group: Any, step: float) -> Any:
            return np.where(group, x + step, x)

        def slopes(groups: Any, left: float = 0.0) -> Any:
            """The slopes if each of the groups moves at once, and stays moved by `left` afterwards."""
            now, result = x, []  # noqa: B023 - used at once
            for group in groups:
                result.append((f(moved(now, group, h)) - f(moved(now, group, -h))) / (2 * h))  # noqa: B023
                now = moved(now, group, left)
            return np.array(result)

        places = np.eye(x.size, dtype=bool).reshape(-1, *x.shape)
        above, below = (np.array([f(moved(x, p, s)) for p in places]).reshape(x.shape) for s in (h, -h))
        all_at_once = slopes([np.ones(x.shape, bool)])[0]
        known = {
            **quotients(above, np.full(x.shape, f(x)), below, h),
            "all elements are moved at once; move one, while the others stay": np.full(x.shape, all_at_once),
            "elements that were moved by h before are still moved; move them back": slopes(places, h).reshape(x.shape),
            "elements that were moved by -h before are still moved; move them back": slopes(places, -h).reshape(
                x.shape
            ),
        }
        if x.ndim == 2:
            rows = slopes([np.arange(2)[:, None] == i for i in range(2)])
            message = "whole rows are moved; move a single element (np.ndindex)"
            known |= {message: np.broadcast_to(rows[:, None], x.shape), f"{message} ": rows}
        compare(f"gradient {what}", call(gradient, f, x, h), (above - below) / (2 * h), known)


# The table


def count(pairs: Any, V: int) -> Any:
    counts = np.zeros((V, V), int)
    for a, b in pairs:
        counts[a, b] += 1
    return counts


def check_count_pairs(count_pairs: Any) -> None:
    for what, ids, V in [
        ("[2, 0, 0, 1]", [2, 0, 0, 1], 3),
        ("60 ids", np.random.default_rng(1).integers(0, 4, 60).tolist(), 5),
        ("one id", [1], 2),
    ]:
        pairs = list(zip(ids[:-1], ids[1:], strict=True))
        right = count(pairs, V)
        known = {
            "rows and columns are exchanged; counts[a, b] is for b after a": right.T,
            "every pair counts once, however often it occurs; with arrays of ids, counts[a, b] += 1 reads and writes "
            "each place once": np.minimum(right, 1),
            "the last pair is missing": count(pairs[:-1], V),
            "the first pair is missing": count(pairs[1:], V),
            "the last id and the first are counted as a pair": count([*pairs, (ids[-1], ids[0])], V),
            "single ids are counted; a pair is an id and the one after it": np.bincount(ids, minlength=V),
            "each id is paired with itself; a pair is an id and the one after it": count(zip(ids, ids, strict=True), V),
        }
        compare(f"count_pairs of {what}", call(count_pairs, ids, V), right, known)


def check_probabilities(probabilities: Any) -> None:
    counts = np.array([[3, 0, 1], [0, 0, 0], [2, 5, 2]])
    more, sums = counts + 1, counts.sum(axis=1, keepdims=True)
    known = {
        "each column adds up to 1; each row should: sum over the last axis": more / more.sum(axis=0),
        "the sum of row i divides column i; keepdims=True keeps the axis of the sum": more / more.sum(axis=1),
        "divided by the sum of the whole array; divide each row by its own": more / more.sum(),
        "one is not added to the counts, so that a pair that never occurred is impossible": counts
        / np.maximum(sums, 1),
        "one is added to the counts, but not in the sum": np.divide(
            more, sums, where=sums > 0, out=np.full((3, 3), np.inf)
        ),
        "the counts are not divided": more,
    }
    given = call(probabilities, counts)
    if np.isnan(given).any():
        raise Mistake("probabilities: a row without pairs becomes 0/0; add one to each count first")
    compare("probabilities", given, more / more.sum(axis=1, keepdims=True), known)
