"""At least one check for every operation: a function and inputs at which it is smooth.

Finite differences need a function without a kink within eps of the inputs, so `away_from(0, …)` keeps a distance.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import functional as F
from .. import ops, random
from ..autograd import Function


class Case(NamedTuple):
    operation: str  # the class in minigrad/ops
    what: str
    fn: Callable[..., Any]
    inputs: list[Any]


def operations() -> list[type[Function]]:
    """Every operation that minigrad defines."""
    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    found: list[type[Function]] = []
    waiting = Function.__subclasses__()
    while waiting:
        operation = waiting.pop()
        waiting += operation.__subclasses__()
        if operation.__module__.startswith(f"{ops.__name__}."):
            found.append(operation)
    return sorted(found, key=lambda operation: (operation.__module__, operation.__qualname__))


def seeded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the same random numbers at every call."""

    def call(*inputs: Any) -> Any:
        random.manual_seed(0)
        return fn(*inputs)

    return call


def cases() -> Iterator[Case]:
    """The checks, with inputs drawn from a fixed seed."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def positive(*shape: int) -> np.ndarray:
        return rng.uniform(0.5, 2, shape)

    def away_from(kink: float, *shape: int) -> np.ndarray:
        return kink + rng.choice([-1, 1], shape) * positive(*shape)

    def apart(*shape: int) -> np.ndarray:  # no two elements closer than 0.1
        return 0.1 * rng.permutation(np.arange(float(np.prod(shape)))).reshape(shape)

    a, b = normal(3, 1, 4), normal(2, 1)  # broadcast on both sides
    yield Case("Add", "broadcast", F.add, [a, b])
    yield Case("Subtract", "broadcast", F.subtract, [a, b])
    yield Case("Multiply", "broadcast", F.multiply, [a, b])
    yield Case("Divide", "broadcast", F.divide, [a, away_from(0, 2, 1)])
    yield Case("Power", "tensor ** tensor", F.power, [positive(3, 1, 4), b])
    yield Case("Power", "tensor ** number", lambda x: x**3 + x**2 + x**-1 + x**0, [away_from(0, 5)])
    yield Case("Power", "number ** tensor", lambda x: 2.5**x, [normal(5)])
    yield Case("Negative", "", F.negative, [normal(3)])
    yield Case("Exp", "", F.exp, [normal(3, 2)])
    yield Case("Log", "", F.log, [positive(3, 2)])
    yield Case("Sqrt", "", F.sqrt, [positive(3, 2)])
    yield Case("Absolute", "", F.abs, [away_from(0, 3, 2)])
    yield Case("Maximum", "broadcast", F.maximum, [normal(3, 1), normal(4)])
    yield Case("Minimum", "broadcast", F.minimum, [normal(3, 1), normal(4)])
    yield Case("Where", "broadcast", lambda x, y: F.where(np.eye(3) > 0, x, y), [normal(3, 1), normal(3)])
    yield Case("Clip", "", lambda x: F.clip(x, -1, 1), [np.array([-2.0, -0.5, 0.3, 1.7])])
    yield Case("Clip", "one bound", lambda x: F.clip(x, low=0), [away_from(0, 4)])
    yield Case("Tanh", "", F.tanh, [normal(3, 2)])
    yield Case("Sigmoid", "", F.sigmoid, [normal(3, 2)])
    yield Case("ReLU", "", F.relu, [away_from(0, 3, 2)])
    yield Case("SiLU", "", F.silu, [normal(3, 2)])
    yield Case("GELUTanh", "", F.gelu, [normal(3, 2)])
    yield Case("GELUErf", "", lambda x: F.gelu(x, "none"), [3 * normal(4, 3)])

    for name, reduction in (("Sum", F.sum), ("Mean", F.mean), ("Var", F.var), ("LogSumExp", F.logsumexp)):
        yield Case(name, "all axes", reduction, [normal(3, 4)])
        yield Case(name, "two axes", lambda x, f=reduction: f(x, (0, -1)), [normal(3, 2, 4)])
        yield Case(name, "keepdims", lambda x, f=reduction: f(x, 1, keepdims=True), [normal(3, 4)])
    yield Case("Max", "all axes", F.max, [apart(3, 4)])
    yield Case("Max", "one axis", lambda x: F.max(x, 0), [apart(3, 4)])
    yield Case("Min", "all axes", F.min, [apart(3, 4)])
    yield Case("Min", "one axis", lambda x: F.min(x, 0), [apart(3, 4)])

    yield Case("Reshape", "", lambda x: F.reshape(x, 2, -1), [normal(4, 3)])
    yield Case("Transpose", "", lambda x: F.transpose(x, 2, 0, 1), [normal(2, 3, 4)])
    yield Case("Transpose", "swapaxes", lambda x: F.swapaxes(x, 0, -1), [normal(2, 3, 4)])
    yield Case("BroadcastTo", "", lambda x: F.broadcast_to(x, (2, 3, 4)), [normal(3, 1)])
    yield Case("Concatenate", "", lambda *xs: F.concatenate(xs, 1), [normal(2, 3), normal(2, 0), normal(2, 1)])
    yield Case("Concatenate", "stack", lambda *xs: F.stack(xs, -1), [normal(2, 3), normal(2, 3)])
    yield Case("Split", "", lambda x: F.split(x, 2, 1), [normal(2, 5)])
    yield Case("Split", "one part unused", lambda x: F.split(x, 2, 1)[1], [normal(2, 5)])
    yield Case("Astype", "", lambda x: F.astype(x, np.longdouble), [normal(2, 5)])
    yield Case("ToDevice", "", lambda x: ops.shape.ToDevice.apply(x, "cpu"), [normal(3)])
    yield Case("GetItem", "slices", lambda x: x[1:, None, ::-2], [normal(3, 5)])
    yield Case("GetItem", "repeated indices", lambda x: x[[0, 2, 0, 0], [1, 1, 1, -4]], [normal(3, 5)])
    yield Case("GetItem", "mask", lambda x: x[np.eye(3) > 0], [normal(3, 3)])
    yield Case("MaskedFill", "", lambda x: F.masked_fill(x, np.eye(3) > 0, -np.inf).max(0), [apart(3, 3)])

    yield Case("MatMul", "batched, broadcast", F.matmul, [normal(2, 1, 3, 4), normal(3, 4, 2)])
    yield Case("MatMul", "vector @ matrix", F.matmul, [normal(4), normal(2, 4, 3)])
    yield Case("MatMul", "vector @ vector", F.matmul, [normal(4), normal(4)])
    yield Case("Linear", "", F.linear, [normal(2, 3, 4), normal(5, 4), normal(5)])
    yield Case("Softmax", "", F.softmax, [normal(3, 4)])
    yield Case("Softmax", "first axis", lambda x: F.softmax(x, 0), [normal(3, 4)])
    yield Case("LogSoftmax", "", F.log_softmax, [normal(3, 4)])
    yield Case("LayerNorm", "", F.layer_norm, [normal(2, 3, 4), normal(4), normal(4)])
    yield Case("RMSNorm", "", F.rms_norm, [normal(2, 3, 4), normal(4)])
    ids = rng.integers(0, 5, (3, 4))  # 12 ids of 5 kinds: some repeat
    yield Case("Embedding", "repeated ids", lambda w: F.embedding(ids, w), [normal(5, 2)])
    yield Case("Dropout", "", seeded(lambda x: F.dropout(x, 0.4)), [normal(3, 4)])
    targets = np.array([0, 4, -100, 4])
    for how in ("mean", "sum", "none"):
        yield Case("CrossEntropy", how, lambda x, how=how: F.cross_entropy(x, targets, reduction=how), [normal(4, 5)])
        smoothed = lambda x, how=how: F.cross_entropy(x, targets, reduction=how, label_smoothing=0.3)  # noqa: E731
        yield Case("CrossEntropy", f"{how}, label smoothing", smoothed, [normal(4, 5)])

    qkv = [normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 4)]
    attention = F.scaled_dot_product_attention
    yield Case("Attention", "", attention, qkv)
    yield Case("Attention", "causal", lambda q, k, v: attention(q, k, v, causal=True), qkv)
    mask = rng.random((3, 5)) < 0.5
    mask[1] = False  # a query that may attend to no key
    yield Case("Attention", "mask", lambda q, k, v: attention(q, k, v, mask=mask), qkv)
    yield Case("Attention", "dropout", seeded(lambda q, k, v: attention(q, k, v, True, dropout_p=0.3)), qkv)
    yield Case("Attention", "shared queries", attention, [normal(3, 4), normal(2, 3, 4), normal(2, 3, 4)])

    yield Case("SquaredReLU", "", F.squared_relu, [away_from(0, 3, 2)])
    yield Case("Rotary", "", F.rotary, [normal(2, 3, 4)])
    yield Case("Rotary", "offset and base", lambda x: F.rotary(x, 5, base=10.0), [normal(3, 6)])
    yield Case("Softplus", "", F.softplus, [3 * normal(3, 2)])

    image = normal(2, 4, 5, 6)
    settings: Any = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    yield Case("Conv2d", "", F.conv2d, [image, normal(3, 4, 3, 2), normal(3)])
    yield Case("Conv2d", "all settings", lambda x, w: F.conv2d(x, w, **settings), [image, normal(6, 2, 3, 2)])
    yield Case("Conv2d", "same size", lambda x, w: F.conv2d(x, w, padding="same"), [image[0], normal(2, 4, 2, 3)])
    yield Case("MaxPool2d", "", lambda x: F.max_pool2d(x, 2), [apart(2, 3, 4, 5)])
    yield Case("MaxPool2d", "overlapping, padded", lambda x: F.max_pool2d(x, (3, 2), 1, (1, 0)), [apart(2, 4, 3)])
    yield Case("AvgPool2d", "overlapping, padded", lambda x: F.avg_pool2d(x, 3, 2, 1), [normal(2, 3, 4, 5)])
    pixels = lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)  # noqa: E731
    yield Case("AvgPool2d", "without the padding", pixels, [normal(2, 4, 5)])
