"""The CUDA kernels give what the operations that they replace give: run here by the emulator, and compiled by nvcc."""

import numpy as np
import pytest
from cuda_emulator import emulated, needs_compiler

import minigrad as mg
from minigrad.kernels import cuda
from minigrad.ops import normalization

TOLERANCES = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def as_operation(kernel):
    """An operation that runs a kernel."""
    parts = {"forward": staticmethod(kernel.forward), "backward": staticmethod(kernel.backward)}
    return type(kernel.__name__, (mg.Function,), parts)


def forward_and_backward(operation, upstream, *arguments):
    """The value, and the gradients of the arrays among the arguments."""
    tensors = [
        mg.Tensor(a, requires_grad=True) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments
    ]
    y = operation.apply(*tensors)
    y.backward(upstream)
    return [y.data, *(t.grad for t in tensors if isinstance(t, mg.Tensor))]


@needs_compiler
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 32), (5, 48), (9, 129), (30, 384), (2, 1600)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(rows, channels, affine, order):
    rng = np.random.default_rng(rows * channels)
    x = rng.standard_normal((rows, channels), np.float32)
    gamma, beta = (rng.standard_normal(channels, np.float32) if affine else None for _ in range(2))
    upstream = rng.standard_normal(x.shape, np.float32)
    with mg.kernels.reference():
        wanted = forward_and_backward(normalization.LayerNorm, upstream, x, gamma, beta, 1e-5)
    with emulated(order):
        got = forward_and_backward(as_operation(cuda.LayerNorm), upstream, x, gamma, beta, 1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
