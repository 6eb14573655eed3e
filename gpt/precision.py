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
        fast = on_gpu and cuda.get_device_capability(device) >= (8, 0) and kernels.in_use(device, "bfloat16")
        dtype = "bfloat16" if fast else "float32"
    if dtype == "float32" or dtype not in DTYPES:
        return dtype
    if not on_gpu:
        raise ConfigError(f"dtype is {dtype!r}, but the CPU computes in 'float32': NumPy has no fast 16-bit arithmetic")
    if dtype == "bfloat16":
        _check_bfloat16()
    capability = cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY[dtype]:
        raise ConfigError(
            f"dtype is {dtype!r}, for GPUs of compute capability 8.0 or newer; {device} has "
            f"{'.'.join(map(str, capability))}: use 'float16' or 'float32'"
        )
    if not kernels.in_use(device, "float32" if dtype == "tf32" else dtype):
        raise ConfigError(
            f"dtype is {dtype!r}, which needs the CUDA kernels, and not all of them run on {device}: "
            f"MINIGRAD_KERNELS=reference leaves them out, or they failed their check there, as python -m "
            f"minigrad.kernels.cuda.proof shows; use 'float32'"
        )
    return dtype


def _check_bfloat16() -> None:
    try:
        as_dtype("bfloat16")
    except TypeError as error:
        raise ConfigError(f"{error}; or use --dtype float32") from error
