"""Arrays and devices: which library an array belongs to, and moving arrays between devices.

The code above this file works on NumPy and CuPy arrays alike. It asks `xp = get_array_module(x)` for the library and
calls its functions, as in `xp.exp(x)`. CuPy is imported only when a GPU is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from . import cuda_installation

Array: TypeAlias = Any  # a numpy.ndarray or a cupy.ndarray
DType: TypeAlias = Any  # anything that numpy.dtype() accepts


class DeviceError(RuntimeError):
    """A device is not available, or one operation was given arrays of two devices."""


def get_array_module(*arrays: Any) -> ModuleType:
    """The library of the given arrays: `cupy` if any of them is a CuPy array, else `numpy`."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(array, cupy.ndarray) for array in arrays):
        return cupy
    return np


def is_array(value: Any) -> bool:
    """True for a NumPy or CuPy array (0-d arrays too), False for scalars and everything else."""
    return isinstance(value, np.ndarray) or get_array_module(value) is not np


def address(array: Array | None) -> int:
    """The address of an array's first element; 0 for None."""
    if array is None:
        return 0
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def device_of(array: Array) -> str:
    """`"cpu"`, or `"cuda:0"`, `"cuda:1"`, … for an array on a GPU."""
    return "cpu" if get_array_module(array) is np else f"cuda:{array.device.id}"


def check_same_device(operation: str, arrays: list[Array]) -> str:
    """The device of all the arrays; `DeviceError` if they are on several. A GPU becomes the current one.

    CuPy makes new arrays on the current GPU, even if the arrays that it computes them from are on another.
    """
    devices = sorted({device_of(array) for array in arrays})
    if len(devices) > 1:
        raise DeviceError(f"{operation}: its arrays are on {' and '.join(devices)}; move them to one device with .to()")
    if devices[0] != "cpu":
        arrays[0].device.use()
    return devices[0]


def cuda_is_available() -> bool:
    """True if CuPy is installed and finds a driver and at least one GPU. Never raises."""
    try:
        return bool(importlib.import_module("cupy").cuda.is_available())
    except Exception:  # a broken CuPy installation can raise anything at import
        return False


def cupy_for(device: str) -> tuple[ModuleType, int]:
    """CuPy, and the index of the GPU that `device` ("cuda" or "cuda:N") names. Raises `DeviceError` without one."""
    try:
        cupy = cuda_installation.import_cupy()
        index = int(device.partition(":")[2] or cupy.cuda.Device().id)
        cuda_installation.check(cupy, index)
    except cuda_installation.Missing as missing:
        raise DeviceError(f'device "{device}" {missing}') from missing.__cause__
    return cupy, index


def on(device: str) -> Any:
    """A context inside which CuPy makes new arrays on `device`. For the CPU it does nothing."""
    if device == "cpu":
        return contextlib.nullcontext()
    cupy, index = cupy_for(device)
    return cupy.cuda.Device(index)


def check_device(device: str) -> str:
    """Return `device` if this machine has it. Otherwise the `DeviceError` says what is missing."""
    kind, _, index = str(device).partition(":")
    if not isinstance(device, str) or kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise DeviceError(f'unknown device "{device}"; expected "cpu", "cuda" or "cuda:N"')
    if kind == "cuda":
        cupy_for(device)
    return device


def to_device(array: Array, device: str) -> Array:
    """The array on `device`: itself if it is already there, else a copy. A GPU becomes the current one."""
    check_device(device)
    if device == "cpu":
        return array if get_array_module(array) is np else array.get()
    cupy, index = cupy_for(device)
    cupy.cuda.Device(index).use()
    if get_array_module(array) is not cupy:
        return cupy.asarray(array)
    return array if array.device.id == index else cupy.array(array)


def as_dtype(dtype: DType) -> np.dtype:
    """`numpy.dtype(dtype)`, and also "bfloat16", which NumPy knows after the package ml_dtypes is imported."""
    if dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")
        except ImportError as error:
            raise TypeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(dtype)


def kind_of(dtype: np.dtype) -> str:
    """NumPy's letter for the kind of a dtype: "b", "i", "u", or "f" for floating point, including bfloat16."""
    return "f" if dtype.kind == "V" and dtype.name == "bfloat16" else dtype.kind


def as_array(value: Any, dtype: DType = None, device: str | None = None) -> Array:
    """Anything array-like as an array, on `device` if it is given.

    Without a dtype, Python floats and lists of floats become float32. Arrays keep their dtype, including those of other
    libraries and lists of arrays. Numbers in another byte order than this machine's are converted.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
        value = np.asarray(value)  # np.matrix has another product; results of a np.memmap would be of its class
    elif not isinstance(value, np.ndarray) and not is_array(value):
        made, first = np.asarray(value), value
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        of_numbers = isinstance(first, np.generic) or not hasattr(first, "__array__")
        if made.dtype == np.float64 and dtype is None and of_numbers:
            made = made.astype(np.float32)
        if made.dtype.kind not in "biuf":
            hint = "; is a return missing?" if value is None else ""
            raise TypeError(f"cannot make an array of numbers from {type(value).__name__} (dtype {made.dtype}){hint}")
        value = made
    if not value.dtype.isnative:  # gradients have this machine's byte order
        value = value.astype(value.dtype.newbyteorder("="))
    if dtype is None and device is None:
        return value
    if dtype is not None and value.dtype != as_dtype(dtype):
        value = value.astype(as_dtype(dtype))
    return value if device is None else to_device(value, device)
