"""Which array library holds an array, and moving arrays between devices.

Everything above this file works on NumPy and CuPy arrays alike and asks `get_array_module(x)` for the functions to
call, as `xp.exp(x)`. CuPy is imported only when somebody asks for a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import cuda_installation

Array: TypeAlias = Any  # a numpy.ndarray or a cupy.ndarray
DType: TypeAlias = Any  # whatever numpy.dtype() accepts


class DeviceError(RuntimeError):
    """A device was asked for that is not there, or arrays of two devices met in one operation."""


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
    """Where an array's elements start in memory; 0 for None."""
    if array is None:
        return 0
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def device_of(array: Array) -> str:
    """`"cpu"`, or `"cuda:0"`, `"cuda:1"`, … for an array on a GPU."""
    return "cpu" if get_array_module(array) is np else f"cuda:{array.device.id}"


def check_same_device(operation: str, arrays: list[Array]) -> str:
    """The device of the arrays; raises `DeviceError` unless it is one. If that is a GPU, it becomes the current one.

    CuPy makes new arrays on the current GPU, wherever the arrays that it computes them from are.
    """
    devices = sorted({device_of(array) for array in arrays})
    if len(devices) > 1:
        raise DeviceError(
            f"{operation}: its arrays live on {' and '.join(devices)}; move them to one device with .to()"
        )
    if devices[0] != "cpu":
        arrays[0].device.use()
    return devices[0]


def cuda_is_available() -> bool:
    """True if CuPy is installed and finds a driver and at least one GPU. Never raises."""
    try:
        return bool(importlib.import_module("cupy").cuda.is_available())
    except Exception:  # a broken CuPy installation can raise anything at import
        return False


def _cupy_for(device: str) -> tuple[ModuleType, int]:
    """CuPy and the index of the GPU that `device` ("cuda" or "cuda:N") names. What is missing is a `DeviceError`."""
    try:
        cupy = cuda_installation.import_cupy()
        index = int(device.partition(":")[2] or cupy.cuda.Device().id)
        cuda_installation.check(cupy, index)
    except cuda_installation.Missing as missing:
        raise DeviceError(f'device "{device}" {missing}') from missing.__cause__
    return cupy, index


def on(device: str) -> Any:
    """A context inside which CuPy makes new arrays on `device`; for the CPU one that does nothing."""
    if device == "cpu":
        return contextlib.nullcontext()
    cupy, index = _cupy_for(device)
    return cupy.cuda.Device(index)


def check_device(device: str) -> str:
    """Return `device` if it names a device of this machine, else raise `DeviceError` saying what is missing."""
    kind, _, index = str(device).partition(":")
    if not isinstance(device, str) or kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise DeviceError(f'unknown device "{device}"; wanted "cpu", "cuda" or "cuda:N"')
    if kind == "cuda":
        _cupy_for(device)
    return device


def to_device(array: Array, device: str) -> Array:
    """The array on `device`: the same object if it is there already, else a copy. A GPU becomes the current one."""
    check_device(device)
    if device == "cpu":
        return array if get_array_module(array) is np else array.get()
    cupy, index = _cupy_for(device)
    cupy.cuda.Device(index).use()
    if get_array_module(array) is not cupy:
        return cupy.asarray(array)
    return array if array.device.id == index else cupy.array(array)


def as_dtype(dtype: DType) -> np.dtype:
    """`numpy.dtype(dtype)`; "bfloat16" too, which NumPy knows once the package ml_dtypes is imported."""
    if dtype == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")
        except ImportError as error:
            raise TypeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(dtype)


def kind_of(dtype: np.dtype) -> str:
    """NumPy's letter for the kind of a dtype: "b", "i", "u", or "f" for floats, bfloat16 among them."""
    return "f" if dtype.kind == "V" and dtype.name == "bfloat16" else dtype.kind


def as_array(value: Any, dtype: DType = None, device: str | None = None) -> Array:
    """Anything array-like as an array. Python floats, and lists of floats, become float32; arrays keep their dtype,
    those of other libraries and lists of arrays too. Another byte order than this machine's is converted.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and type(value) is not np.ndarray):
        value = np.asarray(value)  # np.matrix has another product; a memory map would hand its class on to results
    elif not isinstance(value, np.ndarray) and not is_array(value):
        made, first = np.asarray(value), value
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        of_numbers = isinstance(first, np.generic) or not hasattr(first, "__array__")
        if made.dtype == np.float64 and dtype is None and of_numbers:
            made = made.astype(np.float32)
        if made.dtype.kind not in "biuf":
            raise TypeError(f"cannot make an array of numbers from {type(value).__name__} (dtype {made.dtype})")
        value = made
    if not value.dtype.isnative:  # of another machine's byte order; gradients come in this one's
        value = value.astype(value.dtype.newbyteorder("="))
    if dtype is None and device is None:
        return value
    if dtype is not None and value.dtype != as_dtype(dtype):
        value = value.astype(as_dtype(dtype))
    return value if device is None else to_device(value, device)


def keep_freed_memory() -> None:
    """Ask the C library to keep memory that arrays free, instead of handing it back to the system.

    A training step, or generating a token, frees and allocates the same sizes over and over; memory that comes fresh
    from the system has to be cleared page by page, which can cost a fifth of the time. This changes the whole process,
    so it is called where training or generating starts, by an optimizer or by `generate`, and not on import.
    MINIGRAD_KEEP_MEMORY=0 turns it off; it does nothing where there is no glibc.
    """
    if os.environ.get("MINIGRAD_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


# Memory


class MemoryUse(NamedTuple):
    """Bytes on a device: held by this process, and still free there. None where the system does not say."""

    held: int | None
    free: int | None


def memory_use(device: str = "cpu") -> MemoryUse:
    """How much memory this process holds on a device, and how much is free. On a GPU, CuPy keeps what arrays free."""
    if device == "cpu":
        return MemoryUse(_kilobytes("/proc/self/status", "VmRSS"), _kilobytes("/proc/meminfo", "MemAvailable"))
    cupy, index = _cupy_for(device)
    with cupy.cuda.Device(index) as gpu:
        return MemoryUse(cupy.get_default_memory_pool().total_bytes(), gpu.mem_info[0])


def _kilobytes(file: str, name: str) -> int | None:
    """The number behind `name:` in one of Linux's files of figures, in bytes."""
    try:
        with open(file, encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


def describe_out_of_memory(error: MemoryError) -> str:
    """One line: on which device memory ran out, how much was asked for, how much is held and how much is free."""
    asked = getattr(error, "_size", None)  # CuPy's error has it as a number, NumPy's says it in words
    device = "cpu" if asked is None else "cuda"
    wanted = str(error) if asked is None else f"{_bytes(asked)} more were wanted"
    held, free = memory_use(device)
    figures = [f"{_bytes(n)} {what}" for n, what in ((held, "are held by this process"), (free, "are free")) if n]
    return f"out of memory on the {'GPU' if device == 'cuda' else 'CPU'}: {'; '.join(filter(None, [wanted, *figures]))}"


def _bytes(n: float) -> str:
    """A number of bytes as people say it: "3.20 GiB"."""
    power = min(max(int(n).bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:.2f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if power else f"{n} bytes"
