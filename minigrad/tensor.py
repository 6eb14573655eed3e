"""Tensor: an array that remembers how it was computed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import autograd, hints, numpy_calls
from . import functional as F
from .arguments import any_requires_grad, plain_index
from .backend import Array, DType, as_array, check_same_device, device_of, is_array, kind_of, to_device
from .hooks import HookHandle
from .in_place import mark_written
from .modes import is_recording


class ForNumPy:
    """A method that NumPy finds, which looks in the class. CuPy looks in the instance, and None there says that
    `cupy_array + tensor` is the tensor's to compute."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def __get__(self, tensor: Any, owner: type) -> Any:
        return self.method if tensor is None else None


class Tensor(autograd.Variable):
    """An array on the CPU (NumPy) or a GPU (CuPy) whose operations can be recorded and differentiated.

    `data` is the plain array. `grad` is None, or after `backward` a plain array of the same shape and dtype.

    array_like: a number, nested lists, an array, or a tensor. An array is not copied. Arrays, and lists of arrays, keep
        their dtype; floats, and lists of floats, become float32.
    requires_grad: accumulate dL/dx in `grad` when `backward` is called on a result. Only for floating-point dtypes.
    dtype, device: convert to these, for example "float64", and "cpu", "cuda" or "cuda:1".
    """

    __slots__ = ()

    def __init__(
        self, array_like: Any, requires_grad: bool = False, dtype: DType = None, device: str | None = None
    ) -> None:
        self.data = as_array(array_like.data if isinstance(array_like, Tensor) else array_like, dtype, device)
        if kind_of(self.data.dtype) not in "biuf":
            raise TypeError(f"a tensor holds real numbers or booleans, not {self.data.dtype}")
        if requires_grad and kind_of(self.data.dtype) != "f":
            raise TypeError(f"only floating-point tensors can require gradients, not {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad = None
        self.origin = None

    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return hints.Size(self.data.size)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def device(self) -> str:
        return device_of(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        array = np.array2string(self.numpy(), prefix="Tensor(", separator=", ")
        made_by = f", made by {self.origin[0].function.__name__}" if self.origin else ""
        wants = ", requires_grad=True" if self.requires_grad and not self.origin else ""
        return f"Tensor({array}, dtype={self.dtype}{made_by}{wants})"

    # Gradients

    def backward(self, grad: Any = None, retain_graph: bool = False) -> None:
        """Add dL/dx to the `grad` of every leaf x that this tensor was computed from.

        `grad` is dL/d(this tensor), of this tensor's shape. It may be left out for a scalar, where it is 1.
        What the tape saved is dropped on the way, unless `retain_graph` is set.
        """
        if not self.requires_grad:
            raise autograd.AutogradError("backward: this tensor does not depend on any tensor that requires gradients")
        autograd.backward(self, grad, retain_graph)

    def zero_grad(self) -> None:
        """Set the gradient to None."""
        self.grad = None

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], object]) -> HookHandle:
        """Call `hook(self)` in every backward pass, when the gradient of this leaf is complete.

        Every use of the leaf has then added to `grad`. It is called once in a pass, while the pass still goes on to
        other leaves, and not at all if no gradient reaches the leaf. The hook may read, change or drop `grad`. For
        example, it can update a parameter at once, so that not all gradients are in memory at the same time:

            def update(p):
                with mg.no_grad():
                    p -= 0.1 * p.grad
                p.grad = None

            handles = [p.register_post_accumulate_grad_hook(update) for p in model.parameters()]
            loss.backward()                 # updates every parameter on the way
            handles[0].remove()             # or use a handle in a `with` block

        Hooks are called in the order in which they were registered. A copy of the tensor has none. AutogradError if
        this tensor does not require gradients, or is not a leaf.
        """
        if not self.requires_grad or self.origin is not None:
            kind = "the result of an operation" if self.origin is not None else "a tensor without requires_grad"
            raise autograd.AutogradError(
                f"register_post_accumulate_grad_hook: expected a leaf that requires gradients, got {kind}"
            )
        return HookHandle(self, hook)

    def detach(self) -> Tensor:
        """The same array, not a copy, as a tensor that is not connected to the tape."""
        return Tensor(self.data)

    # To other forms

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the tensor's own array on the CPU, a copy from a GPU."""
        return to_device(self.data, "cpu")

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: expected a tensor with one element, got one of shape {self.shape}")
        return self.data.item()

    def __array__(self, dtype: DType = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @ForNumPy
    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """np.exp(x), array + x …"""
        return numpy_calls.ufunc(function, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """np.concatenate([x, y]), np.mean(x) …"""
        return numpy_calls.array_function(function, args, kwargs)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def to(self, device: str) -> Tensor:
        """The tensor on another device, or itself if it is already there. The gradient is moved back."""
        return F.to(self, device)

    def astype(self, dtype: DType) -> Tensor:
        """The tensor in another dtype, or itself if it already has it. The gradient is converted back."""
        return F.astype(self, dtype)

    # Operators. Each is one call into functional.py.

    def __add__(self, other: Any) -> Tensor:
        return F.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return F.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return F.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return F.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return F.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return F.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return F.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return F.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return F.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return F.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return F.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return F.matmul(other, self)

    # p -= … changes a leaf that requires gradients in place, as an optimizer does. Otherwise it makes a new tensor.

    def __iadd__(self, other: Any) -> Tensor:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._in_place(operator.itruediv, other)

    def __ipow__(self, other: Any) -> Tensor:
        return self._in_place(operator.ipow, other)

    def _in_place(self, operation: Callable[[Array, Any], Array], other: Any) -> Any:
        if not self.requires_grad or self.origin is not None:
            return NotImplemented  # then Python calls the operator that makes a new tensor
        if is_recording():
            raise autograd.AutogradError(
                "changing a leaf that requires gradients in place is not recorded; do it inside no_grad(), or write "
                "x = x + … to go on with a new tensor"
            )
        operation(self.data, self._beside(other, "changing a tensor in place"))
        mark_written(self.data)
        return self

    def __neg__(self) -> Tensor:
        return F.negative(self)

    def __abs__(self) -> Tensor:
        return F.abs(self)

    def __getitem__(self, index: Any) -> Tensor:
        return F.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write in place. This is not recorded, so outside no_grad no tensor that requires gradients may take part."""
        if is_recording() and (self.requires_grad or any_requires_grad(value)):
            raise autograd.AutogradError(
                "writing in place is not recorded, and this tensor, or the value written to it, requires gradients; "
                "do it inside no_grad(), or use where(), masked_fill(), concatenate() or stack()"
            )
        self.data[plain_index(index, self.device)] = self._beside(value, "writing to a tensor")
        mark_written(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError("cannot iterate over a 0-d tensor")
        return (self[i] for i in range(len(self)))

    # Comparisons return plain boolean arrays, which have no gradient.

    def __eq__(self, other: object) -> Array:
        return self.data == self._beside(other)

    def __ne__(self, other: object) -> Array:
        return self.data != self._beside(other)

    def __lt__(self, other: Any) -> Array:
        return self.data < self._beside(other)

    def __le__(self, other: Any) -> Array:
        return self.data <= self._beside(other)

    def __gt__(self, other: Any) -> Array:
        return self.data > self._beside(other)

    def __ge__(self, other: Any) -> Array:
        return self.data >= self._beside(other)

    def _beside(self, value: Any, operation: str = "a comparison") -> Any:
        """The plain value of an operand. If it is an array with axes, it must be on this tensor's device."""
        value = value.data if isinstance(value, Tensor) else value
        if is_array(value) and value.ndim:
            check_same_device(operation, [self.data, value])
        return value

    __hash__ = object.__hash__  # in sets and dicts, tensors are compared by identity

    # Functions that are also methods

    sum, mean, max, min, var = F.sum, F.mean, F.max, F.min, F.var
    reshape = view = F.reshape
    transpose = permute = F.transpose
    swapaxes = F.swapaxes

    @property
    def T(self) -> Tensor:
        return F.transpose(self)

    if not TYPE_CHECKING:  # or every attribute would exist

        def __getattr__(self, name: str) -> Any:
            raise hints.missing("Tensor", name, hints.TENSOR, vars(F))


autograd.Variable.result_class = Tensor
