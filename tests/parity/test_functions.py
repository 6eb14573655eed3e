"""Every function of `minigrad.functional`, and the operators and methods of `Tensor`, against PyTorch in float64.

A line of the table names a function of minigrad, PyTorch's equivalent, and the arguments that both are called with.
Where PyTorch's arguments differ, a function or a lambda with minigrad's arguments calls it.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F

from .compare import assert_close, assert_parity, largest, torch

pytestmark = pytest.mark.parity
TF = torch.nn.functional

# The functions that minigrad promises
PROMISED = """
    exp log sqrt abs tanh sigmoid relu gelu silu
    maximum minimum where clip
    sum mean max min var logsumexp
    reshape transpose broadcast_to concatenate stack split
    matmul linear softmax log_softmax masked_fill
    layer_norm rms_norm embedding
    dropout cross_entropy
    scaled_dot_product_attention
""".split()


class Case(NamedTuple):
    name: str  # of the function in minigrad.functional
    what: str
    torch_fn: Callable[..., Any]
    arguments: tuple[Any, ...]


CASES: list[Case] = []
rng = np.random.default_rng(0)


def case(name: str, what: str, torch_fn: Callable[..., Any], *arguments: Any) -> None:
    CASES.append(Case(name, what, torch_fn, arguments))


def normal(*shape):
    return rng.standard_normal(shape)


def positive(*shape):
    return rng.uniform(0.5, 2, shape)


def whole(*shape):
    """Floats with few different values, so that many tie."""
    return rng.integers(-2, 3, shape).astype(float)


def mask(*shape):
    return rng.random(shape) < 0.5


# Elementwise. Shapes (3, 1, 4) and (2, 1) broadcast on both sides.

for name, torch_fn in {
    **{"add": torch.add, "subtract": torch.subtract, "multiply": torch.multiply, "divide": torch.divide},
    **{"power": torch.pow, "maximum": torch.maximum, "minimum": torch.minimum},
}.items():
    case(name, "", torch_fn, positive(3, 4), positive(3, 4))
    case(name, "broadcast", torch_fn, positive(3, 1, 4), positive(2, 1))
    case(name, "with a scalar tensor", torch_fn, positive(3, 4), positive())
    case(name, "empty", torch_fn, positive(0, 4), positive(4))
    case(name, "float32 meets float64", torch_fn, positive(3).astype(np.float32), positive(2, 3))
case("maximum", "ties: each gets half", torch.maximum, whole(6, 1), whole(7))
case("minimum", "ties: each gets half", torch.minimum, whole(6, 1), whole(7))
case("multiply", "an integer array adopts the dtype", torch.multiply, normal(3, 4), np.arange(4))
case("divide", "an integer array adopts the dtype", torch.divide, np.arange(4), positive(3, 4))
for exponent in (-2, -1, 0, 0.5, 1, 2, 3, 4, 2.5):
    case("power", f"number {exponent}", torch.pow, positive(3, 4), exponent)
for exponent in (-3, 0, 1, 2, 3, 4):
    case("power", f"negative base, number {exponent}", torch.pow, -positive(3, 4), exponent)
for exponent in (0, 1, 2, 3, 4):
    case("power", f"base zero, number {exponent}", torch.pow, np.zeros(3), exponent)
case("power", "number to a tensor", torch.pow, 2.5, normal(3, 4))
case("power", "zero to a tensor", torch.pow, np.zeros(3), np.array([0.0, 1.0, 2.0]))
case("negative", "", torch.neg, normal(3, 4))
case("exp", "", torch.exp, 5 * normal(3, 4))
case("log", "", torch.log, 100 * positive(3, 4))
case("sqrt", "", torch.sqrt, 100 * positive(3, 4))
case("abs", "with zeros", torch.abs, whole(5, 6))
case("tanh", "far out", torch.tanh, np.linspace(-30, 30, 61))
case("sigmoid", "far out", torch.sigmoid, np.linspace(-800, 800, 81))
case("sigmoid", "where it nearly vanishes", torch.sigmoid, np.linspace(-40, -20, 21))
case("relu", "with zeros", torch.relu, whole(5, 6))
case("squared_relu", "with zeros", lambda x: torch.relu(x).square(), whole(5, 6))
case("squared_relu", "far out", lambda x: torch.relu(x).square(), np.linspace(-800, 800, 81))
case("silu", "far out", TF.silu, np.linspace(-800, 800, 81))
case("silu", "where it nearly vanishes", TF.silu, np.linspace(-40, -20, 21))
case("softplus", "", TF.softplus, 5 * normal(5, 6))
case("softplus", "far out", lambda x: TF.softplus(x, threshold=1e3), np.linspace(-700, 700, 71))
case("gelu", "tanh is the default", lambda x: TF.gelu(x, approximate="tanh"), np.linspace(-12, 12, 121))
for form in ("tanh", "none"):
    case("gelu", form, lambda x, form: TF.gelu(x, approximate=form), 2 * normal(5, 6), form)
    case("gelu", f"{form}, far out", lambda x, form: TF.gelu(x, approximate=form), np.linspace(-12, 12, 121), form)
case("where", "", torch.where, mask(3, 4), normal(3, 4), normal(3, 4))
case("where", "broadcast", torch.where, mask(2, 1, 4), normal(3, 1), normal(4))
case("where", "a number", torch.where, mask(3, 4), normal(3, 4), -1.5)
case("clip", "", torch.clamp, normal(5, 6), -0.5, 0.75)
case("clip", "on the bounds", torch.clamp, whole(5, 6), -1, 1)
case("clip", "low alone", torch.clamp, whole(5, 6), 0)
case("clip", "high alone", torch.clamp, whole(5, 6), None, 0)
case("astype", "float64 to float32", lambda x, _: x.float(), normal(3, 4), "float32")
case("astype", "float32 to float64", lambda x, _: x.double(), normal(3, 4).astype(np.float32), "float64")

# Reductions: (axis, keepdims) are PyTorch's (dim, keepdim). Its max and min of ties are amax and amin.


def var(x, axis=None, keepdims=False, correction=1):
    return torch.var(x, axis, correction=correction, keepdim=keepdims)


REDUCTIONS = {
    **{"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin},
    **{"logsumexp": torch.logsumexp, "var": var},
}
for name, torch_fn in REDUCTIONS.items():
    for axis, keepdims in ((0, False), (-1, True), (1, False), ((0, 2), False), ((-1, 0), True), ((0, 1, 2), False)):
        case(name, f"axis {axis}, keepdims {keepdims}", torch_fn, normal(2, 3, 4), axis, keepdims)
    case(name, "everything", lambda x, f=torch_fn: f(x, (0, 1, 2), False), normal(2, 3, 4))
    case(name, "keepdims", lambda x, _, keep, f=torch_fn: f(x, (0, 1, 2), keep), normal(2, 3, 4), None, True)
    if name != "var":
        case(name, "ties share", torch_fn, whole(8, 9), 1, False)
        case(name, "ties over two axes share", torch_fn, whole(2, 5, 6), (0, 2), True)
        case(name, "of a scalar", lambda x, f=torch_fn: f(x, (), False), normal())
for correction in (0, 1, 2):
    for axis in (1, (0, 2), None):
        case("var", f"correction {correction}, axis {axis}", var, normal(3, 4, 5), axis, False, correction)
case("var", "far from zero", var, normal(3, 4) + 100, 1)
case("logsumexp", "without overflow", torch.logsumexp, 1000 * normal(3, 4), 1)
case("logsumexp", "with -inf", torch.logsumexp, np.where(np.eye(3) > 0, -np.inf, normal(3, 3)), 1)

# Shape

case("reshape", "", torch.reshape, normal(4, 3), (2, 6))
case("reshape", "-1", torch.reshape, normal(4, 3), (2, -1))
case("reshape", "separate numbers", lambda x, *shape: x.reshape(shape), normal(4, 3), 2, 3, 2)
case("reshape", "to a scalar", torch.reshape, normal(1, 1), ())
case("transpose", "", torch.permute, normal(2, 3, 4), (2, 0, 1))
case("transpose", "negative axes", torch.permute, normal(2, 3, 4), (-1, 0, -2))
case("transpose", "reversed", lambda x: x.permute(2, 1, 0), normal(2, 3, 4))
case("swapaxes", "", torch.swapaxes, normal(2, 3, 4), 0, -1)
case("broadcast_to", "new axes", torch.broadcast_to, normal(3, 1), (2, 3, 4))
case("broadcast_to", "a scalar", torch.broadcast_to, normal(), (2, 3))
case("concatenate", "", torch.concatenate, [normal(2, 3), normal(2, 0), normal(2, 1)], 1)
case("concatenate", "first axis", torch.concatenate, [normal(2, 3), normal(1, 3)])
case("concatenate", "negative axis", torch.concatenate, [normal(2, 3, 4), normal(2, 1, 4)], -2)
for axis in (0, 1, -1):
    case("stack", f"axis {axis}", torch.stack, [normal(2, 3), normal(2, 3), normal(2, 3)], axis)
case("split", "even", torch.split, normal(2, 6), 2, 1)
case("split", "a shorter last", torch.split, normal(5, 2), 2)
case("split", "sizes", torch.split, normal(2, 6, 3), [1, 3, 2], -2)

# Indexing. Negative steps are left out: PyTorch does not have them (tests of minigrad's own cover them).

for what, index in {
    "an integer": 1,
    "a negative integer": -1,
    "a slice": slice(1, 3),
    "a slice with a step": (slice(None), slice(None, None, 2)),
    "an empty slice": slice(2, 2),
    "ellipsis and None": (Ellipsis, None, 0),
    "an integer array": np.array([2, 0, 1]),
    "an array with repeats": np.array([[2, 0, 2], [2, -1, 2]]),
    "a list with repeats": [3, 0, 3],
    "two arrays with repeats": (np.array([0, 1, 0, 0]), np.array([4, 2, 4, -1])),
    "arrays that broadcast": (np.array([[0], [1]]), np.array([0, 0, 2])),
    "an array after a slice": (slice(1, None), np.array([1, 1, 3])),
    "an array before a slice": (np.array([1, 1, 3]), slice(0, 4, 3)),
    "arrays around a slice": (np.array([1, 1, 3]), slice(None), np.array([0, 0, 2])),
    "a mask": mask(4, 5, 3),
    "a mask of rows": mask(4),
    "a mask after a slice": (slice(None), mask(5)),
    "a mask of nothing": np.zeros((4, 5), bool),
}.items():
    case("getitem", what, lambda x, index: x[index], normal(4, 5, 3), index)
case("masked_fill", "", torch.masked_fill, normal(3, 4), mask(3, 4), -1.5)
case("masked_fill", "a broadcast mask", torch.masked_fill, normal(2, 3, 4), mask(3, 1), 0.0)
case("masked_fill", "minus infinity", torch.masked_fill, normal(3, 4), mask(3, 4), -np.inf)

# Matrix products

for a_shape, b_shape in (
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((2, 4), (4,)),
    ((2, 4), (4, 3)),
    ((4,), (5, 4, 3)),
    ((5, 2, 4), (4,)),
    ((5, 2, 4), (5, 4, 3)),
    ((5, 2, 4), (4, 3)),
    ((2, 4), (5, 4, 3)),
    ((6, 1, 2, 4), (5, 4, 3)),
    ((1, 4), (4, 1)),
    ((0, 4), (4, 3)),
):
    case("matmul", f"{a_shape} @ {b_shape}", torch.matmul, normal(*a_shape), normal(*b_shape))
for shape in ((4,), (3, 4), (2, 3, 4), (2, 0, 4)):
    case("linear", f"{shape}", TF.linear, normal(*shape), normal(5, 4), normal(5))
    case("linear", f"{shape}, no bias", TF.linear, normal(*shape), normal(5, 4))

# Networks

for name, torch_fn in {"softmax": torch.softmax, "log_softmax": torch.log_softmax}.items():
    case(name, "last axis is the default", lambda x, f=torch_fn: f(x, -1), normal(3, 4))
    case(name, "first axis", torch_fn, normal(3, 4, 2), 0)
    case(name, "without overflow", torch_fn, 1000 * normal(3, 4), -1)
    # A row of -inf throughout is left out: PyTorch gives NaN, minigrad zeros.
    case(name, "with -inf", torch_fn, np.where(np.eye(3) > 0, -np.inf, normal(3, 3)), -1)


images, kernels, biases = normal(2, 4, 7, 8), normal(6, 4, 3, 2), normal(6)
case("conv2d", "", TF.conv2d, images, kernels, biases)
case("conv2d", "one image, no bias", TF.conv2d, images[0], kernels)
case("conv2d", "no images", TF.conv2d, images[:0], kernels, biases)
case("conv2d", "stride, padding, dilation", TF.conv2d, images, kernels, biases, 2, 1, 2)
case("conv2d", "pairs and groups", TF.conv2d, images, kernels[:, :2], biases, (2, 1), (1, 2), (1, 2), 2)
case("conv2d", "depthwise", TF.conv2d, images, normal(8, 1, 3, 3), None, 1, 1, 1, 4)
case("conv2d", "same", TF.conv2d, images, normal(6, 4, 3, 5), biases, 1, "same", (2, 1))
case("conv2d", "valid", TF.conv2d, images, kernels, None, 2, "valid")
case("conv2d", "more padding than kernel", TF.conv2d, images, kernels, None, 1, 5)
case("max_pool2d", "", TF.max_pool2d, images, 2)
case("max_pool2d", "overlapping, padded", TF.max_pool2d, images, (3, 4), (2, 1), (1, 2))
case("max_pool2d", "the first of ties", TF.max_pool2d, whole(3, 9, 8), 3, 1, 1)
case("max_pool2d", "minus infinity", TF.max_pool2d, np.full((1, 4, 4), -np.inf), 3, 1, 1)
case("max_pool2d", "NaN", TF.max_pool2d, np.where(mask(3, 6, 8), np.nan, normal(3, 6, 8)), 3, 2, 1)
case("avg_pool2d", "", TF.avg_pool2d, images, 2)
case("avg_pool2d", "overlapping, padded", TF.avg_pool2d, images, (3, 4), (2, 1), (1, 2))


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    return TF.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x, weight=None, eps=1e-5):
    return TF.rms_norm(x, x.shape[-1:], weight, eps)


case("layer_norm", "", layer_norm, normal(2, 3, 8), normal(8), normal(8))
case("layer_norm", "weight alone", layer_norm, normal(2, 3, 8), normal(8))
case("layer_norm", "bias alone", layer_norm, normal(3, 8), None, normal(8))
case("layer_norm", "neither", layer_norm, normal(3, 8))
case("layer_norm", "one row", layer_norm, normal(8), normal(8), normal(8))
case("layer_norm", "another eps", layer_norm, normal(3, 8), normal(8), normal(8), 0.1)
case("layer_norm", "a constant row", layer_norm, np.array([[2.0] * 8, [0.0] * 8]), normal(8), normal(8))
case("rms_norm", "", rms_norm, normal(2, 3, 8), normal(8))
case("rms_norm", "no weight", rms_norm, normal(3, 8))
case("rms_norm", "one row", rms_norm, normal(8), normal(8))
case("rms_norm", "another eps", rms_norm, normal(3, 8), normal(8), 0.1)


def rotary(x, offset=0, base=10000.0):
    """Pairs of channels as complex numbers, multiplied by numbers of length 1."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(offset, offset + x.shape[-2]), base ** (-torch.arange(half) / half).double())
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


case("rotary", "", rotary, normal(2, 3, 5, 8))
case("rotary", "two axes, one pair", rotary, normal(4, 2))
case("rotary", "far out", rotary, normal(3, 5, 8), 12345)
case("rotary", "another base", rotary, normal(3, 5, 8), 7, 100.0)
case("embedding", "repeats", TF.embedding, np.array([[0, 4, 4], [4, 1, 0]]), normal(6, 3))
case("embedding", "one id", TF.embedding, np.array(2), normal(6, 3))
case("embedding", "no ids", TF.embedding, np.zeros((0, 3), int), normal(6, 3))
case("dropout", "p = 0", TF.dropout, normal(3, 4), 0.0)
case("dropout", "p = 1", TF.dropout, normal(3, 4), 1.0)
case("dropout", "not training", TF.dropout, normal(3, 4), 0.5, False)


def cross_entropy(logits, targets, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """PyTorch wants the classes on the second axis."""
    logits = logits.movedim(-1, 1) if logits.ndim > 1 else logits
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return TF.cross_entropy(logits, targets, **options)


case("cross_entropy", "mean is the default", cross_entropy, normal(4, 5), np.array([0, -100, 4, 2]))
for how in ("mean", "sum", "none"):
    for what, logits, targets, ignore_index in (
        ("rows", normal(4, 5), np.array([0, 4, 4, 2]), -100),
        ("one row", normal(5), np.array(3), -100),
        ("sequences", normal(2, 3, 5), np.array([[0, 4, 4], [1, 2, 3]]), -100),
        ("some ignored", normal(2, 3, 5), np.array([[0, -100, 4], [-100, 2, -100]]), -100),
        ("a class ignored", normal(4, 5), np.array([0, 4, 4, 2]), 4),
        ("large logits", 1000 * normal(4, 5), np.array([0, 4, 4, 2]), -100),
    ):
        case("cross_entropy", f"{how}: {what}", cross_entropy, logits, targets, ignore_index, how)
        case("cross_entropy", f"{how}: {what}, smoothed", cross_entropy, logits, targets, ignore_index, how, 0.1)
    case("cross_entropy", f"{how}: smoothed to the full", cross_entropy, normal(4, 5), np.arange(4), -100, how, 1.0)


def attention(q, k, v, causal=False, mask=None):
    """PyTorch aligns the first query with the first key, minigrad the last with the last: the same for equal lengths.
    For others, and beside a mask, what is causal is written into the mask."""
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and (mask is not None or queries != keys):
        past = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        causal, mask = False, past if mask is None else mask & past
    return TF.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def qkv(queries, keys, *leading):
    return normal(*leading, queries, 4), normal(*leading, keys, 4), normal(*leading, keys, 4)


SDPA = "scaled_dot_product_attention"
may_look = mask(2, 1, 6, 6) | np.eye(6, dtype=bool)  # every query may look at something
case(SDPA, "square", attention, *qkv(6, 6, 2, 3))
case(SDPA, "three axes", attention, *qkv(6, 6, 2))
case(SDPA, "two axes", attention, *qkv(6, 6))
case(SDPA, "values of another size", attention, normal(2, 6, 4), normal(2, 6, 4), normal(2, 6, 7))
case(SDPA, "more keys than queries", attention, *qkv(3, 7, 2, 3))
case(SDPA, "more queries than keys", attention, *qkv(7, 3, 2, 3))
case(SDPA, "causal", attention, *qkv(6, 6, 2, 3), True)
case(SDPA, "causal, one token", attention, *qkv(1, 1, 2, 3), True)
case(SDPA, "causal, one query sees all keys", attention, *qkv(1, 7, 2, 3), True)
case(SDPA, "causal, three queries after four keys", attention, *qkv(3, 7, 2, 3), True)
case(SDPA, "mask", attention, *qkv(6, 6, 2, 3), False, may_look)
case(SDPA, "mask of two axes", attention, *qkv(6, 6, 2, 3), False, may_look[0, 0])
case(SDPA, "mask of keys", attention, *qkv(3, 6, 2, 3), False, np.array([[True, True, False, True, False, True]]))
case(SDPA, "mask and causal", attention, *qkv(6, 6, 2, 3), True, may_look)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}: {case.what}" if case.what else case.name)
def test_function(case):
    assert_parity(getattr(F, case.name), case.torch_fn, case.arguments)


def test_every_function_is_in_the_table():
    public = {
        name
        for name, function in inspect.getmembers(F, inspect.isfunction)
        if function.__module__ == F.__name__ and not name.startswith("_")
    }
    not_mathematics = {"to"}  # moves between devices
    covered = {case.name for case in CASES}
    assert set(PROMISED) <= covered
    assert public - not_mathematics == covered


# The operators and methods of Tensor. PyTorch takes NumPy's names for axes, so that the same code runs on both.

a, b, x = positive(3, 1, 4), positive(2, 1), normal(2, 3, 4)
ints = np.arange(1, 5)
EXPRESSIONS = {
    "a + b": (lambda a, b: a + b, (a, b)),
    "a - b": (lambda a, b: a - b, (a, b)),
    "a * b": (lambda a, b: a * b, (a, b)),
    "a / b": (lambda a, b: a / b, (a, b)),
    "a ** b": (lambda a, b: a**b, (a, b)),
    "a @ b": (lambda a, b: a @ b, (normal(3, 4), normal(4, 2))),
    "-a": (lambda a: -a, (a,)),
    "abs(a)": (lambda a: abs(a), (whole(4, 5),)),
    "a + number": (lambda a: a + 2, (a,)),
    "a - number": (lambda a: a - 2, (a,)),
    "a * number": (lambda a: a * 2.5, (a,)),
    "a / number": (lambda a: a / 3, (a,)),
    "a ** number": (lambda a: a**1.5, (a,)),
    "number + a": (lambda a: 2 + a, (a,)),
    "number - a": (lambda a: 2 - a, (a,)),
    "number * a": (lambda a: 2.5 * a, (a,)),
    "number / a": (lambda a: 3 / a, (a,)),
    "number ** a": (lambda a: 2**a, (a,)),
    "array + a": (lambda array, a: array + a, (ints, a)),
    "array - a": (lambda array, a: array - a, (ints, a)),
    "array * a": (lambda array, a: array * a, (ints, a)),
    "array / a": (lambda array, a: array / a, (ints, a)),
    "array ** a": (lambda array, a: array**a, (ints, a)),
    "float32 keeps its dtype": (lambda a: 1.1 * a + 2 - a / 3, (a.astype(np.float32),)),
    "a tensor used many times": (lambda a: a * a + a / (a + 1) - a**3 * a, (a,)),
    "a diamond": (lambda a, b: (a * b) * (a + b) / (a * b + 1), (a, b)),
    "x.sum()": (lambda x: x.sum(), (x,)),
    "x.sum(axis, keepdims)": (lambda x: x.sum(axis=(0, 2), keepdims=True), (x,)),
    "x.mean()": (lambda x: x.mean(), (x,)),
    "x.mean(axis, keepdims)": (lambda x: x.mean(axis=1, keepdims=True), (x,)),
    "x.max()": (lambda x: x.max(), (x,)),
    "x.max() of ties": (lambda x: x.max(), (whole(6, 7),)),
    "x.min()": (lambda x: x.min(), (x,)),
    "x.min() of ties": (lambda x: x.min(), (whole(6, 7),)),
    "x.var()": (lambda x: x.var(), (x,)),
    "x.var(axis, correction)": (lambda x: x.var(axis=-1, correction=0, keepdims=True), (x,)),
    "x.reshape(numbers)": (lambda x: x.reshape(4, -1), (x,)),
    "x.reshape(tuple)": (lambda x: x.reshape((6, 4)), (x,)),
    "x.swapaxes(a, b)": (lambda x: x.swapaxes(0, -1), (x,)),
    "x.T": (lambda x: x.T, (normal(3, 4),)),
    "x[index]": (lambda x: x[1, :, 1:3], (x,)),
    "iteration": (lambda x: sum(i * row for i, row in enumerate(x)), (x,)),
    "x.detach()": (lambda x: x * x.detach(), (x,)),
}


@pytest.mark.parametrize(("expression", "inputs"), EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expression(expression, inputs):
    assert_parity(expression, expression, inputs)


DIFFERENTLY_NAMED = {
    "x.transpose()": (lambda x: x.transpose(), lambda x: x.permute(2, 1, 0)),
    "x.transpose(axes)": (lambda x: x.transpose(1, 2, 0), lambda x: x.permute(1, 2, 0)),
    "x.astype(dtype)": (lambda x: x.astype("float32"), lambda x: x.to(torch.float32)),
    "x.to(device)": (lambda x: 2 * x.to("cpu"), lambda x: 2 * x.to("cpu")),
    "x.max(axis, keepdims)": (lambda x: x.max(1, keepdims=True), lambda x: x.amax(1, keepdim=True)),
    "x.min(axis)": (lambda x: x.min((0, 2)), lambda x: x.amin((0, 2))),
}


@pytest.mark.parametrize(("ours", "theirs"), DIFFERENTLY_NAMED.values(), ids=DIFFERENTLY_NAMED)
def test_method_with_another_name(ours, theirs):
    assert_parity(ours, theirs, (x,))


@pytest.mark.parametrize("compare", [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
def test_comparison(compare):
    left, right = whole(4, 5), whole(5)
    for other in (right, 1.0):
        ours = compare(mg.Tensor(left), mg.Tensor(other) if isinstance(other, np.ndarray) else other)
        assert_close(ours, compare(torch.tensor(left), torch.tensor(other)), compare.__name__)


SUMS = {
    "sum": (lambda x, p: F.sum(x, 0), lambda x, p: x.sum(0)),
    "mean": (lambda x, p: F.mean(x, 0), lambda x, p: x.mean(0)),
    "bias": (lambda x, p: x + p, lambda x, p: x + p),
    "linear": (
        lambda x, p: F.linear(x, np.eye(64, dtype=x.dtype), p),
        lambda x, p: TF.linear(x, torch.eye(64).to(x), p),
    ),
    "rms_norm": (F.rms_norm, lambda x, p: TF.rms_norm(x, (64,), p, 1e-5)),
    "layer_norm": (F.layer_norm, lambda x, p: TF.layer_norm(x, (64,), p)),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("rows", [300, 1000, 4096])
def test_float32_sums_over_rows_lose_no_more_digits_than_pytorch_s(name, rows):
    """The worst error of values, and of the gradient of what all rows share, is at most three times as large."""
    x, p, g = (np.random.default_rng(rows).random(shape).astype("f") for shape in ((rows, 64), (64,), (rows, 64)))
    ours, theirs = SUMS[name]
    results = []
    for fn, dtype in ((theirs, torch.float64), (theirs, torch.float32)):
        a, b = torch.tensor(x, dtype=dtype), torch.tensor(p, dtype=dtype, requires_grad=True)
        y = fn(a, b)
        if y.requires_grad:
            y.backward(torch.tensor(g, dtype=dtype))
        results.append((y if b.grad is None else b.grad).detach().numpy())
    b = mg.Tensor(p, requires_grad=True)
    y = ours(mg.Tensor(x), b)
    if y.requires_grad:
        y.backward(g)
    results.append(y.data if b.grad is None else b.grad)
    exact, of_torch, of_ours = results
    assert largest(of_ours - exact) <= 3 * largest(of_torch - exact)
