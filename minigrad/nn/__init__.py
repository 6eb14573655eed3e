"""Layers: modules that hold parameters and call `minigrad.functional`."""

from .. import hints
from .checkpoint import checkpoint
from .layers import (
    GELU,
    AvgPool2d,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool2d,
    ReLU,
    RMSNorm,
    Softplus,
    SquaredReLU,
)
from .module import Module, ModuleList, Parameter, Sequential

__all__ = [
    "GELU",
    "AvgPool2d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "Softplus",
    "SquaredReLU",
    "checkpoint",
]

globals()["__getattr__"] = hints.of_module(__name__, hints.NN)
