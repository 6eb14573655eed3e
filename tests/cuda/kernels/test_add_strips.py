"""The second step of sums over rows: many strips are shared between the warps of a block."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from minigrad.kernels.cuda import launch
from minigrad.kernels.cuda.sums import add_strips

MOST_STRIPS = 16  # that a thread may add up one after the other


@pytest.mark.parametrize("columns", [1, 65, 768])
@pytest.mark.parametrize("number", [1, 2, 3, 7, 8, 33, 264, 500])
def test_the_sum_of_strips(machine, number, columns):
    strips = np.random.default_rng(number).standard_normal((number, columns)).astype(np.float32)
    expected = strips.astype(np.float64).sum(axis=0)
    totals = []
    for order in (0, 1):  # a race would show as a difference
        with machine(order):
            totals.append(add_strips(strips, np.dtype("float32")))
    np.testing.assert_array_equal(*totals)
    np.testing.assert_allclose(totals[0], expected, rtol=1e-5, atol=1e-5)
    with machine():
        rounded = add_strips(strips, np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_allclose(rounded.astype(np.float64), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("number", [1, 6, 16, 33, 264, 500])
def test_no_thread_adds_up_many_strips_and_few_are_idle(monkeypatch, number):
    launches = []
    monkeypatch.setattr(launch, "emulate", lambda kernel, grid, threads, *_: launches.append(grid[0] * threads))
    columns = 1024
    add_strips(np.ones((number, columns), np.float32), np.dtype("float32"))
    (threads,) = launches
    assert number * columns / MOST_STRIPS <= threads <= number * columns
