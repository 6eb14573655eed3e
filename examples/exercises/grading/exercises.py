"""Exercises 1 to 10: the engine's operation, the cases to check, the terms of the gradients, and known mistakes.

This file contains the answers. It is written for the checker; the derivations are in minigrad/ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from minigrad.ops.activation import GELUTanh
from minigrad.ops.attention import Attention
from minigrad.ops.elementwise import Add, Multiply
from minigrad.ops.embedding import Embedding
from minigrad.ops.loss import CrossEntropy
from minigrad.ops.matmul import Linear, MatMul
from minigrad.ops.normalization import LayerNorm
from minigrad.ops.shape import sum_to
from minigrad.ops.softmax import Softmax, softmax


class Case(NamedTuple):
    """Arguments of forward, by name. The gradients of the floating arrays are checked."""

    what: str
    arguments: dict[str, Any]


Terms = dict[str, dict[str, Any]]  # for each argument: named terms that add up to its gradient
Mistakes = dict[str, dict[str, Any]]  # for each argument: the message for a mistake, and the gradient that it gives


class Exercise(NamedTuple):
    """An exercise. `terms` and `mistakes` take g and the arguments of forward by name."""

    file: str
    operation: type[mg.Function]
    cases: list[Case]  # from simple to tricky
    terms: Callable[..., Terms]
    mistakes: Callable[..., Mistakes]
    has_products: bool = False  # is it made of matrix products?

    @property
    def name(self) -> str:
        return self.operation.__name__


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def no_mistakes(g: Any, **arguments: Any) -> Mistakes:
    """For an exercise whose mistakes are all found in other ways than by comparison."""
    return {}


def transposed(x: Any) -> Any:
    return x.swapaxes(-1, -2)


# 1 and 2: elementwise with broadcasting


def pair(what: str, a: Any, b: Any) -> Case:
    return Case(what, {"a": a, "b": b})


PAIRS = [
    pair("a and b of one shape", normal(2, 3), normal(2, 3, seed=1)),
    pair("a matrix and a row", normal(3, 4), normal(4)),
    pair("a row and a matrix", normal(4), normal(3, 4)),
    pair("axes of size 1 on both sides", normal(3, 1, 4), normal(2, 1)),
    pair("a column and a row", normal(3, 1), normal(1, 4)),
    pair("an axis of size 1 that is not stretched", normal(1, 3), normal(1, 3, seed=1)),
    pair("a matrix and a 0-d array", normal(2, 3), normal()),
    pair("two 0-d arrays", normal(), normal(seed=1)),
    pair("an array and a Python number", normal(2, 3), 2.5),
]


def add_terms(g, a, b):
    return {"a": {"g": sum_to(g, np.shape(a))}, "b": {"g": sum_to(g, np.shape(b))}}


def multiply_terms(g, a, b):
    return {"a": {"g b": sum_to(g * b, np.shape(a))}, "b": {"g a": sum_to(g * a, np.shape(b))}}


def multiply_mistakes(g, a, b):
    def of(name, other, own_value, other_value):
        shape = np.shape(own_value)
        return {
            f"dL/d{name} is g {name}: dy/d{name} is the other factor, {other}": sum_to(g * own_value, shape),
            f"dL/d{name} is g alone: the factor dy/d{name} is missing": sum_to(g, shape),
            f"dL/d{name} is (sum of g) (sum of {other}): multiply first, then sum over the axes that were "
            f"broadcast": sum_to(g, shape) * sum_to(np.broadcast_to(other_value, g.shape), shape),
        }

    return {"a": of("a", "b", a, b), "b": of("b", "a", b, a)}


# 3: GELU

C, A = GELUTanh.c, GELUTanh.a


def gelu_terms(g, x):
    t = np.tanh(C * (x + A * x**3))
    outer = g * x / 2 * (1 - t * t) * C
    return {
        "x": {"(1 + t)/2": g * (1 + t) / 2, "x/2 (1 - t^2) c": outer, "x/2 (1 - t^2) c 3 a x^2": outer * 3 * A * x * x}
    }


def gelu_mistakes(g, x):
    t = np.tanh(C * (x + A * x**3))
    du = C * (1 + 3 * A * x * x)
    return {
        "x": {
            "dL/dx: dt/du is 1 - t^2, not 1 - t": g * ((1 + t) / 2 + x / 2 * (1 - t) * du),
            "dL/dx: dt/du is 1 - t^2, not 1 + t^2": g * ((1 + t) / 2 + x / 2 * (1 + t * t) * du),
            "dL/dx: the factor dt/du is missing": g * ((1 + t) / 2 + x / 2 * du),
            "dL/dx: the factor du/dx is missing": g * ((1 + t) / 2 + x / 2 * (1 - t * t)),
            "dL/dx: the term x/2 dt/dx is missing: t also depends on x": g * (1 + t) / 2,
            "dL/dx: the term (1 + t)/2 is missing: x is also a factor of y": g * x / 2 * (1 - t * t) * du,
        }
    }


# 4 and 5: products

PRODUCTS = [
    pair("two matrices", normal(3, 4), normal(4, 5)),
    pair("two square matrices", normal(3, 3), normal(3, 3, seed=1)),
    pair("two batches of matrices", normal(2, 3, 4), normal(2, 4, 5)),
    pair("a batch of matrices and one matrix", normal(2, 3, 4), normal(4, 5)),
    pair("one matrix and a batch of matrices", normal(3, 4), normal(2, 4, 5)),
    pair("leading axes of size 1 on both sides", normal(2, 1, 3, 4), normal(3, 4, 2)),
    pair("a vector and a matrix", normal(4), normal(4, 3)),
    pair("a vector and a batch of matrices", normal(4), normal(2, 4, 3)),
    pair("a batch of matrices and a vector", normal(2, 3, 4), normal(4)),
    pair("two vectors", normal(4), normal(4, seed=1)),
]


def matmul_terms(g, a, b):
    rows = a[None, :] if a.ndim == 1 else a
    columns = b[:, None] if b.ndim == 1 else b
    g = np.reshape(g, (rows @ columns).shape)
    da, db = sum_to(g @ transposed(columns), rows.shape), sum_to(transposed(rows) @ g, columns.shape)
    return {"a": {"g b^T": da.reshape(a.shape)}, "b": {"a^T g": db.reshape(b.shape)}}


def matmul_mistakes(g, a, b):
    """The product in the wrong order, to which the reshape at the end of the backward gives the right shape."""
    rows = a[None, :] if a.ndim == 1 else a
    columns = b[:, None] if b.ndim == 1 else b
    g = np.reshape(g, (rows @ columns).shape)
    da = sum_to(columns @ transposed(g), transposed(rows).shape).reshape(a.shape)
    db = sum_to(transposed(g) @ rows, transposed(columns).shape).reshape(b.shape)
    return {
        "a": {"dL/da is b g^T in another shape: a transpose is in the wrong place; it should be g b^T": da},
        "b": {"dL/db is g^T a in another shape: a transpose is in the wrong place; it should be a^T g": db},
    }


def linear_case(what: str, x: Any, outputs: int, bias: bool = True) -> Case:
    weight = normal(outputs, x.shape[-1], seed=1)
    return Case(what, {"x": x, "weight": weight, "bias": normal(outputs, seed=2) if bias else None})


def linear_terms(g, x, weight, bias):
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return {
        "x": {"g W": g @ weight},
        "weight": {"g^T x": g_rows.T @ rows},
        "bias": {"g": g_rows.sum(axis=0)},
    }


def linear_mistakes(g, x, weight, bias):
    n = math.prod(x.shape[:-1])
    if n == 1:
        return {}
    return {
        name: {f"dL/d{name} is the mean over the {n} rows; it should be the sum": sum(terms.values()) / n}
        for name, terms in linear_terms(g, x, weight, bias).items()
        if name != "x"
    }


# 6: embedding


def embedding_case(what: str, ids: list[Any] | int) -> Case:
    return Case(what, {"ids": np.array(ids), "weight": normal(5, 3)})


def embedding_terms(g, ids, weight):
    dweight = np.zeros(weight.shape)
    np.add.at(dweight, ids, g)
    return {"weight": {"the rows of g": dweight}}


def embedding_mistakes(g, ids, weight):
    total = embedding_terms(g, ids, weight)["weight"]["the rows of g"]
    assigned = np.zeros(weight.shape)
    assigned[ids] = g
    counts = np.bincount(np.ravel(ids), minlength=len(weight))[:, None]
    ones = np.zeros(weight.shape)
    ones[ids] = 1
    return {
        "weight": {
            "dL/dweight: an id that occurs several times keeps only the last of its rows of g; add all of them "
            "(dW[ids] += g does not add them either)": assigned,
            "dL/dweight: an id that occurs several times has the mean of its rows of g; it should be the sum": total
            / np.maximum(counts, 1),
            f"dL/dweight has the shape of the result, {g.shape}; expected {weight.shape}, a row for every row of W": g,
        }
    }


# 7: softmax

NOWHERE = normal(3, 4, seed=3)
NOWHERE[1] = -np.inf
NOWHERE[2, 1] = -np.inf


def softmax_terms(g, x, axis):
    y = softmax(x, axis)
    return {"x": {"y g": y * g, "- y sum(g y)": -y * (g * y).sum(axis=axis, keepdims=True)}}


def softmax_mistakes(g, x, axis):
    y = softmax(x, axis)
    return {
        "x": {
            "dL/dx: the term - y sum(g y) is missing: x_i also affects every other y_j": y * g,
            "dL/dx is g y (1 - y): the other y_j are missing, which x_i also affects": g * y * (1 - y),
            "dL/dx: the sum is over g; it should be over g y": y * (g - g.sum(axis=axis, keepdims=True)),
            "dL/dx: the mean of g y is subtracted; it should be the sum": y
            * (g - (g * y).mean(axis=axis, keepdims=True)),
            "dL/dx: the sum runs over the whole array; it should run along the axis": y * (g - (g * y).sum()),
            "dL/dx: the sum runs along the wrong axis": y * (g - (g * y).sum(axis=axis - 1, keepdims=True)),
            "dL/dx: the factor y is missing": g - (g * y).sum(axis=axis, keepdims=True),
            "dL/dx: in the term - y sum(g y), the y before the sum is missing": y * g
            - (g * y).sum(axis=axis, keepdims=True),
            "dL/dx: in the term - y sum(g y), the second y is outside the sum; multiply each g_j by its y_j": y * g
            - y * y * g.sum(axis=axis, keepdims=True),
            "dL/dx is g - y sum(g), which is the gradient of log-softmax": g - y * g.sum(axis=axis, keepdims=True),
        }
    }


# 8: cross-entropy


def loss_case(what: str, targets: list[Any], reduction: str = "mean", x: Any = None, smoothing: float = 0.0) -> Case:
    x = normal(*np.shape(targets), 5) if x is None else x
    names = ("x", "targets", "ignore_index", "reduction", "label_smoothing")
    return Case(what, dict(zip(names, (x, np.array(targets), -100, reduction, smoothing), strict=True)))


def loss_parts(g, x, targets, ignore_index, reduction, label_smoothing):
    """p and q (…, V), the factor of every row (…, 1), and which rows are not ignored (…, 1)."""
    V = x.shape[-1]
    counted = (targets != ignore_index)[..., None]
    q = (1 - label_smoothing) * (targets[..., None] == np.arange(V)) + label_smoothing / V
    q = np.where(counted, q, label_smoothing / V + (1 - label_smoothing) * (np.arange(V) == 0))  # as the forward has it
    n = max(counted.sum(), 1) if reduction == "mean" else 1
    g_row = np.broadcast_to(g[..., None] if reduction == "none" else g, counted.shape) / n
    return softmax(x, axis=-1), q, g_row, counted


def cross_entropy_terms(g, **arguments):
    p, q, g_row, counted = loss_parts(g, **arguments)
    return {"x": {"g p": p * g_row * counted, "- g q": -q * g_row * counted}}


def cross_entropy_mistakes(g, **arguments):
    p, q, g_row, counted = loss_parts(g, **arguments)
    right, rows, V = (p - q) * g_row * counted, counted.size, p.shape[-1]
    found = {
        "dL/dx: the 1 at the target (q) is not subtracted": p * g_row * counted,
        "dL/dx: rows whose target is ignore_index have a gradient; it should be zero": (p - q) * g_row,
    }
    if arguments["reduction"] == "mean":
        n = max(counted.sum(), 1)
        alone = f"multiply by g (the chain rule), and divide by the number of targets, {n}: the loss is their mean"
        found |= {
            f"dL/dx is p - q alone; {alone}": (p - q) * counted,
            f"dL/dx is p alone; subtract q, {alone}": p * counted,
            f"dL/dx is not divided by the number of targets, {n}, although the loss is their mean": right * n,
            f"dL/dx is divided by the number of targets, {n}, twice": right / n,
            f"dL/dx is divided by {rows}, the number of rows; the mean is over the {n} not ignored": right * n / rows,
            f"dL/dx is divided by {rows * V}, the number of logits; the mean is over the {n} targets": right / V,
            f"dL/dx is divided by {V}, the number of classes; the mean is over the {n} targets": right * n / V,
        }
    else:
        n = max(counted.sum(), 1)
        found[f'dL/dx is divided by the number of targets, {n}, which is right only for "mean"'] = right / n
    return {"x": found}


FAR = normal(4, 5, seed=4)
FAR[0, 1:] = -np.inf, 800, -800, 3


# 9: layer norm


def norm_case(what: str, x: Any, gamma: bool = True, beta: bool = True) -> Case:
    n = x.shape[-1]
    scale, shift = normal(n, seed=1) if gamma else None, normal(n, seed=2) if beta else None
    return Case(what, {"x": x, "gamma": scale, "beta": shift, "eps": 1e-5})


def row_mean(x):
    return x.mean(axis=-1, keepdims=True)


def norm_parts(g, x, gamma, beta, eps):
    r = 1 / np.sqrt(row_mean((x - row_mean(x)) ** 2) + eps)
    return (x - row_mean(x)) * r, r, g if gamma is None else g * gamma


def layer_norm_terms(g, x, gamma, beta, eps):
    x_hat, r, g_hat = norm_parts(g, x, gamma, beta, eps)
    return {
        "x": {
            "r g_hat": r * g_hat,
            "- r mean(g_hat)": -r * row_mean(g_hat) * np.ones_like(x),
            "- r x_hat mean(g_hat x_hat)": -r * x_hat * row_mean(g_hat * x_hat),
        },
        "gamma": {"g x_hat": sum_to(g * x_hat, x.shape[-1:])},
        "beta": {"g": sum_to(g, x.shape[-1:])},
    }


def layer_norm_mistakes(g, x, gamma, beta, eps):
    x_hat, r, g_hat = norm_parts(g, x, gamma, beta, eps)
    sum_g, sum_gx = g_hat.sum(axis=-1, keepdims=True), (g_hat * x_hat).sum(axis=-1, keepdims=True)
    projected = g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat * x_hat)
    return {
        "x": {
            "dL/dx uses g; it should use g_hat = g gamma": r * (g - row_mean(g) - x_hat * row_mean(g * x_hat)),
            "dL/dx: gamma belongs inside the means, which are of g_hat = g gamma and of g_hat x_hat": r
            * (1 if gamma is None else gamma)
            * (g - row_mean(g) - x_hat * row_mean(g * x_hat)),
            "dL/dx: the factor r is missing": projected,
            "dL/dx: in the term - r mean(g_hat), the factor r is missing": r * (g_hat - x_hat * row_mean(g_hat * x_hat))
            - row_mean(g_hat),
            "dL/dx: in the term - r x_hat mean(g_hat x_hat), the factor r is missing": r * (g_hat - row_mean(g_hat))
            - x_hat * row_mean(g_hat * x_hat),
            "dL/dx: the term - r x_hat mean(g_hat x_hat) has r^3 instead of r: each x - mu in it is x_hat / r": r
            * (g_hat - row_mean(g_hat) - r * r * x_hat * row_mean(g_hat * x_hat)),
            "dL/dx: the factor r appears twice": r * r * projected,
            "dL/dx is divided by r; it should be multiplied by r": projected / r,
            "dL/dx: in the term - r x_hat mean(g_hat x_hat), the mean is of g_hat; it should be of g_hat x_hat": r
            * (g_hat - row_mean(g_hat) - x_hat * row_mean(g_hat)),
            "dL/dx: in the term - r x_hat mean(g_hat x_hat), the mean is of g x_hat; it should be of g_hat x_hat": r
            * (g_hat - row_mean(g_hat) - x_hat * row_mean(g * x_hat)),
            "dL/dx: in the term - r mean(g_hat), the mean is of g; it should be of g_hat": r
            * (g_hat - row_mean(g) - x_hat * row_mean(g_hat * x_hat)),
            "dL/dx: the sums of g_hat and of g_hat x_hat are subtracted; they should be means": r
            * (g_hat - sum_g - x_hat * sum_gx),
            "dL/dx: the means run over the whole array; they should run over each row": r
            * (g_hat - g_hat.mean() - x_hat * (g_hat * x_hat).mean()),
            "dL/dx: in the term - r x_hat mean(g_hat x_hat), the x_hat before the mean is missing": r
            * (g_hat - row_mean(g_hat) - row_mean(g_hat * x_hat)),
        },
        "gamma": {
            "dL/dgamma is the sum of g; the factor x_hat is missing": sum_to(g, x.shape[-1:]),
            "dL/dgamma uses g_hat; it should use g": sum_to(g_hat * x_hat, x.shape[-1:]),
        },
        "beta": {},
    }


# 10: attention


def attention_case(
    what: str, q: Any, k: Any, v: Any, causal: bool = False, mask: Any = None, dropout: float = 0.0
) -> Case:
    return Case(what, {"q": q, "k": k, "v": v, "causal": causal, "mask": mask, "dropout_p": dropout})


MASK = np.array([[True, False, True, True], [False] * 4, [True, True, False, False]])


def attention_parts(g, q, k, v, causal, mask, dropout_p):
    """The scale, P, the factors of dropout, dP and S, all arrays with the leading axes of g."""
    scale = q.shape[-1] ** -0.5
    s = scale * q @ transposed(k)
    sees = np.tri(*s.shape[-2:], k=s.shape[-1] - s.shape[-2], dtype=bool) if causal else np.ones(s.shape[-2:], bool)
    p = softmax(np.where(sees if mask is None else sees & mask, s, -np.inf), axis=-1)
    m = np.ones(p.shape)
    if dropout_p:
        mg.manual_seed(0)
        kept, by = mg.random.dropout_mask(p.shape, dropout_p)
        m = kept * by
    return scale, p, m, m * (g @ transposed(v)), s


def attention_gradients(ds, scale, q, k):
    return sum_to(scale * ds @ k, q.shape), sum_to(scale * transposed(ds) @ q, k.shape)


def attention_terms(g, q, k, v, causal, mask, dropout_p):
    scale, p, m, dp, _ = attention_parts(g, q, k, v, causal, mask, dropout_p)
    through = attention_gradients(p * dp, scale, q, k)
    back = attention_gradients(-p * (dp * p).sum(axis=-1, keepdims=True), scale, q, k)
    names = "the P dP of dS", "the - P sum(dP P) of dS"
    return {
        "q": dict(zip(names, (through[0], back[0]), strict=True)),
        "k": dict(zip(names, (through[1], back[1]), strict=True)),
        "v": {"A^T g": sum_to(transposed(p * m) @ g, v.shape)},
    }


def attention_mistakes(g, q, k, v, causal, mask, dropout_p):
    scale, p, m, dp, s = attention_parts(g, q, k, v, causal, mask, dropout_p)

    def through_softmax(p, dp, axis=-1):
        return p * (dp - (dp * p).sum(axis=axis, keepdims=True))

    ds = through_softmax(p, dp)
    root = 1 / scale
    found: Mistakes = {"q": {}, "k": {}, "v": {}}

    def both(message, dq_dk):
        for name, wrong in zip("qk", dq_dk, strict=True):
            found[name][f"dL/d{name}: {message}"] = wrong

    both("softmax's term - P sum(dP P) is missing", attention_gradients(p * dp, scale, q, k))
    both("the scale 1/sqrt(D) is missing", attention_gradients(ds, 1.0, q, k))
    both("the scale 1/sqrt(D) appears twice", attention_gradients(ds, scale * scale, q, k))
    both("multiplied by sqrt(D) instead of 1/sqrt(D)", attention_gradients(ds, root, q, k))
    both("softmax's backward is missing: dP is used as dS", attention_gradients(dp, scale, q, k))
    both(
        "the sum in softmax's backward runs over the queries; it should run over the keys",
        attention_gradients(through_softmax(p, dp, axis=-2), scale, q, k),
    )
    both(
        "in softmax's backward the sum is over dP; it should be over dP P",
        attention_gradients(p * (dp - dp.sum(axis=-1, keepdims=True)), scale, q, k),
    )
    both(
        "in softmax's backward the mean of dP P is subtracted; it should be the sum",
        attention_gradients(p * (dp - row_mean(dp * p)), scale, q, k),
    )
    both(
        "in softmax's backward the factor P is missing",
        attention_gradients(dp - (dp * p).sum(axis=-1, keepdims=True), scale, q, k),
    )
    if p.ndim == 2 and len(p) == p.shape[-1]:  # otherwise NumPy refuses to broadcast
        both(
            "the sum in softmax's backward loses the axis of the keys; with keepdims=True it stays, with size 1",
            attention_gradients(p * (dp - (dp * p).sum(axis=-1)), scale, q, k),
        )
    unmasked = softmax(s, axis=-1)
    if causal or mask is not None:
        both(
            f"the {'causal ' if causal else ''}mask is not applied: queries get gradients from keys that are masked",
            attention_gradients(through_softmax(unmasked, dp), scale, q, k),
        )
        found["v"]["dL/dv: the mask is not applied: values get gradients from queries they are masked for"] = sum_to(
            transposed(unmasked * m) @ g, v.shape
        )
    if dropout_p:
        undropped = attention_gradients(through_softmax(p, g @ transposed(v)), scale, q, k)
        both("dropout is missing in dP = drop(dA)", undropped)
        found["v"]["dL/dv: dropout is missing: y = A v, and A is drop(P)"] = sum_to(transposed(p) @ g, v.shape)
    if q.shape == k.shape:
        found["q"]["dL/dq: dS is multiplied by q; it should be multiplied by k"] = sum_to(scale * ds @ q, q.shape)
        found["k"]["dL/dk: dS is multiplied by k; it should be multiplied by q"] = sum_to(
            scale * transposed(ds) @ k, k.shape
        )
        found["k"]["dL/dk: dS is not transposed"] = sum_to(scale * ds @ q, k.shape)
        found["v"]["dL/dv: A is not transposed"] = sum_to((p * m) @ g, v.shape)
    return found


OPERATIONS = [
    Exercise("ex01_add.py", Add, PAIRS, add_terms, no_mistakes),
    Exercise("ex02_multiply.py", Multiply, PAIRS, multiply_terms, multiply_mistakes),
    Exercise(
        "ex03_gelu.py",
        GELUTanh,
        [
            Case("a matrix", {"x": normal(3, 4)}),
            Case("three axes", {"x": normal(2, 3, 2)}),
            Case("large and small numbers", {"x": np.array([-30.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 30.0])}),
            Case("a 0-d array", {"x": normal()}),
        ],
        gelu_terms,
        gelu_mistakes,
    ),
    Exercise("ex04_matmul.py", MatMul, PRODUCTS, matmul_terms, matmul_mistakes, has_products=True),
    Exercise(
        "ex05_linear.py",
        Linear,
        [
            linear_case("rows", normal(3, 4), 5),
            linear_case("as many outputs as inputs", normal(3, 4), 4),
            linear_case("a batch of rows", normal(2, 3, 4), 5),
            linear_case("without a bias", normal(2, 3, 4), 5, bias=False),
            linear_case("one row without leading axes", normal(4), 5),
        ],
        linear_terms,
        linear_mistakes,
        has_products=True,
    ),
    Exercise(
        "ex06_embedding.py",
        Embedding,
        [
            embedding_case("each id once", [3, 0, 1]),
            embedding_case("ids that repeat", [2, 0, 2, 4, 2]),
            embedding_case("a batch of ids that repeat", [[1, 1, 4], [4, 1, 0]]),
            embedding_case("one id without axes", 3),
        ],
        embedding_terms,
        embedding_mistakes,
    ),
    Exercise(
        "ex07_softmax.py",
        Softmax,
        [
            Case("the last axis", {"x": normal(3, 4), "axis": 1}),
            Case("the first axis", {"x": normal(3, 4), "axis": 0}),
            Case("the middle axis of three", {"x": normal(2, 3, 4), "axis": 1}),
            Case("an axis of size 1", {"x": normal(3, 1), "axis": 1}),
            Case("large numbers", {"x": 300 * normal(3, 4, seed=5), "axis": 1}),
            Case("a row of -inf", {"x": NOWHERE, "axis": 1}),
        ],
        softmax_terms,
        softmax_mistakes,
    ),
    Exercise(
        "ex08_cross_entropy.py",
        CrossEntropy,
        [
            loss_case("the mean of the losses", [0, 4, 2, 4]),
            loss_case("the sum of the losses", [0, 4, 2, 4], "sum"),
            loss_case("each loss by itself", [0, 4, 2, 4], "none"),
            loss_case("a batch", [[0, 4, 2], [1, 1, 3]]),
            loss_case("each loss of a batch", [[0, 4, 2], [1, 1, 3]], "none"),
            loss_case("ignored targets", [0, -100, 2, -100, 4, 1]),
            loss_case("ignored targets, each loss by itself", [[0, -100], [-100, 2]], "none"),
            loss_case("only ignored targets", [-100, -100], "sum"),
            loss_case("label smoothing", [0, 4, -100, 4], smoothing=0.3),
            loss_case("very large, very small and infinite logits", [2, 4, 2, 4], x=FAR),
        ],
        cross_entropy_terms,
        cross_entropy_mistakes,
    ),
    Exercise(
        "ex09_layer_norm.py",
        LayerNorm,
        [
            norm_case("rows", normal(3, 4)),
            norm_case("a batch of rows", normal(2, 3, 4)),
            norm_case("without beta", normal(2, 3, 4), beta=False),
            norm_case("without gamma and beta", normal(3, 4), gamma=False, beta=False),
            norm_case("one row without leading axes", normal(4)),
        ],
        layer_norm_terms,
        layer_norm_mistakes,
    ),
    Exercise(
        "ex10_attention.py",
        Attention,
        [
            attention_case("as many queries as keys", normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)),
            attention_case("more keys than queries", normal(3, 4), normal(5, 4), normal(5, 4, seed=1)),
            attention_case("causal", normal(2, 4, 3), normal(2, 4, 3, seed=1), normal(2, 4, 3, seed=2), causal=True),
            attention_case(
                "causal, more keys than queries", normal(2, 3), normal(4, 3), normal(4, 3, seed=1), causal=True
            ),
            attention_case(
                "a mask that hides all keys from one query", normal(3, 2), normal(4, 2), normal(4, 5), mask=MASK
            ),
            attention_case(
                "heads", normal(2, 2, 3, 4), normal(2, 2, 3, 4, seed=1), normal(2, 2, 3, 4, seed=2), causal=True
            ),
            attention_case("keys that all heads share", normal(2, 3, 4), normal(3, 4), normal(1, 3, 4)),
            attention_case("queries that all heads share", normal(3, 4), normal(2, 3, 4), normal(2, 3, 4, seed=1)),
            attention_case("dropout", normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4, seed=1), dropout=0.4),
        ],
        attention_terms,
        attention_mistakes,
        has_products=True,
    ),
]
