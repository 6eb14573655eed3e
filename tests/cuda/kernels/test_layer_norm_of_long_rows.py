"""Layer norm where a row is too long for the registers of a warp: the threads of a block share it."""

from __future__ import annotations

import pytest

from minigrad.kernels import cuda
from minigrad.ops import normalization
from tests.cuda.kernels.calls import assert_same, numbers


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (3, 1024)),
        ("float32", (1, 1025)),
        ("float16", (37, 1032)),
        ("float32", (9, 4095)),
        ("bfloat16", (8, 4096)),
    ],
)
def test_long_rows(machine, dtype, shape):
    upstream, x, gamma, beta = (numbers(dtype, *each) for each in (shape, shape, shape[-1:], shape[-1:]))
    kernel, operation = cuda.LayerNorm, normalization.LayerNorm
    assert_same(machine, kernel, operation, dtype, upstream, x, gamma, beta, 1e-5, sums=shape[0])
