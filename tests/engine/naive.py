"""A naive engine to compare with: an array is a NumPy array of scalars, and every scalar keeps its own derivatives.

Nothing of minigrad is used. A scalar knows the scalars that it was computed from and the derivative by each of them. So
broadcasting, indexing, matrix products and views are NumPy's own, on arrays of objects, and only a handful of scalar
operations have a derivative. The functions have the names and the arguments of `minigrad.functional`.
"""

import builtins
import itertools
import math

import numpy as np

_numbers = itertools.count()


def is_array(x):
    return isinstance(x, np.ndarray) and x.ndim > 0


def binary(method):
    """An operator with a number or a scalar on its right. With an array, the array's own operator takes over."""
    return lambda self, other: NotImplemented if is_array(other) else method(self, scalar(other))


class Scalar:
    """A number, and (scalar, derivative) for everything it was computed from. Younger scalars have larger numbers."""

    __slots__ = ("value", "parents", "number")

    def __init__(self, value, *parents):
        self.value, self.parents, self.number = float(value), parents, next(_numbers)

    __add__ = __radd__ = binary(lambda a, b: Scalar(a.value + b.value, (a, 1.0), (b, 1.0)))
    __mul__ = __rmul__ = binary(lambda a, b: Scalar(a.value * b.value, (a, b.value), (b, a.value)))
    __sub__ = binary(lambda a, b: a + b * -1)
    __rsub__ = binary(lambda a, b: b + a * -1)
    __truediv__ = binary(lambda a, b: a * b**-1)
    __rtruediv__ = binary(lambda a, b: b * a**-1)

    def __neg__(self):
        return self * -1

    def __pow__(self, k):
        return Scalar(self.value**k, (self, k * self.value ** (k - 1)))

    def exp(self):
        return Scalar(math.exp(self.value), (self, math.exp(self.value)))

    def log(self):
        return Scalar(math.log(self.value), (self, 1 / self.value))

    def erf(self):
        return Scalar(math.erf(self.value), (self, 2 / math.sqrt(math.pi) * math.exp(-(self.value**2))))

    def tanh(self):
        return Scalar(math.tanh(self.value), (self, 1 - math.tanh(self.value) ** 2))


def scalar(x):
    x = x[()] if isinstance(x, np.ndarray) else x  # NumPy's functions of 0-d arrays return what is in them
    return x if isinstance(x, Scalar) else Scalar(x)


def largest(*scalars):
    """The maximum. Scalars that tie share the gradient equally."""
    top = builtins.max(s.value for s in scalars)
    ties = [s for s in scalars if s.value == top]
    return Scalar(top, *((s, 1 / len(ties)) for s in ties))


def leaf(array):
    return np.array(np.frompyfunc(Scalar, 1, 1)(array), object)


def array_of(result):
    """What a function below returned, as an array of scalars."""
    return np.array(np.frompyfunc(scalar, 1, 1)(result), object)


def values(x):
    return np.array(np.frompyfunc(lambda s: scalar(s).value, 1, 1)(x), float)


def detach(x):
    return leaf(values(x))


def replace(x, array):
    """x with other values, through which the gradient passes as it is: a write that is not recorded."""
    return np.array(np.frompyfunc(lambda s, value: Scalar(value, (s, 1.0)), 2, 1)(x, array), object)


def gradients(root, g, leaves):
    """For each leaf dL/dleaf, where g is dL/droot, and the same sum with every term made positive.

    The second is the scale of the rounding errors in the first.
    """
    found = {s: [0.0, 0.0] for s in root.flat}
    for s, g_s in zip(root.flat, np.asarray(g).flat, strict=True):  # a broadcast root has one scalar in many places
        found[s][0] += g_s
        found[s][1] += builtins.abs(g_s)
    waiting = list(found)
    while waiting:
        for parent, _ in waiting.pop().parents:
            if parent not in found:
                found[parent] = [0.0, 0.0]
                waiting.append(parent)
    for s in sorted(found, key=lambda s: s.number, reverse=True):  # whatever uses s is younger, so it came before
        for parent, slope in s.parents:
            found[parent][0] += found[s][0] * slope
            found[parent][1] += found[s][1] * builtins.abs(slope)
    zero = [0.0, 0.0]
    return [np.array([found.get(s, zero) for s in x.flat]).T.reshape(2, *x.shape) for x in leaves]


# The functions of minigrad.functional

exp, log, tanh, erf = np.exp, np.log, np.tanh, np.frompyfunc(Scalar.erf, 1, 1)
maximum = np.frompyfunc(lambda a, b: largest(scalar(a), scalar(b)), 2, 1)
add, subtract, multiply, divide, negative = np.add, np.subtract, np.multiply, np.divide, np.negative
reshape, swapaxes, concatenate, stack, broadcast_to = np.reshape, np.swapaxes, np.concatenate, np.stack, np.broadcast_to
sum, matmul = np.sum, np.matmul


def where(mask, x, y):
    return array_of(np.where(mask, x, y))


def minimum(a, b):
    return -maximum(-a, -b)


def power(a, b):
    return a**b if isinstance(b, (int, float)) else exp(np.multiply(b, log(a)))


def sqrt(x):
    return x**0.5


def abs(x):
    return maximum(x, 0) - minimum(x, 0)


def clip(x, low, high):
    return where(values(x) < low, low, where(values(x) > high, high, x))


def sigmoid(x):
    return 1 / (1 + exp(-x))


def relu(x):
    return where(values(x) > 0, x, 0 * x)


def squared_relu(x):
    return relu(x) * relu(x)


def gelu(x, approximate="tanh"):
    if approximate == "none":
        return 0.5 * x * (1 + erf(x * 0.5**0.5))
    return 0.5 * x * (1 + tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return log(1 + exp(x))


def rows(x, axis, keepdims):
    """x with the reduced axes joined as the last one, and the shape of the result."""
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in np.atleast_1d(axis)]
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes]
    return x.transpose(*kept, *axes).reshape(*(x.shape[a] for a in kept), -1), shape


def max(x, axis=None, keepdims=False):
    joined, shape = rows(x, axis, keepdims)
    return np.array([largest(*row) for row in joined.reshape(-1, joined.shape[-1])], object).reshape(shape)


def min(x, axis=None, keepdims=False):
    return -max(-x, axis, keepdims)


def mean(x, axis=None, keepdims=False):
    joined, shape = rows(x, axis, keepdims)
    return np.reshape(joined.sum(-1) / joined.shape[-1], shape)


def var(x, axis=None, keepdims=False, correction=1):
    joined, shape = rows(x, axis, keepdims)
    centered = joined - mean(joined, -1, True)
    return np.reshape((centered * centered).sum(-1) / (joined.shape[-1] - correction), shape)


def logsumexp(x, axis=None, keepdims=False):
    return log(sum(exp(x), axis=axis, keepdims=keepdims))


def transpose(x, *axes):
    return x.transpose(*axes)


def getitem(x, index):
    return x[index]


def split(x, size, axis):
    return np.split(x, range(size, x.shape[axis], size), axis)


def linear(x, weight, bias):
    return x @ weight.T + bias


def softmax(x, axis=-1):
    return exp(x) / exp(x).sum(axis=axis, keepdims=True)


def log_softmax(x, axis=-1):
    return log(softmax(x, axis))


def layer_norm(x, weight, bias, eps=1e-5):
    return (x - mean(x, -1, True)) / sqrt(var(x, -1, True, 0) + eps) * weight + bias


def rms_norm(x, weight, eps=1e-5):
    return x / sqrt(mean(x * x, -1, True) + eps) * weight


def embedding(ids, weight):
    return weight[ids]


def masked_fill(x, mask, value):
    return where(mask, value, x)


def cross_entropy(logits, targets):
    flat = log_softmax(logits).reshape(-1, logits.shape[-1])
    return -flat[np.arange(targets.size), targets.reshape(-1)].sum() / targets.size


def scaled_dot_product_attention(q, k, v, causal=False):
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    future = np.triu(np.ones(scores.shape[-2:], bool), 1 + k.shape[-2] - q.shape[-2]) & causal
    return softmax(where(future, -1e30, scores)) @ v
