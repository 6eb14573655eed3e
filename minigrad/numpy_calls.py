"""NumPy's functions called on tensors: np.exp(x), np.concatenate([x, y]), array + x.

NumPy asks the tensor to compute them (NEP 13 and NEP 18). If `minigrad.functional` has the function, it is called, and
the result is a tensor with a gradient. Otherwise NumPy computes it on the plain arrays. That would lose the gradient in
silence, so it is an error if a tensor requires gradients and the result has floating-point numbers.

Only what the user converts is not noticed: np.asarray(x), and writing x into an array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import functional as F
from .autograd import Variable
from .backend import to_device
from .modes import is_recording

UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: F.add,
    np.subtract: F.subtract,
    np.multiply: F.multiply,
    np.divide: F.divide,
    np.power: F.power,
    np.matmul: F.matmul,
    np.negative: F.negative,
    np.absolute: F.abs,
    np.exp: F.exp,
    np.log: F.log,
    np.sqrt: F.sqrt,
    np.tanh: F.tanh,
    np.square: lambda x: x * x,
    np.maximum: F.maximum,
    np.minimum: F.minimum,
    # With the operands exchanged: the one on the left may be an array, which would ask NumPy again.
    np.equal: lambda a, b: b == a,
    np.not_equal: lambda a, b: b != a,
    np.less: lambda a, b: b > a,
    np.less_equal: lambda a, b: b >= a,
    np.greater: lambda a, b: b < a,
    np.greater_equal: lambda a, b: b <= a,
}


def _transpose(a: Any, axes: Any = None) -> Any:
    return F.transpose(a) if axes is None else F.transpose(a, axes)


def _var(a: Any, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> Any:
    return F.var(a, axis, keepdims, correction=ddof)  # which PyTorch's default, and F's, is 1


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: F.concatenate,
    np.stack: F.stack,
    np.where: F.where,
    np.clip: F.clip,
    np.sum: F.sum,
    np.mean: F.mean,
    np.max: F.max,
    np.amax: F.max,
    np.min: F.min,
    np.amin: F.min,
    np.var: _var,
    np.reshape: F.reshape,
    np.transpose: _transpose,
    np.swapaxes: F.swapaxes,
    np.broadcast_to: F.broadcast_to,
}

HINTS = {
    "std": "np.var(x) ** 0.5",
    "split": "F.split, which takes the sizes of the parts",
    "ravel": "x.reshape(-1)",
    "squeeze": "x.reshape(…)",
    "expand_dims": "x[None], x[:, None] …",
    "vstack": "F.concatenate(…, axis=0)",
    "hstack": "F.concatenate(…, axis=1)",
    "copy": "x + 0",
    "dot": "@",
    "inner": "@",
    "outer": "x[:, None] * y",
    "einsum": "@, transpose and reshape",
    "tile": "F.broadcast_to",
    "repeat": "F.broadcast_to",
    "norm": "(x * x).sum() ** 0.5",
    "prod": "F.exp(F.log(x).sum())",
    "float_power": "x ** y",
    "reciprocal": "1 / x",
    "logaddexp": "F.logsumexp",
}

WRITERS = {np.copyto, np.put, np.place, np.putmask, np.put_along_axis}  # return None and write into an array
ONLY_THE_SHAPE = {np.zeros_like, np.ones_like, np.empty_like}  # is used of their argument, so no gradient is lost


def ufunc(function: Any, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a NumPy ufunc, or one of its methods such as `reduce`, gives for tensors."""
    if method == "__call__" and not kwargs and function in UFUNCS:
        return UFUNCS[function](*inputs)
    if kwargs.get("out") is not None or method == "at":
        check_not_lost(function, inputs, "a = a + x in place of a += x")
    run = getattr(function, method)
    return checked(function, run(*plain(inputs), **plain(kwargs)), inputs)


def array_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What any other NumPy function gives for tensors: a tensor if one of them requires gradients, else an array."""
    is_nonzero = function is np.where and len(args) == 1
    if function in FUNCTIONS and not is_nonzero and any(x.requires_grad for x in tensors_in([args, kwargs])):
        ours = FUNCTIONS[function]
        try:
            inspect.signature(ours).bind(*args, **kwargs)
        except TypeError as error:
            takes = f"for tensors that require gradients it takes {inspect.signature(ours)}"
            raise TypeError(f"np.{function.__name__}: {error}; {takes}") from error
        return ours(*args, **kwargs)
    if kwargs.get("out") is not None or function in WRITERS:
        check_not_lost(function, [args, kwargs])
    result = function(*plain(args), **plain(kwargs))
    return result if function in ONLY_THE_SHAPE else checked(function, result, [args, kwargs])


def tensors_in(value: Any) -> Iterator[Variable]:
    """The tensors among arguments, also inside lists, tuples and dicts."""
    if isinstance(value, Variable):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


def plain(value: Any) -> Any:
    """Arguments in which tensors, also inside lists, tuples and dicts, are replaced by NumPy arrays."""
    if isinstance(value, Variable):
        return to_device(value.data, "cpu")
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def checked(function: Any, result: Any, arguments: Any) -> Any:
    """The result of NumPy, if it needs no gradient: numbers that are not floating-point have none."""
    if is_floating(result):
        check_not_lost(function, arguments)
    return result


def is_floating(result: Any) -> bool:
    if isinstance(result, (list, tuple)):
        return any(map(is_floating, result))
    return isinstance(result, (np.ndarray, np.generic, float)) and np.asarray(result).dtype.kind in "fcV"


def check_not_lost(function: Any, arguments: Any, instead: str = "") -> None:
    """Raise TypeError if an argument requires gradients, which the result of the function would not have."""
    if is_recording() and any(x.requires_grad for x in tensors_in(arguments)):
        module = getattr(function, "__module__", "numpy").replace("numpy", "np")  # np.linalg has some
        instead = instead or HINTS.get(function.__name__, "the functions of minigrad.functional")
        raise TypeError(
            f"{module}.{function.__name__}: a tensor requires gradients, which the result would not have; use "
            f"{instead}, or pass x.data if you need no gradient"
        )
