"""What users call: one function for each operation, taking and returning tensors.

    from minigrad import functional as F
    y = F.softmax(F.linear(x, weight, bias), axis=-1)

The mathematics and the backward passes are in `minigrad/ops/`, one class an operation. Wherever a tensor is wanted an
array, a list or a number will do; it takes no gradient. Every result is a new tensor, but where there is nothing to do
(`astype`, `to`, `dropout`); inputs are never changed.

dtypes: Python numbers, NumPy scalars and 0-d arrays and tensors adopt the dtype of the tensor they meet, and so do
integer tensors that meet floating ones (PyTorch's rules). Elementwise operations on float32 and float64 give float64,
as in NumPy, and so do an integer tensor and a Python float. Matrix products and the layers' functions want one dtype
and raise TypeError otherwise.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from .autograd import Variable, asks_for_gradient, describe, is_recording
from .backend import DType, as_array, as_dtype, check_device, device_of, is_array, kind_of, to_device
from .ops import activation, attention, elementwise, indexing, loss, normalization, reduce
from .ops import dropout as dropout_op
from .ops import embedding as embedding_op
from .ops import matmul as matmul_op
from .ops import rotary as rotary_op
from .ops import shape as shape_op
from .ops import softmax as softmax_op

if TYPE_CHECKING:
    from .tensor import Tensor

Axis: TypeAlias = int | Sequence[int] | None


# Making arguments fit: numbers, lists and arrays beside tensors


def _operand(value: Any) -> Any:
    """A tensor, an array, or (for numbers and NumPy's 0-d constants) a Python number, which adopts any dtype."""
    if isinstance(value, Variable):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 and value.dtype.kind in "biuf":
        return value.item()
    return value if isinstance(value, (builtins.int, builtins.float)) else _array(value)


def _array(value: Any) -> Any:
    """An array of what is no tensor. Of a list of tensors it would have no gradient, so there must be none to have."""
    if is_recording() and asks_for_gradient(value):
        raise TypeError("got a list of tensors that require gradients where one tensor is wanted; stack() makes it one")
    return as_array(value)


def _dtype(value: Any) -> Any:
    return value.data.dtype if isinstance(value, Variable) else value.dtype


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands of an elementwise operation, in one dtype. Converting a tensor is recorded like any operation."""
    a, b = _operand(a), _operand(b)
    if isinstance(a, (builtins.int, builtins.float)):
        return _adopting(a, b), b
    if isinstance(b, (builtins.int, builtins.float)):
        return a, _adopting(b, a)
    a_dtype, b_dtype = _dtype(a), _dtype(b)
    if a_dtype == b_dtype:
        return a, b
    a_is_scalar, b_is_scalar = not _shape(a), not _shape(b)
    a_kind, b_kind = (kind_of(dtype).replace("u", "i") for dtype in (a_dtype, b_dtype))
    if a_kind == b_kind and a_is_scalar != b_is_scalar:
        common = b_dtype if a_is_scalar else a_dtype
    elif a_kind == b_kind:
        common = np.promote_types(a_dtype, b_dtype)
    else:  # a floating dtype wins over integers, and these over booleans, whatever their widths
        common = a_dtype if "bif".index(a_kind) > "bif".index(b_kind) else b_dtype
    return _converted(a, common), _converted(b, common)


def _converted(x: Any, dtype: Any) -> Any:
    return astype(x, dtype) if isinstance(x, Variable) else x.astype(dtype, copy=False)


def _adopting(number: Any, other: Any) -> Any:
    """A Python number, which adopts the dtype of what it meets by itself, but for bfloat16."""
    if isinstance(other, (builtins.int, builtins.float)) or _dtype(other).kind != "V":
        return number
    array = other.data if isinstance(other, Variable) else other
    return as_array(np.asarray(number, array.dtype), device=device_of(array))


def _tensor(value: Any) -> Any:
    """A tensor or an array: the operand of a function of one argument."""
    return value if isinstance(value, Variable) else _array(value)


def _floats(value: Any) -> Any:
    """The same in floating point: narrow integers would overflow on the way, and unsigned ones have no negative."""
    x = _tensor(value)
    return x if kind_of(_dtype(x)) == "f" else _converted(x, np.dtype(np.float64))


def _constant(value: Any) -> Any:
    """The plain array of an argument that takes no gradient: ids, targets, masks."""
    return value.data if isinstance(value, Variable) else as_array(value)


def _mask(operation: str, mask: Any) -> Any:
    """The plain array of a mask, which has to be boolean."""
    mask = _constant(mask)
    if mask.dtype != bool:
        raise TypeError(f"{operation}: wanted a boolean mask, got {mask.dtype}")
    return mask


def _number(value: Any) -> Any:
    """A setting, such as eps, as a Python number, which adopts any dtype; None stays None."""
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _same_dtype(operation: str, *values: Any) -> None:
    dtypes = {_dtype(value) for value in values if value is not None}
    if len(dtypes) > 1:
        names = " and ".join(sorted(map(str, dtypes)))
        raise TypeError(f"{operation}: wanted one dtype for all of its inputs, got {names}; convert with .astype()")


def _axes(operation: str, x: Any, axis: Axis) -> tuple[builtins.int, ...] | None:
    """An axis or several, counted from 0, as a tuple; None stays None."""
    if axis is None:
        return None
    shape = _shape(x)
    axes = (axis,) if isinstance(axis, (builtins.int, np.integer)) else tuple(axis)
    for a in axes:
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{operation}: axis {a} is out of range for shape {shape}")
    counted = tuple(builtins.int(a) % len(shape) for a in axes)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{operation}: {axis} names an axis of shape {shape} twice")
    return counted


def _axis(operation: str, x: Any, axis: builtins.int) -> builtins.int:
    if not isinstance(axis, (builtins.int, np.integer)):
        raise TypeError(f"{operation}: wanted one axis, got {axis!r}")
    axes = _axes(operation, x, axis)
    assert axes is not None
    return axes[0]


def _shape(x: Any) -> tuple[builtins.int, ...]:
    return (x.data if isinstance(x, Variable) else x).shape


def _unpack(args: tuple[Any, ...]) -> Any:
    """Let f(x, 2, 3) and f(x, (2, 3)) mean the same."""
    return args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args


# Elementwise


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast against each other."""
    return elementwise.Add.apply(*_pair(a, b))


def subtract(a: Any, b: Any) -> Tensor:
    """a - b, broadcast against each other."""
    return elementwise.Subtract.apply(*_pair(a, b))


def multiply(a: Any, b: Any) -> Tensor:
    """a b, element by element, broadcast against each other."""
    return elementwise.Multiply.apply(*_pair(a, b))


def divide(a: Any, b: Any) -> Tensor:
    """a / b, element by element, broadcast against each other."""
    return elementwise.Divide.apply(*_pair(a, b))


def power(a: Any, b: Any) -> Tensor:
    """a^b, element by element, broadcast against each other."""
    return elementwise.Power.apply(*_pair(a, b))


def negative(x: Any) -> Tensor:
    """-x."""
    return elementwise.Negative.apply(_tensor(x))


def exp(x: Any) -> Tensor:
    """e^x."""
    return elementwise.Exp.apply(_tensor(x))


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return elementwise.Log.apply(_tensor(x))


def sqrt(x: Any) -> Tensor:
    """The square root."""
    return elementwise.Sqrt.apply(_tensor(x))


def abs(x: Any) -> Tensor:
    """|x|; the gradient at 0 is 0."""
    return elementwise.Absolute.apply(_tensor(x))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b, element by element; at a tie each gets half of the gradient."""
    return elementwise.Maximum.apply(*_pair(a, b))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b, element by element; at a tie each gets half of the gradient."""
    return elementwise.Minimum.apply(*_pair(a, b))


def where(mask: Any, x: Any, y: Any) -> Tensor:
    """x where the boolean mask is true, y elsewhere; all three broadcast."""
    mask = _mask("where", mask)
    x, y = _pair(x, y)
    if not isinstance(x, Variable) and not isinstance(y, Variable) and not is_array(x) and not is_array(y):
        x = as_array([x, y], device=device_of(mask))[0, ...]  # in the dtype that holds both
    return elementwise.Where.apply(mask, x, y)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """x, but at least `low` and at most `high`; the gradient is 0 outside."""
    low, high = _number(low), _number(high)
    if not all(bound is None or isinstance(bound, (builtins.int, builtins.float)) for bound in (low, high)):
        raise TypeError(f"clip: wanted numbers or None as bounds, got {describe(low)} and {describe(high)}")
    return elementwise.Clip.apply(_tensor(x), low, high)


def astype(x: Any, dtype: DType) -> Tensor:
    """x in another dtype; a tensor that has it is returned itself. The gradient is converted back."""
    dtype = as_dtype(dtype)
    if kind_of(dtype) not in "biuf":
        raise TypeError(f"astype: a tensor holds real numbers or booleans, not {dtype}")
    x = _tensor(x)
    if not isinstance(x, Variable):
        return Variable._from_operation(x.astype(dtype), None)
    return cast("Tensor", x) if _dtype(x) == dtype else shape_op.Astype.apply(x, dtype)


def to(x: Any, device: str) -> Tensor:
    """x on another device; a tensor that is there is returned itself. The gradient is moved back."""
    check_device(device)
    x = x if isinstance(x, Variable) else Variable._from_operation(_array(x), None)
    here = device_of(x.data)
    if here == device or (device == "cuda" and here.startswith("cuda")):
        return cast("Tensor", x)
    return shape_op.ToDevice.apply(x, device)


# Activations


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return activation.Tanh.apply(_tensor(x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x)."""
    return activation.Sigmoid.apply(_floats(x))


def relu(x: Any) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return activation.ReLU.apply(_tensor(x))


def squared_relu(x: Any) -> Tensor:
    """max(x, 0)^2 (So et al., 2021)."""
    return activation.SquaredReLU.apply(_tensor(x))


def gelu(x: Any, approximate: str = "tanh") -> Tensor:
    """GELU, x Phi(x): GPT-2's tanh form, or with `approximate="none"` the exact one (Hendrycks and Gimpel, 2016)."""
    forms = {"tanh": activation.GELUTanh, "none": activation.GELUErf}
    if approximate not in forms:
        raise ValueError(f'gelu: approximate is "tanh" or "none", not {approximate!r}')
    return forms[approximate].apply(_floats(x))


def silu(x: Any) -> Tensor:
    """x sigmoid(x), also called swish."""
    return activation.SiLU.apply(_floats(x))


def softplus(x: Any) -> Tensor:
    """ln(1 + e^x), a smooth form of max(x, 0) (Dugas et al., 2001)."""
    return activation.Softplus.apply(_floats(x))


# Reductions


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (None: over everything)."""
    x = _tensor(x)
    return reduce.Sum.apply(x, _axes("sum", x, axis), keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (None: over everything)."""
    x = _tensor(x)
    return reduce.Mean.apply(x, _axes("mean", x, axis), keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; several that tie share the gradient equally."""
    x = _tensor(x)
    return reduce.Max.apply(x, _axes("max", x, axis), keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; several that tie share the gradient equally."""
    x = _tensor(x)
    return reduce.Min.apply(x, _axes("min", x, axis), keepdims)


def var(x: Any, axis: Axis = None, keepdims: bool = False, correction: float = 1) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, divided by n - correction."""
    x = _tensor(x)
    return reduce.Var.apply(x, _axes("var", x, axis), keepdims, _number(correction))


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """ln(sum of e^x) over `axis`, without overflow."""
    x = _floats(x)
    return reduce.LogSumExp.apply(x, _axes("logsumexp", x, axis), keepdims)


# Shape


def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements in another shape, given as numbers or as one tuple; one of them may be -1."""
    return shape_op.Reshape.apply(_tensor(x), _unpack(shape))


def transpose(x: Any, *axes: Any) -> Tensor:
    """The axes in another order; without `axes`, in reverse order."""
    x = _tensor(x)
    order = _unpack(axes) if axes else range(len(_shape(x)))[::-1]
    return shape_op.Transpose.apply(x, _axes("transpose", x, order))


def swapaxes(x: Any, a: builtins.int, b: builtins.int) -> Tensor:
    """Two axes exchanged."""
    x = _tensor(x)
    order = list(range(len(_shape(x))))
    a, b = _axis("swapaxes", x, a), _axis("swapaxes", x, b)
    order[a], order[b] = b, a
    return shape_op.Transpose.apply(x, order)


def broadcast_to(x: Any, shape: builtins.int | Sequence[builtins.int]) -> Tensor:
    """x repeated along new axes, and along axes of size 1, to the given shape."""
    shape = (shape,) if isinstance(shape, (builtins.int, np.integer)) else shape
    return shape_op.BroadcastTo.apply(_tensor(x), tuple(shape))


def concatenate(tensors: Sequence[Any], axis: builtins.int = 0) -> Tensor:
    """The tensors laid end to end along an axis they all have; their other axes agree."""
    tensors = [_tensor(x) for x in tensors]
    if not tensors:
        raise ValueError("concatenate: wanted at least one tensor")
    _same_dtype("concatenate", *tensors)
    return shape_op.Concatenate.apply(_axis("concatenate", tensors[0], axis), *tensors)


def stack(tensors: Sequence[Any], axis: builtins.int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    tensors = [_tensor(x) for x in tensors]
    shapes = {_shape(x) for x in tensors}
    if len(shapes) != 1:
        raise ValueError(f"stack: wanted at least one tensor, and all of one shape; got {sorted(shapes)}")
    (shape,) = shapes
    if not -len(shape) - 1 <= axis <= len(shape):
        raise ValueError(f"stack: axis {axis} is out of range for tensors of shape {shape}")
    axis %= len(shape) + 1
    _same_dtype("stack", *tensors)
    return concatenate([reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in tensors], axis)


def split(x: Any, size: builtins.int | Sequence[builtins.int], axis: builtins.int = 0) -> tuple[Tensor, ...]:
    """x cut along `axis` into stretches of length `size` (the last may be shorter), or of the given sizes."""
    x = _tensor(x)
    axis = _axis("split", x, axis)
    n = _shape(x)[axis]
    if isinstance(size, (builtins.int, np.integer)):
        if size < 1:
            raise ValueError(f"split: wanted a size of at least 1, got {size}")
        size = [builtins.min(size, n - start) for start in range(0, builtins.max(n, 1), size)]
    return shape_op.Split.apply(x, list(size), axis)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index] with everything NumPy's indexing knows; repeated places add up their gradients."""
    x = _tensor(x)
    return indexing.GetItem.apply(x, plain_index(index, device_of(x.data if isinstance(x, Variable) else x)))


def plain_index(index: Any, device: str) -> Any:
    """An index in which tensors and lists, and tuples inside a tuple, are plain arrays on the device."""
    if isinstance(index, tuple):
        return tuple(plain_index(list(part) if isinstance(part, tuple) else part, device) for part in index)
    if isinstance(index, list):
        index = np.asarray(index, dtype=None if index else np.intp)
    if isinstance(index, Variable):
        index = index.data
    return to_device(index, device) if device != "cpu" and is_array(index) else index


def masked_fill(x: Any, mask: Any, value: float) -> Tensor:
    """x with `value` written where the boolean mask, which broadcasts to the shape of x, is true."""
    mask = _mask("masked_fill", mask)
    if isinstance(value, Variable):
        if value.requires_grad and is_recording():
            raise TypeError("masked_fill: value takes no gradient, but it requires one; use where(mask, value, x)")
        value = value.item()
    return indexing.MaskedFill.apply(_tensor(x), mask, value)


# Matrix products


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product over the last two axes, (…, M, K) @ (…, K, N) -> (…, M, N); 1-D as in NumPy."""
    a, b = _tensor(a), _tensor(b)
    _same_dtype("matmul", a, b)
    return matmul_op.MatMul.apply(a, b)


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x W^T + b: x (…, I), weight (O, I), bias (O,) or None -> (…, O)."""
    x, weight, bias = _tensor(x), _tensor(weight), bias if bias is None else _tensor(bias)
    _same_dtype("linear", x, weight, bias)
    return matmul_op.Linear.apply(x, weight, bias)


# Networks


def softmax(x: Any, axis: builtins.int = -1) -> Tensor:
    """e^x / sum of e^x along `axis`. A row of -inf throughout gives zeros."""
    x = _floats(x)
    return softmax_op.Softmax.apply(x, _axis("softmax", x, axis))


def log_softmax(x: Any, axis: builtins.int = -1) -> Tensor:
    """ln softmax(x) along `axis`, without under- or overflow."""
    x = _floats(x)
    return softmax_op.LogSoftmax.apply(x, _axis("log_softmax", x, axis))


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Every row of the last axis shifted to mean 0 and scaled to variance 1, then times `weight` plus `bias`.

    x (…, C); weight and bias (C,) or None (Ba, Kiros and Hinton, 2016).
    """
    x, weight, bias = (value if value is None else _tensor(value) for value in (x, weight, bias))
    _same_dtype("layer_norm", x, weight, bias)
    return normalization.LayerNorm.apply(x, weight, bias, _number(eps))


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-5) -> Tensor:
    """Every row of the last axis divided by its root mean square, then times `weight` (Zhang and Sennrich, 2019)."""
    x, weight = _tensor(x), weight if weight is None else _tensor(weight)
    _same_dtype("rms_norm", x, weight)
    return normalization.RMSNorm.apply(_floats(x), weight, _number(eps))


def rotary(x: Any, offset: builtins.int = 0, base: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of queries or keys (…, T, D), the first at position `offset`.

    Channels i and i + D/2 are turned as a pair, at position p by the angle p base^(-2i/D).
    """
    return rotary_op.Rotary.apply(_tensor(x), _number(offset), _number(base))


def embedding(ids: Any, weight: Any) -> Tensor:
    """The rows of weight (V, C) that the integer ids (…) name -> (…, C)."""
    return embedding_op.Embedding.apply(_constant(ids), _tensor(weight))


def dropout(x: Any, p: float, training: bool = True) -> Tensor:
    """Each element set to 0 with probability p, the rest divided by 1 - p; x itself if not training."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: wanted a probability p from 0 to 1, got {p}")
    x = _tensor(x)
    if not training or p == 0:
        return reshape(x, _shape(x)) if not isinstance(x, Variable) else x  # type: ignore[return-value]
    return dropout_op.Dropout.apply(x, p)


def cross_entropy(
    logits: Any,
    targets: Any,
    ignore_index: builtins.int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood, in nats, of integer targets (…) under softmax(logits), logits (…, V).

    Targets equal to `ignore_index` do not count. `reduction`: "mean" (over those that count), "sum" or "none".
    The loss of half-precision logits is float32.
    label_smoothing: the share e of each target that all V classes get alike (Szegedy et al., 2016); the loss becomes
    (1 - e) of the negative log-likelihood plus e / V of its sum over all classes.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: reduction is "mean", "sum" or "none", not {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: wanted label_smoothing from 0 to 1, got {label_smoothing}")
    return loss.CrossEntropy.apply(
        _tensor(logits), _constant(targets), ignore_index, reduction, _number(label_smoothing)
    )


def scaled_dot_product_attention(
    q: Any, k: Any, v: Any, causal: bool = False, mask: Any = None, dropout_p: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al., 2017): q (…, T, D), k (…, U, D), v (…, U, E) -> (…, T, E).

    causal: query i sees the keys up to i + U - T, so that the last query sees all keys.
    mask: boolean, true where a query may look, broadcast to (…, T, U). A query that may look nowhere gives zeros.
    dropout_p: drop attention weights with this probability (pass 0 when not training).
    """
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"scaled_dot_product_attention: wanted dropout_p from 0 to 1, got {dropout_p}")
    q, k, v = _tensor(q), _tensor(k), _tensor(v)
    _same_dtype("scaled_dot_product_attention", q, k, v)
    if mask is not None:
        mask = _mask("scaled_dot_product_attention", mask)
    return attention.Attention.apply(q, k, v, causal, mask, dropout_p)
