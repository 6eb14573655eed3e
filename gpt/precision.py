"""The precision in which a model is trained."""

from __future__ import annotations

from minigrad import cuda, kernels
from minigrad.backend import as_dtype

from .config import DTYPES
from .errors import ConfigError

LEAST_CAPABILITY = {"tf32": (8, 0), "bfloat16": (8, 0), "float16": (0, 0)}


def choose(dtype: str, device: str) -> str:
    """The precision that the option `dtype` means on a device; "auto" is the fastest one available.

    Raises `ConfigError` if the device does not support it.
    """
    on_gpu = device.startswith("cuda")
    if dtype == "auto":
        if not (on_gpu and kernels.in_use("cuda") and cuda.get_device_capability(device) >= (8, 0)):
            return "float32"
        dtype = "bfloat16"
    if dtype == "float32" or dtype not in DTYPES:
        return dtype
    if not on_gpu:
        raise ConfigError(f"dtype is {dtype!r}, but the CPU computes in 'float32': NumPy has no fast 16-bit arithmetic")
    if not kernels.in_use("cuda"):
        raise ConfigError(
            f"dtype is {dtype!r}, which needs the CUDA kernels, and they are off; set MINIGRAD_KERNELS=cuda, or use "
            f"'float32'"
        )
    if dtype == "bfloat16":
        _check_bfloat16()
    capability = cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY[dtype]:
        raise ConfigError(
            f"dtype is {dtype!r}, for GPUs of compute capability 8.0 or newer; {device} has "
            f"{'.'.join(map(str, capability))}: use 'float16' or 'float32'"
        )
    return dtype


def _check_bfloat16() -> None:
    try:
        as_dtype("bfloat16")
    except TypeError as error:
        raise ConfigError(f"{error}; or use --dtype float32") from error
