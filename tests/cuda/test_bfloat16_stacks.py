"""Stacks of bfloat16 matrices on a GPU: CuPy's `matmul` fails on them, so they are multiplied in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import kernels
from tests.fakes import cupy as fake_cupy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    fake_cupy.install(monkeypatch)
    with kernels.reference():
        yield fake_cupy.cupy


def test_the_fake_refuses_what_cupy_refuses(cupy):
    matrix, stack = cupy.ones((2, 3), BFLOAT16), cupy.ones((4, 3, 2), BFLOAT16)
    for a, b in ((stack, matrix), (matrix, stack), (cupy.ones(3, BFLOAT16), stack), (stack.astype("f"), matrix)):
        with pytest.raises(TypeError, match="stacks of bfloat16"):
            a @ b
    assert (matrix @ cupy.ones((3, 2), BFLOAT16)).dtype == BFLOAT16
    assert (stack[:0] @ matrix).shape == (0, 3, 3)
    assert (stack.astype("f2") @ matrix.astype("f2")).dtype == np.float16


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 4), (2, 4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4,)),
        ((3, 4), (4, 5)),
    ],
)
def test_matmul_of_bfloat16_is_the_product_in_float32_rounded_once(a, b):
    values = [RNG.standard_normal(shape).astype(BFLOAT16) for shape in (a, b)]
    left, right = (mg.Tensor(x, requires_grad=True, device="cuda") for x in values)
    y = F.matmul(left, right)
    wide = [mg.Tensor(x.astype(np.float32), requires_grad=True) for x in values]
    expected = F.matmul(*wide)
    assert y.dtype == BFLOAT16
    np.testing.assert_array_equal(y.numpy(), expected.numpy().astype(BFLOAT16))
    upstream = RNG.standard_normal(y.shape).astype(BFLOAT16)
    y.backward(upstream)
    expected.backward(upstream.astype(np.float32))
    for ours, theirs in zip((left, right), wide, strict=True):
        assert ours.grad.dtype == BFLOAT16
        # a matrix that meets a whole stack has a sum for its gradient, of terms that are each rounded
        np.testing.assert_allclose(ours.grad.get().astype(np.float32), theirs.grad, rtol=2**-6, atol=2**-6)
