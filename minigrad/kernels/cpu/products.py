"""Matrix products on all threads: on those of the BLAS library, or on the pool's, which split the result.

MKL divides its products well among its threads, OpenBLAS only those of few rows. For many rows, two OpenBLAS products
side by side are faster.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .blas import library, product
from .threads import in_parallel, one_after_the_other, parts_for, run_together, stretch, with_library_threads

LEAST = 4e6  # multiplications that justify another thread: some tens of microseconds of work
SMALL = 2e6  # multiplications up to which the reference, with fewer calls, is as fast
LATE = 4e6  # multiplications that a thread does in the time that another takes to wake up, begin and report back
FEW = 16  # with fewer rows than this, the time is spent on fetching the weights, not on multiplying
SHARED = 256  # rows up to which OpenBLAS's own threads are faster: products side by side each pack the weights
STRIP = 64  # rows that are added up one after the other: each addition may lose half of the last digit
FLOATS = np.dtype(np.float32), np.dtype(np.float64)


def same_floats(first: Any, *others: Any) -> bool:
    """True if the arrays are all float32 or all float64. None among the others is ignored."""
    return first.dtype in FLOATS and all(array is None or array.dtype == first.dtype for array in others)


class Linear:
    """y = x W^T + b; see ops/matmul.py. The threads split the rows of y, or its columns if there are more columns."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, weight: Any, bias: Any) -> bool:
        return (
            same_floats(x, weight, bias)
            and x.ndim > 0
            and weight.ndim == 2
            and x.shape[-1] == weight.shape[1]
            and (bias is None or bias.shape == weight.shape[:1])
            and max(x.size // max(x.shape[-1], 1), FEW) * weight.size > SMALL
        )

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save(x, weight)
        outputs, inputs = weight.shape
        n = math.prod(x.shape[:-1])
        rows, y = x.reshape(n, inputs), np.empty((n, outputs), x.dtype)
        work = max(n, FEW) * outputs * inputs
        ctx.parts = parts_for(work, LEAST)
        ctx.in_one = ctx.parts == 1 or library() == "mkl" or n <= SHARED
        if ctx.in_one:
            multiply(product(rows, weight.T, y), ctx.parts)
            if bias is not None:
                y += bias
            return y.reshape(*x.shape[:-1], outputs)
        ctx.head_start = min(0.5, LATE / work)
        tasks = []
        for i in range(ctx.parts):
            if n >= outputs:
                own = (stretch(n, i, ctx.parts, ctx.head_start), slice(None))
            else:
                own = (slice(None), stretch(outputs, i, ctx.parts, ctx.head_start))
            calls = [product(rows[own[0]], weight[own[1]].T, y[own])]
            if bias is not None:
                calls.append(functools.partial(np.add, y[own], bias[own[1]], y[own]))
            tasks.append(functools.partial(one_after_the_other, calls))
        run_together(tasks)
        return y.reshape(*x.shape[:-1], outputs)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, weight = ctx.saved
        outputs, inputs = weight.shape
        n = math.prod(x.shape[:-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows, g_rows = x.reshape(n, inputs), g.reshape(n, outputs)
        dx = np.empty((n, inputs), x.dtype) if wants_x else None
        dweight = np.empty((outputs, inputs), x.dtype) if wants_weight else None
        dbias = np.empty(outputs, x.dtype) if wants_bias else None

        if ctx.in_one:
            if dx is not None:
                multiply(product(g_rows, weight, dx), ctx.parts)
            if dweight is not None:
                multiply(product(g_rows.T, rows, dweight), ctx.parts)
            if dbias is not None:  # by NumPy's library, on one thread: two would take cores from MKL's next product
                sum_rows(g_rows, dbias)
            return None if dx is None else dx.reshape(x.shape), dweight, dbias
        tasks = []
        for i in range(ctx.parts):
            calls = []
            if dx is not None:
                own = stretch(n, i, ctx.parts, ctx.head_start / 2)  # half of it, for twice the work
                calls.append(product(g_rows[own], weight, dx[own]))
            own = stretch(outputs, i, ctx.parts, ctx.head_start / 2)
            if dweight is not None:
                calls.append(product(g_rows[:, own].T, rows, dweight[own]))
            if dbias is not None:
                calls.append(functools.partial(sum_rows, g_rows[:, own], dbias[own]))
            tasks.append(functools.partial(one_after_the_other, calls))
        run_together(tasks)
        return None if dx is None else dx.reshape(x.shape), dweight, dbias


def sum_rows(x: Any, out: Any) -> None:
    """out (C,) = the sum of the rows of x (N, C): products with ones, each with few enough rows to lose no digits."""
    ones = np.ones(min(len(x), STRIP), x.dtype)
    if len(x) <= STRIP:
        np.dot(ones, x, out)
        return
    strips = np.empty((-(-len(x) // STRIP), x.shape[1]), x.dtype)
    for i, strip in enumerate(strips):
        own = x[i * STRIP : (i + 1) * STRIP]
        np.dot(ones[: len(own)], own, strip)
    sum_rows(strips, out)


def multiply(call: Callable[[], Any], parts: int) -> None:
    """Run a whole product in one call: on the library's own threads if it is worth several parts, else on this one."""
    if parts > 1:
        with_library_threads(call)
    else:
        run_together([call])


class MatMul:
    """y = a @ b for matrices and for stacks of matrices with equal leading axes; see ops/matmul.py."""

    returns_new_arrays = True

    @staticmethod
    def fits(a: Any, b: Any) -> bool:
        alike = same_floats(a, b) and a.ndim == b.ndim >= 2 and a.shape[:-2] == b.shape[:-2]
        return alike and a.shape[-1] == b.shape[-2]

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        ctx.save(a, b)
        ctx.parts = parts_for(a.size * b.shape[-1], LEAST)
        return shared_product(a, b, ctx.parts)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        a, b = ctx.saved
        wants_a, wants_b = ctx.needs_input_grad
        da = shared_product(g, b.swapaxes(-1, -2), ctx.parts) if wants_a else None
        db = shared_product(a.swapaxes(-1, -2), g, ctx.parts) if wants_b else None
        return da, db


def shared_product(a: Any, b: Any, parts: int) -> Any:
    """a @ b on `parts` threads, which split the stack of matrices, or else the rows of y."""
    y = np.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    by_matrix = a.ndim > 2 and len(a) >= parts

    def work(i: int, parts: int) -> None:
        if by_matrix:
            own = stretch(len(a), i, parts)
            np.matmul(a[own], b[own], out=y[own])
        else:
            own = stretch(a.shape[-2], i, parts)
            np.matmul(a[..., own, :], b, out=y[..., own, :])

    in_parallel(work, parts)
    return y
