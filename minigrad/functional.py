"""What users call: one function for each operation, taking and returning tensors.

    from minigrad import functional as F
    y = F.softmax(F.linear(x, weight, bias), axis=-1)

The mathematics and the backward passes are in `minigrad/ops/`, one class for each operation. Every function also takes
an array, a list or a number in place of a tensor; these get no gradient. Inputs are never changed, and every result is
a new tensor, except where there is nothing to do (`astype`, `to`, `dropout`).

dtypes: Python numbers, NumPy scalars, and 0-d arrays and tensors adopt the dtype of the tensor they meet. So do integer
tensors that meet floating-point ones (PyTorch's rules). Elementwise operations on float32 and float64 give float64, as
in NumPy; so do an integer tensor and a Python float. Matrix products and the functions of layers raise TypeError unless
all of their inputs have one dtype.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import hints
from .arguments import (
    Axis,
    boolean_mask,
    check_same_dtype,
    constant,
    floating,
    normalize_axes,
    normalize_axis,
    number,
    operand,
    pair,
    plain_index,
    promote,
    reduced_axes,
    shape_of,
    unpack,
)
from .autograd import Variable, describe, new_variable
from .backend import DType, as_array, as_dtype, check_device, device_of, is_array, kind_of
from .modes import is_recording
from .ops import activation, attention, convolution, elementwise, indexing, loss, normalization, reduce
from .ops import dropout as dropout_op
from .ops import embedding as embedding_op
from .ops import matmul as matmul_op
from .ops import rotary as rotary_op
from .ops import shape as shape_op
from .ops import softmax as softmax_op

if TYPE_CHECKING:
    from .tensor import Tensor

globals()["__getattr__"] = hints.of_module(__name__, hints.FUNCTIONAL)

# Elementwise


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast against each other."""
    return elementwise.Add.apply(*promote(a, b))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, broadcast against each other."""
    return elementwise.Subtract.apply(*promote(a, b))


def multiply(a: Any, b: Any) -> Tensor:
    """a b, element by element, broadcast against each other."""
    return elementwise.Multiply.apply(*promote(a, b))


def divide(a: Any, b: Any) -> Tensor:
    """a / b, element by element, broadcast against each other."""
    return elementwise.Divide.apply(*promote(a, b))


def power(a: Any, b: Any) -> Tensor:
    """a^b, element by element, broadcast against each other."""
    return elementwise.Power.apply(*promote(a, b))


def negative(x: Any) -> Tensor:
    """-x."""
    return elementwise.Negative.apply(operand(x))


def exp(x: Any) -> Tensor:
    """e^x."""
    return elementwise.Exp.apply(operand(x))


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return elementwise.Log.apply(operand(x))


def sqrt(x: Any) -> Tensor:
    """The square root."""
    return elementwise.Sqrt.apply(operand(x))


def abs(x: Any) -> Tensor:
    """|x|; the gradient at 0 is 0."""
    return elementwise.Absolute.apply(operand(x))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b, element by element; at a tie each gets half of the gradient. NaN if a or b is NaN."""
    return elementwise.Maximum.apply(*promote(a, b))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b, element by element; at a tie each gets half of the gradient. NaN if a or b is NaN."""
    return elementwise.Minimum.apply(*promote(a, b))


def where(mask: Any, x: Any, y: Any) -> Tensor:
    """x where the boolean mask is true, y elsewhere; all three broadcast."""
    mask = boolean_mask("where", mask)
    x, y = promote(x, y)
    if not isinstance(x, Variable) and not isinstance(y, Variable) and not is_array(x) and not is_array(y):
        x = as_array([x, y], device=device_of(mask))[0, ...]  # in the dtype that holds both
    return elementwise.Where.apply(mask, x, y)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """x, but at least `low` and at most `high`; the gradient is 0 outside."""
    low, high = number(low), number(high)
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        raise TypeError(f"clip: expected numbers or None as bounds, got {describe(low)} and {describe(high)}")
    return elementwise.Clip.apply(operand(x), low, high)


def astype(x: Any, dtype: DType) -> Tensor:
    """x in another dtype, or x itself if it already has it. The gradient is converted back."""
    dtype = as_dtype(dtype)
    if kind_of(dtype) not in "biuf":
        raise TypeError(f"astype: a tensor holds real numbers or booleans, not {dtype}")
    x = operand(x)
    if not isinstance(x, Variable):
        return new_variable(x.astype(dtype))
    return cast("Tensor", x) if x.data.dtype == dtype else shape_op.Astype.apply(x, dtype)


def to(x: Any, device: str) -> Tensor:
    """x on another device, or x itself if it is already there. The gradient is moved back."""
    check_device(device)
    x = x if isinstance(x, Variable) else new_variable(operand(x))
    here = device_of(x.data)
    if here == device or (device == "cuda" and here.startswith("cuda")):
        return cast("Tensor", x)
    return shape_op.ToDevice.apply(x, device)


# Activations


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return activation.Tanh.apply(operand(x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x)."""
    return activation.Sigmoid.apply(floating(x))


def relu(x: Any) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return activation.ReLU.apply(operand(x))


def squared_relu(x: Any) -> Tensor:
    """max(x, 0)^2 (So et al., 2021)."""
    return activation.SquaredReLU.apply(operand(x))


def gelu(x: Any, approximate: str = "tanh") -> Tensor:
    """GELU, x Phi(x): GPT-2's tanh form, or with `approximate="none"` the exact one (Hendrycks and Gimpel, 2016)."""
    forms = {"tanh": activation.GELUTanh, "none": activation.GELUErf}
    if approximate not in forms:
        raise ValueError(f'gelu: expected approximate="tanh" or "none", got {approximate!r}')
    return forms[approximate].apply(floating(x))


def silu(x: Any) -> Tensor:
    """x sigmoid(x), also called swish."""
    return activation.SiLU.apply(floating(x))


def softplus(x: Any) -> Tensor:
    """ln(1 + e^x), a smooth form of max(x, 0) (Dugas et al., 2001)."""
    return activation.Softplus.apply(floating(x))


# Reductions


@hints.keywords
def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (None: over everything)."""
    x = operand(x)
    return reduce.Sum.apply(x, reduced_axes("sum", x, axis), keepdims)


@hints.keywords
def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (None: over everything)."""
    x = operand(x)
    return reduce.Mean.apply(x, reduced_axes("mean", x, axis), keepdims)


@hints.keywords
def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; several that tie share the gradient equally."""
    x = operand(x)
    return reduce.Max.apply(x, reduced_axes("max", x, axis), keepdims)


@hints.keywords
def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; several that tie share the gradient equally."""
    x = operand(x)
    return reduce.Min.apply(x, reduced_axes("min", x, axis), keepdims)


@hints.keywords
def var(x: Any, axis: Axis = None, keepdims: bool = False, correction: float = 1) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, divided by n - correction.

    ValueError if n is not larger than the correction.
    """
    x = operand(x)
    return reduce.Var.apply(x, reduced_axes("var", x, axis), keepdims, number(correction))


@hints.keywords
def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """ln(sum of e^x) over `axis`, without overflow. Of no elements it is -inf."""
    x = floating(x)
    return reduce.LogSumExp.apply(x, reduced_axes("logsumexp", x, axis), keepdims)


# Shape


def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements in another shape, given as numbers or as one tuple. One of the numbers may be -1."""
    return shape_op.Reshape.apply(operand(x), unpack(shape))


def transpose(x: Any, *axes: Any) -> Tensor:
    """x with its axes in another order; without `axes`, in reverse order."""
    x = operand(x)
    order = unpack(axes) if axes else range(len(shape_of(x)))[::-1]
    try:
        return shape_op.Transpose.apply(x, normalize_axes("transpose", x, order))
    except ValueError as error:
        message = f"{error}; expected every axis once, in the new order; swapaxes(a, b) exchanges two axes"
        raise ValueError(message) from error


def swapaxes(x: Any, a: int, b: int) -> Tensor:
    """x with two axes exchanged."""
    x = operand(x)
    order = list(range(len(shape_of(x))))
    a, b = normalize_axis("swapaxes", x, a), normalize_axis("swapaxes", x, b)
    order[a], order[b] = b, a
    return shape_op.Transpose.apply(x, order)


def broadcast_to(x: Any, shape: int | Sequence[int]) -> Tensor:
    """x repeated along new axes, and along axes of size 1, to the given shape."""
    shape = (shape,) if isinstance(shape, (int, np.integer)) else shape
    return shape_op.BroadcastTo.apply(operand(x), tuple(shape))


@hints.keywords
def concatenate(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors joined end to end along an axis that they all have. Their other axes must agree."""
    tensors = [operand(x) for x in tensors]
    if not tensors:
        raise ValueError("concatenate: expected at least one tensor, got none")
    check_same_dtype("concatenate", *tensors)
    return shape_op.Concatenate.apply(normalize_axis("concatenate", tensors[0], axis), *tensors)


@hints.keywords
def stack(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    tensors = [operand(x) for x in tensors]
    shapes = {shape_of(x) for x in tensors}
    if len(shapes) != 1:
        raise ValueError(f"stack: expected at least one tensor, and all of one shape, got {sorted(shapes)}")
    (shape,) = shapes
    if not -len(shape) - 1 <= axis <= len(shape):
        raise ValueError(f"stack: axis {axis} is out of range for tensors of shape {shape}")
    axis %= len(shape) + 1
    check_same_dtype("stack", *tensors)
    return concatenate([reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in tensors], axis)


@hints.keywords
def split(x: Any, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """x cut along `axis` into parts of length `size` (the last may be shorter), or of the given sizes."""
    x = operand(x)
    axis = normalize_axis("split", x, axis)
    n = shape_of(x)[axis]
    if isinstance(size, (int, np.integer)):
        if size < 1:
            raise ValueError(f"split: expected a size of at least 1, got {size}")
        size = [builtins.min(size, n - start) for start in range(0, builtins.max(n, 1), size)]
    return shape_op.Split.apply(x, list(size), axis)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index], with all of NumPy's indexing. Where an index repeats a place, its gradients are added up."""
    x = operand(x)
    return indexing.GetItem.apply(x, plain_index(index, device_of(x.data if isinstance(x, Variable) else x)))


def masked_fill(x: Any, mask: Any, value: float) -> Tensor:
    """x with `value` written where the boolean mask, which broadcasts to the shape of x, is true."""
    mask = boolean_mask("masked_fill", mask)
    if isinstance(value, Variable):
        if value.requires_grad and is_recording():
            raise TypeError("masked_fill: value gets no gradient, but it requires one; use where(mask, value, x)")
        value = value.item()
    return indexing.MaskedFill.apply(operand(x), mask, value)


# Matrix products


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product over the last two axes, (…, M, K) @ (…, K, N) -> (…, M, N). 1-D operands work as in NumPy."""
    a, b = operand(a), operand(b)
    check_same_dtype("matmul", a, b)
    return matmul_op.MatMul.apply(a, b)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x W^T + b: x (…, I), weight (O, I), bias (O,) or None -> (…, O)."""
    x, weight, bias = operand(x), operand(weight), bias if bias is None else operand(bias)
    check_same_dtype("linear", x, weight, bias)
    return matmul_op.Linear.apply(x, weight, bias)


# Networks


@hints.keywords
def softmax(x: Any, axis: int = -1) -> Tensor:
    """e^x / sum of e^x along `axis`. A row in which every element is -inf gives zeros."""
    x = floating(x)
    return softmax_op.Softmax.apply(x, normalize_axis("softmax", x, axis))


@hints.keywords
def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """ln softmax(x) along `axis`, without underflow or overflow."""
    x = floating(x)
    return softmax_op.LogSoftmax.apply(x, normalize_axis("log_softmax", x, axis))


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Every output is the sum of a window's pixels, weighted by one of O kernels, and the kernel's bias.

    x (…, C, H, W); weight (O, C / groups, kh, kw); bias (O,) or None -> (…, O, P, Q), with
    P = floor((H + 2 padding - dilation (kh - 1) - 1) / stride) + 1, and Q likewise.
    stride, padding and dilation: one number, or one for each axis. padding="same" pads so that P = H and Q = W, with
    the larger half at the end, and needs a stride of 1; "valid" is no padding.
    groups: channels and outputs are cut into so many parts, and each part of the outputs sees its part of the channels.
    """
    x, weight, bias = operand(x), operand(weight), bias if bias is None else operand(bias)
    check_same_dtype("conv2d", x, weight, bias)
    stride, dilation = pair("conv2d", "stride", stride, 1), pair("conv2d", "dilation", dilation, 1)
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"conv2d: expected groups of at least 1, got {groups!r}")
    if padding == "same" and stride != (1, 1):
        raise ValueError(f'conv2d: expected a stride of 1 for padding="same", got {stride}')
    if padding == "same":
        added = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[-2:], strict=False)]
        both_sides = tuple((n // 2, n - n // 2) for n in added)
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f'conv2d: expected padding="same", "valid" or numbers, got {padding!r}')
    else:
        both_sides = tuple((n, n) for n in pair("conv2d", "padding", 0 if padding == "valid" else padding, 0))
    return convolution.Conv2d.apply(x, weight, bias, stride, both_sides, dilation, int(groups))


def max_pool2d(
    x: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> Tensor:
    """The largest pixel in each window of an image: x (…, H, W) -> (…, P, Q), with P and Q as in `conv2d`.

    stride: kernel_size unless it is given. padding: of at most half of kernel_size; never the largest.
    Of equal pixels the first in a window, row by row, gets the gradient.
    """
    return convolution.MaxPool2d.apply(operand(x), *_pooling("max_pool2d", kernel_size, stride, padding))


def avg_pool2d(
    x: Any,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    *,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of an image: x (…, H, W) -> (…, P, Q), with P and Q as in `conv2d`.

    stride: kernel_size unless it is given. padding: of at most half of kernel_size.
    count_include_pad: pixels of the padding count, as zeros; otherwise the mean is of the image's pixels alone.
    """
    window = _pooling("avg_pool2d", kernel_size, stride, padding)
    return convolution.AvgPool2d.apply(operand(x), *window, bool(count_include_pad))


def _pooling(operation: str, kernel_size: Any, stride: Any, padding: Any) -> tuple[tuple[int, int], ...]:
    """The settings of pooling as pairs."""
    kernel = pair(operation, "kernel_size", kernel_size, 1)
    return kernel, pair(operation, "stride", stride, 1) if stride else kernel, pair(operation, "padding", padding, 0)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Each row along the last axis is shifted to mean 0, scaled to variance 1, multiplied by `weight`; `bias` is added.

    x (…, C); weight and bias (C,) or None (Ba, Kiros and Hinton, 2016).
    """
    if type(weight) is tuple:
        hints.check_no_normalized_shape("layer_norm", weight)
    x, weight, bias = (value if value is None else operand(value) for value in (x, weight, bias))
    check_same_dtype("layer_norm", x, weight, bias)
    return normalization.LayerNorm.apply(x, weight, bias, number(eps))


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-5) -> Tensor:
    """Each row along the last axis is divided by its root mean square and multiplied by `weight`.

    x (…, C); weight (C,) or None (Zhang and Sennrich, 2019).
    """
    if type(weight) is tuple:
        hints.check_no_normalized_shape("rms_norm", weight)
    x, weight = operand(x), weight if weight is None else operand(weight)
    check_same_dtype("rms_norm", x, weight)
    return normalization.RMSNorm.apply(floating(x), weight, number(eps))


def rotary(x: Any, offset: int = 0, base: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of queries or keys (…, T, D), the first at position `offset`.

    Channels i and i + D/2 are rotated as a pair, at position p by the angle p base^(-2i/D).
    """
    return rotary_op.Rotary.apply(operand(x), number(offset), number(base))


def embedding(ids: Any, weight: Any) -> Tensor:
    """The rows of weight (V, C) that the integer ids (…) select -> (…, C)."""
    return embedding_op.Embedding.apply(constant(ids), operand(weight))


def dropout(x: Any, p: float, training: bool = True) -> Tensor:
    """Each element set to 0 with probability p, the rest divided by 1 - p; x itself if not training."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: expected a probability p from 0 to 1, got {p}")
    x = operand(x)
    if not training or p == 0:
        return reshape(x, shape_of(x)) if not isinstance(x, Variable) else x  # type: ignore[return-value]
    return dropout_op.Dropout.apply(x, p)


@hints.keywords
def cross_entropy(
    logits: Any,
    targets: Any,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood, in nats, of integer targets (…) under softmax(logits), logits (…, V).

    Targets equal to `ignore_index` do not count. `reduction`: "mean" (over those that count), "sum" or "none".
    The loss of half-precision logits is float32.
    label_smoothing: the share e of each target that is spread evenly over all V classes (Szegedy et al., 2016). The
    loss becomes (1 - e) times the negative log-likelihood plus e / V times its sum over all classes.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: expected reduction="mean", "sum" or "none", got {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: expected label_smoothing from 0 to 1, got {label_smoothing}")
    return loss.CrossEntropy.apply(operand(logits), constant(targets), ignore_index, reduction, number(label_smoothing))


@hints.keywords
def scaled_dot_product_attention(
    q: Any, k: Any, v: Any, causal: bool = False, mask: Any = None, dropout_p: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al., 2017): q (…, T, D), k (…, U, D), v (…, U, E) -> (…, T, E).

    causal: query i attends to the keys up to i + U - T, so the last query attends to all keys.
    mask: boolean, true where a query may attend, broadcast to (…, T, U). A query that may attend to no key gives zeros.
    dropout_p: the probability with which attention weights are dropped (pass 0 when not training).
    """
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"scaled_dot_product_attention: expected dropout_p from 0 to 1, got {dropout_p}")
    q, k, v = operand(q), operand(k), operand(v)
    check_same_dtype("scaled_dot_product_attention", q, k, v)
    if mask is not None:
        mask = boolean_mask("scaled_dot_product_attention", mask)
    return attention.Attention.apply(q, k, v, causal, mask, dropout_p)
