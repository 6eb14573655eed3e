"""What code outside the engine may ask of GPUs.

    mg.cuda.is_available()                      # is there a GPU that CuPy can use?
    mg.cuda.get_device_capability("cuda:0")     # (8, 0) for an A100
    with mg.cuda.allow_tf32():                  # faster float32 matrix products, with 10 bits of mantissa
        ...
    mg.cuda.can_capture("cuda:0", "float32")    # do the kernels run that a captured training step needs?
    step = mg.cuda.Captured(compute_step)       # record a step as a CUDA graph and replay it

The names are those of `torch.cuda` where it has one. Importing this module does not import CuPy.
"""

from __future__ import annotations

from typing import Any

from .backend import check_device, on
from .backend import cuda_is_available as is_available
from .kernels import in_use
from .kernels.cuda.graph import NEEDED, Captured, CaptureError
from .kernels.cuda.launch import compute_capability
from .kernels.cuda.products import rounding_to_tf32 as allow_tf32

__all__ = ["CaptureError", "Captured", "allow_tf32", "can_capture", "get_device_capability", "is_available"]


def get_device_capability(device: str = "cuda") -> tuple[int, int]:
    """The compute capability of a GPU, as (major, minor). Raises `DeviceError` if the GPU is not available."""
    if device == "cpu":
        raise ValueError('get_device_capability: expected "cuda" or "cuda:N", got "cpu"')
    check_device(device)
    with on(device):
        return divmod(compute_capability(), 10)


def can_capture(device: str, dtype: Any) -> bool:
    """Do the kernels run on this device, for arrays of this dtype, that a captured training step needs?"""
    return device != "cpu" and in_use(device, dtype, *NEEDED)
