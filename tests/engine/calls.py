"""A typical call of every function in `minigrad.functional`, for the tests that hold for all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minigrad import functional as F
from tests.shapes import distinct, nonzero, normal, positive


class Call(NamedTuple):
    fn: Callable[..., Any]
    inputs: list[np.ndarray]  # floating: takes gradients, and any floating dtype will do; others are passed as they are


ids = np.array([[0, 2, 2], [1, 0, 4]])
mask = np.array([[True, False, True], [False, False, True]])
x, a, b = normal((2, 3)), nonzero((2, 1), 1), nonzero((3,), 2)
qkv = [normal((2, 4, 3), 3), normal((2, 5, 3), 4), normal((2, 5, 3), 5)]

CALLS = {
    "add": Call(F.add, [a, b]),
    "subtract": Call(F.subtract, [a, b]),
    "multiply": Call(F.multiply, [a, b]),
    "divide": Call(F.divide, [a, b]),
    "power": Call(F.power, [positive((2, 1)), b]),
    "power number": Call(
        lambda x: F.power(x, 3) + F.power(x, 0) + F.power(x, -1.5) + F.power(2, x), [positive((2, 3))]
    ),
    "negative": Call(F.negative, [x]),
    "exp": Call(F.exp, [x]),
    "log": Call(F.log, [positive((2, 3))]),
    "sqrt": Call(F.sqrt, [positive((2, 3))]),
    "abs": Call(F.abs, [nonzero((2, 3))]),
    "maximum": Call(F.maximum, [a, b]),
    "minimum": Call(F.minimum, [a, b]),
    "where": Call(lambda x, y: F.where(mask, x, y), [a, b]),
    "clip": Call(lambda x: F.clip(x, -0.5, 0.5), [x]),
    "astype": Call(lambda x: F.astype(x, x.dtype), [x]),
    "to": Call(lambda x: F.to(x, "cpu"), [x]),
    "tanh": Call(F.tanh, [x]),
    "sigmoid": Call(F.sigmoid, [x]),
    "relu": Call(F.relu, [nonzero((2, 3))]),
    "squared_relu": Call(F.squared_relu, [x]),
    "gelu": Call(F.gelu, [x]),
    "gelu none": Call(lambda x: F.gelu(x, approximate="none"), [x]),
    "silu": Call(F.silu, [x]),
    "softplus": Call(F.softplus, [x]),
    "sum": Call(F.sum, [x]),
    "sum axis": Call(lambda x: F.sum(x, 0), [x]),
    "mean": Call(F.mean, [x]),
    "mean axis": Call(lambda x: F.mean(x, -1, keepdims=True), [x]),
    "max": Call(F.max, [distinct((2, 3))]),
    "min": Call(lambda x: F.min(x, 0), [distinct((2, 3))]),
    "var": Call(F.var, [x]),
    "var axis": Call(lambda x: F.var(x, 1, correction=0), [x]),
    "logsumexp": Call(F.logsumexp, [x]),
    "logsumexp axis": Call(lambda x: F.logsumexp(x, 1), [x]),
    "reshape": Call(lambda x: F.reshape(x, 3, -1), [x]),
    "transpose": Call(F.transpose, [x]),
    "swapaxes": Call(lambda x: F.swapaxes(x, 0, 2), [normal((2, 3, 4))]),
    "broadcast_to": Call(lambda x: F.broadcast_to(x, (4, 2, 3)), [a]),
    "concatenate": Call(lambda *xs: F.concatenate(xs, axis=1), [x, a]),
    "stack": Call(lambda *xs: F.stack(xs, axis=-1), [x, normal((2, 3), 6)]),
    "split": Call(lambda x: F.split(x, 2, axis=1), [x]),
    "getitem": Call(lambda x: F.getitem(x, (slice(None), [0, 2, 0])), [x]),
    "masked_fill": Call(lambda x: F.masked_fill(x, mask, -7.0), [x]),
    "matmul": Call(F.matmul, [normal((2, 1, 3, 4)), normal((2, 4, 2), 1)]),
    "linear": Call(F.linear, [normal((2, 3, 4)), normal((5, 4), 1), normal((5,), 2)]),
    "conv2d": Call(F.conv2d, [normal((2, 4, 5, 6)), normal((3, 4, 2, 3), 1), normal((3,), 2)]),
    "conv2d grouped": Call(
        lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), groups=2),
        [normal((2, 4, 5, 6)), normal((6, 2, 3, 2), 1)],
    ),
    "max_pool2d": Call(lambda x: F.max_pool2d(x, 3, 2, 1), [distinct((2, 3, 5, 6))]),
    "avg_pool2d": Call(lambda x: F.avg_pool2d(x, 3, 2, 1), [normal((2, 3, 5, 6))]),
    "avg_pool2d of pixels": Call(
        lambda x: F.avg_pool2d(x, (3, 2), 1, (1, 0), count_include_pad=False), [normal((3, 5, 6))]
    ),
    "softmax": Call(F.softmax, [x]),
    "log_softmax": Call(lambda x: F.log_softmax(x, axis=0), [x]),
    "layer_norm": Call(F.layer_norm, [normal((2, 3, 4)), normal((4,), 1), normal((4,), 2)]),
    "rms_norm": Call(F.rms_norm, [normal((2, 3, 4)), normal((4,), 1)]),
    "rotary": Call(lambda x: F.rotary(x, 3), [normal((2, 5, 4))]),
    "embedding": Call(F.embedding, [ids, normal((5, 4))]),
    "dropout": Call(lambda x: F.dropout(x, 0.3), [x]),
    "cross_entropy": Call(F.cross_entropy, [normal((2, 3, 5)), ids]),
    "cross_entropy smoothed": Call(lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1), [normal((2, 3, 5)), ids]),
    "cross_entropy none": Call(lambda x, t: F.cross_entropy(x, t, reduction="none"), [normal((2, 3, 5)), ids]),
    "scaled_dot_product_attention": Call(F.scaled_dot_product_attention, qkv),
    "scaled_dot_product_attention causal": Call(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, causal=True, dropout_p=0.2), qkv
    ),
}
