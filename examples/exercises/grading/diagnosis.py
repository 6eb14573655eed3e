"""Find the mistake behind a wrong gradient.

The gradient is compared with the results of known mistakes: first those of the exercise (`Exercise.mistakes`), then
those that can happen in any exercise. One method finds most of the others. The right gradient is a sum of terms
(`Exercise.terms`). If the wrong one is a sum of multiples of the same terms, least squares finds the multiples: 0 for a
term that is missing, -1 for a term with the wrong sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .exercises import Case, Exercise


def diagnose(exercise: Exercise, case: Case, name: str, given: Any, right: Any, g: Any) -> str:
    """Explain, as far as possible, why `given` is not the gradient of the argument `name`.

    right: the gradient by finite differences. It is not exact, so the comparisons use the sum of the terms, which is.
    """
    what = f"dL/d{name}"
    x = case.arguments[name]
    terms = exercise.terms(g, **case.arguments)[name]
    exact = sum(terms.values())
    for message, wrong in exercise.mistakes(g, **case.arguments).get(name, {}).items():
        if same(given, wrong) and not same(wrong, exact):
            return message
    if given.shape != np.shape(g) or given.shape == x.shape:  # otherwise it may only lack a sum
        for other, other_terms in exercise.terms(g, **case.arguments).items():
            if other != name and same(given, sum(other_terms.values())):
                return f"{what} is what dL/d{other} should be: return the gradients in the order of the arguments"
    if given.shape != x.shape:
        return explain_shape(what, name, given, x, np.asarray(g), exact, exercise.has_products)
    if not np.isfinite(given).all():
        place = first(~np.isfinite(given))
        return f"{what} has a NaN or an infinity at {place}, where {name} is {x[place]}"
    if x.size and not given.any():
        return f"{what} is zero everywhere"
    if same(given, g):
        return f"{what} is g itself: the factor dy/d{name} is missing (the chain rule)"
    ones = sum(exercise.terms(np.ones_like(g), **case.arguments)[name].values())
    if same(given, ones):
        return f"{what} does not depend on g: multiply by the gradient that arrives (the chain rule)"
    copies = np.size(g) // x.size if x.size else 1
    if copies > 1 and same(given * copies, exact):
        return f"{what} is the mean over the {copies} places that {name} was copied to; it should be the sum"
    multiples = fit(given, list(terms.values()))
    if multiples is not None:
        return explain_multiples(what, dict(zip(terms, multiples, strict=True)))
    return explain_difference(what, given, right)


def same(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=1e-9)


def first(places: Any) -> tuple[int, ...]:
    """The first place at which a boolean array is true."""
    return tuple(int(i) for i in np.argwhere(places)[0])


def explain_shape(what: str, name: str, given: Any, x: Any, g: Any, exact: Any, has_products: bool) -> str:
    start = f"{what} has the shape {given.shape}, but {name} is {x.shape}"
    was_copied = x.shape != g.shape and broadcasts(x.shape, g.shape)
    if given.shape == g.shape and was_copied:
        start = f"{what} has the shape of the result, {given.shape}, but {name} is {x.shape}"
        return f"{start}: sum over the axes along which {name} was copied"
    if given.ndim == 2 and same(given.T, exact):
        if has_products:
            return f"{start}: a transpose is missing, or the factors of the product are in the wrong order"
        return f"{start}: it is the transpose of the right gradient"
    if given.size == x.size and same(given.reshape(x.shape), exact):
        axes = (
            "drop the axes of size 1 (no keepdims=True)"
            if given.ndim > x.ndim
            else "keep axes of size 1 (keepdims=True)"
        )
        return f"{start}: the numbers are right; {axes}, or reshape to the shape of {name}"
    if given.ndim > x.ndim and same(given.sum(axis=tuple(range(given.ndim - x.ndim))), exact):
        return f"{start}: sum over the axes that {name} does not have"
    if given.size < x.size and x.shape == g.shape:
        return f"{start}: {name} was not copied, so there is nothing to sum"
    if given.ndim < g.ndim and was_copied and same(given.sum(), exact.sum()):
        return f"{start}: the sum runs over the wrong axes; sum over those along which {name} was copied"
    if given.size < x.size and same(given.sum(), exact.sum()):
        return f"{start}: it was summed over an axis that {name} has"
    return start


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Does NumPy copy an array of this shape along new axes, or axes of size 1, to the other shape?"""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))


def fit(given: Any, terms: list[Any]) -> list[float] | None:
    """The multiples of the terms that add up to `given`, or None if there is no choice of them, or more than one."""
    columns = np.stack([np.ravel(term) for term in terms], axis=1)
    if len(columns) < 2 * len(terms) and len(terms) > 1:
        return None
    multiples, _, rank, _ = np.linalg.lstsq(columns, np.ravel(given), rcond=1e-10)
    if rank < len(terms) or not same(columns @ multiples, np.ravel(given)):
        return None
    return [0.0 if abs(multiple) < 1e-9 else float(multiple) for multiple in multiples]


def explain_multiples(what: str, multiples: dict[str, float]) -> str:
    """Describe a wrong gradient by the multiples of the right terms that it is made of."""
    values = list(multiples.values())
    if np.allclose(values, values[0], rtol=1e-6):
        if np.isclose(values[0], -1, rtol=1e-6):
            return f"{what} has the wrong sign"
        return f"{what} is {values[0]:.4g} times the right gradient"
    said = []
    for term, multiple in multiples.items():
        if np.isclose(multiple, 1, rtol=1e-6):
            continue
        if multiple == 0:
            said.append(f"the term {term} is missing")
        elif np.isclose(multiple, -1, rtol=1e-6):
            said.append(f"the term {term} has the wrong sign")
        else:
            said.append(f"the term {term} is {multiple:.4g} times what it should be")
    return f"{what}: {'; '.join(said)}"


def explain_difference(what: str, given: Any, right: Any) -> str:
    """The last resort: how many elements are wrong, and the first of them."""
    wrong = ~np.isclose(given, right, rtol=1e-5, atol=1e-7)
    place = first(wrong) if wrong.ndim else ()
    return (
        f"{what} is wrong in {wrong.sum()} of its {wrong.size} elements; at {place} backward gives "
        f"{given[place]:.6g}, finite differences give {right[place]:.6g}"
    )
