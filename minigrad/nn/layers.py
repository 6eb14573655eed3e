"""The layers. Parameters are float32 on the CPU; `.to(device, dtype)` moves a whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functional as F
from .. import random
from ..arguments import pair
from ..tensor import Tensor
from .module import Module, Parameter


class Linear(Module):
    """y = x W^T + b: (…, C) -> (…, O), from C in_features to O out_features. weight (O, C), bias (O,).

    Both are initialized uniformly within ±1/sqrt(C), as in PyTorch.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        bound = 1 / math.sqrt(max(in_features, 1))
        self.weight = Parameter(random.uniform((out_features, in_features), -bound, bound))
        self.bias = Parameter(random.uniform((out_features,), -bound, bound)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """Convolution of images: (…, C, H, W) -> (…, O, P, Q), from C in_channels to O out_channels; see `F.conv2d`.

    weight (O, C / groups, kh, kw), bias (O,). Both are initialized uniformly within ±1/sqrt(n), where n is the number
    of pixels that an output sees, C / groups kh kw, as in PyTorch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: expected channels that are multiples of groups, got {in_channels} in_channels and "
                f"{out_channels} out_channels in {groups} groups"
            )
        shape = (out_channels, in_channels // groups, *pair("Conv2d", "kernel_size", kernel_size, 1))
        bound = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        self.weight = Parameter(random.uniform(shape, -bound, bound))
        self.bias = Parameter(random.uniform((out_channels,), -bound, bound)) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Any) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaxPool2d(Module):
    """The largest pixel in each window: (…, H, W) -> (…, P, Q); see `F.max_pool2d`."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(MaxPool2d):
    """The mean of each window: (…, H, W) -> (…, P, Q); see `F.avg_pool2d`."""

    def forward(self, x: Any) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class Flatten(Module):
    """All axes but the first in one: (N, …) -> (N, C)."""

    def forward(self, x: Any) -> Tensor:
        return F.reshape(x, len(x), math.prod(x.shape[1:]))


class Embedding(Module):
    """One row of a table per id: integers (…) -> (…, embedding_dim). weight (num, dim), initialized normal(0, 1)."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        self.weight = Parameter(random.normal((num_embeddings, embedding_dim)))

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(ids, self.weight)


class LayerNorm(Module):
    """Shift every row to mean 0, scale it to variance 1, multiply by weight (initially 1), add bias (initially 0)."""

    def __init__(self, features: int, bias: bool = True, eps: float = 1e-5) -> None:
        self.weight = Parameter(np.ones(features, np.float32))
        self.bias = Parameter(np.zeros(features, np.float32)) if bias else None
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Divide every row by its root mean square, then multiply by weight (initially 1)."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        self.weight = Parameter(np.ones(features, np.float32))
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """In training, set each element to 0 with probability p and divide the others by 1 - p. Else return x unchanged."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: expected a probability p from 0 to 1, got {p}")
        self.p = p

    def forward(self, x: Any) -> Tensor:
        return F.dropout(x, self.p, self.training)


class GELU(Module):
    """x Phi(x). `approximate` is "tanh" (as in GPT-2) or "none" (exact)."""

    def __init__(self, approximate: str = "tanh") -> None:
        self.approximate = approximate

    def forward(self, x: Any) -> Tensor:
        return F.gelu(x, self.approximate)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        return F.relu(x)


class SquaredReLU(Module):
    """max(x, 0)^2."""

    def forward(self, x: Any) -> Tensor:
        return F.squared_relu(x)


class Softplus(Module):
    """ln(1 + e^x), a smooth form of max(x, 0)."""

    def forward(self, x: Any) -> Tensor:
        return F.softplus(x)
