"""minigrad: reverse-mode automatic differentiation on NumPy and CuPy, with every backward pass written by hand."""

from . import cuda, functional, hints, kernels, nn, optim, random, viz
from ._version import __version__
from .autograd import AnomalyError, AutogradError, Function
from .backend import DeviceError, cuda_is_available, get_array_module
from .gradcheck import GradcheckError, gradcheck
from .in_place import mark_written
from .kernels.cpu import get_num_threads, set_num_threads
from .modes import detect_anomaly, enable_grad, no_grad
from .random import manual_seed
from .serialization import load, save
from .tensor import Tensor

__all__ = [
    "AnomalyError",
    "AutogradError",
    "DeviceError",
    "Function",
    "GradcheckError",
    "Tensor",
    "__version__",
    "cuda",
    "cuda_is_available",
    "detect_anomaly",
    "enable_grad",
    "functional",
    "get_array_module",
    "get_num_threads",
    "gradcheck",
    "kernels",
    "load",
    "manual_seed",
    "mark_written",
    "nn",
    "no_grad",
    "optim",
    "random",
    "save",
    "set_num_threads",
    "viz",
]

del globals()["tensor"]  # the module: mg.tensor(…) is PyTorch's, and gets a hint
globals()["__getattr__"] = hints.of_module(__name__, hints.MINIGRAD, vars(functional))
