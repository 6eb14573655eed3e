"""Making arguments fit: numbers, lists and arrays beside tensors, in one dtype, with checked axes.

Below, an operand is a tensor or an array: what an operation's `apply` takes. A number is one of Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .autograd import Variable
from .backend import DType, as_array, device_of, is_array, kind_of, to_device
from .modes import is_recording
from .ops.shape import Astype

Axis: TypeAlias = int | Sequence[int] | None


# Values as operands


def operand(value: Any) -> Any:
    """A tensor as it is, and anything else as an array.

    Raises TypeError for a list of tensors that require gradients: their gradients would be lost.
    """
    if isinstance(value, Variable):
        return value
    if is_recording() and any_requires_grad(value):
        raise TypeError("expected one tensor, got a list of tensors that require gradients; stack() makes it one")
    return as_array(value)


def any_requires_grad(value: Any) -> bool:
    """Is the value a tensor that requires gradients, or a list that contains one?"""
    if isinstance(value, (list, tuple)):
        return any(map(any_requires_grad, value))
    return isinstance(value, Variable) and value.requires_grad


def floating(value: Any) -> Any:
    """An operand in floating point: narrow integers would overflow on the way, and unsigned ones have no negative."""
    x = operand(value)
    return x if kind_of(dtype_of(x)) == "f" else to_dtype(x, np.dtype(np.float64))


def constant(value: Any) -> Any:
    """The plain array of an argument that takes no gradient, such as ids and targets."""
    return value.data if isinstance(value, Variable) else as_array(value)


def boolean_mask(operation: str, mask: Any) -> Any:
    """The plain array of a mask. Raises TypeError if it is not boolean."""
    mask = constant(mask)
    if mask.dtype != bool:
        raise TypeError(f"{operation}: expected a boolean mask, got {mask.dtype}")
    return mask


def number(value: Any) -> Any:
    """A setting, such as eps, as a Python number, which adopts any dtype; None stays None."""
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def pair(operation: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """A setting of two axes, given as one number for both or as one for each."""
    given = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    numbers = given * 2 if len(given) == 1 else given
    if len(numbers) != 2 or not all(isinstance(n, (int, np.integer)) and n >= least for n in numbers):
        raise ValueError(f"{operation}: expected {name} as one or two whole numbers of at least {least}, got {value!r}")
    return int(numbers[0]), int(numbers[1])


def plain_index(index: Any, device: str) -> Any:
    """An index in which tensors and lists, and tuples inside a tuple, are plain arrays on the device."""
    if isinstance(index, tuple):
        return tuple(plain_index(list(part) if isinstance(part, tuple) else part, device) for part in index)
    if isinstance(index, list):
        index = np.asarray(index, dtype=None if index else np.intp)
    if isinstance(index, Variable):
        index = index.data
    return to_device(index, device) if device != "cpu" and is_array(index) else index


# dtypes


def dtype_of(x: Any) -> Any:
    return x.data.dtype if isinstance(x, Variable) else x.dtype


def to_dtype(x: Any, dtype: DType) -> Any:
    """An operand in another dtype. Converting a tensor is recorded like any other operation."""
    if not isinstance(x, Variable):
        return x.astype(dtype, copy=False)
    return x if x.data.dtype == dtype else Astype.apply(x, dtype)


def check_same_dtype(operation: str, *operands: Any) -> None:
    """Raise TypeError unless all the operands that are not None have one dtype."""
    dtypes = {dtype_of(x) for x in operands if x is not None}
    if len(dtypes) > 1:
        names = " and ".join(sorted(map(str, dtypes)))
        raise TypeError(f"{operation}: expected inputs of one dtype, got {names}; convert with .astype()")


def promote(a: Any, b: Any) -> tuple[Any, Any]:
    """The two operands of an elementwise operation in one dtype, by PyTorch's rules of type promotion.

    Numbers, and NumPy's 0-d constants, stay or become Python numbers, which adopt the dtype of what they meet.
    """
    a, b = _number_or_operand(a), _number_or_operand(b)
    if isinstance(a, (int, float)):
        return _adopting(a, b), b
    if isinstance(b, (int, float)):
        return a, _adopting(b, a)
    a_dtype, b_dtype = dtype_of(a), dtype_of(b)
    if a_dtype == b_dtype:
        return a, b
    a_is_scalar, b_is_scalar = not shape_of(a), not shape_of(b)
    a_kind, b_kind = (kind_of(dtype).replace("u", "i") for dtype in (a_dtype, b_dtype))
    if a_kind == b_kind and a_is_scalar != b_is_scalar:
        common = b_dtype if a_is_scalar else a_dtype
    elif a_kind == b_kind:
        common = np.promote_types(a_dtype, b_dtype)
    else:  # a floating dtype wins over integers, and these over booleans, whatever their widths
        common = a_dtype if "bif".index(a_kind) > "bif".index(b_kind) else b_dtype
    return to_dtype(a, common), to_dtype(b, common)


def _number_or_operand(value: Any) -> Any:
    if isinstance(value, Variable):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 and value.dtype.kind in "biuf":
        return value.item()
    return value if isinstance(value, (int, float)) else operand(value)


def _adopting(value: float, other: Any) -> Any:
    """A Python number beside an operand. It adopts any dtype by itself except bfloat16, which needs an array."""
    if isinstance(other, (int, float)) or dtype_of(other).kind != "V":
        return value
    array = constant(other)
    return as_array(np.asarray(value, array.dtype), device=device_of(array))


# Shapes and axes


def shape_of(x: Any) -> tuple[int, ...]:
    return (x.data if isinstance(x, Variable) else x).shape


def unpack(args: tuple[Any, ...]) -> Any:
    """The arguments of f(x, 2, 3) or f(x, (2, 3)), which mean the same, as one tuple or list."""
    return args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args


def normalize_axes(operation: str, x: Any, axis: Axis) -> tuple[int, ...] | None:
    """An axis, or several, counted from 0, as a tuple; None stays None."""
    if axis is None:
        return None
    shape = shape_of(x)
    axes = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    for a in axes:
        if not -len(shape) <= a < len(shape):
            raise ValueError(f"{operation}: axis {a} is out of range for shape {shape}")
    counted = tuple(int(a) % len(shape) for a in axes)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{operation}: {axis} names an axis of shape {shape} twice")
    return counted


def reduced_axes(operation: str, x: Any, axis: Axis) -> tuple[int, ...] | None:
    """The axes of a reduction, counted from 0. As in NumPy, a 0-d operand may be reduced over axis 0 or -1: itself."""
    if axis is None:
        return None
    return normalize_axes(operation, x, axis) if shape_of(x) or axis not in (0, -1) else ()


def normalize_axis(operation: str, x: Any, axis: int) -> int:
    """One axis, counted from 0."""
    if not isinstance(axis, (int, np.integer)):
        raise TypeError(f"{operation}: expected one axis, got {axis!r}")
    axes = normalize_axes(operation, x, axis)
    assert axes is not None
    return axes[0]
