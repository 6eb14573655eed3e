"""Sums over the rows of a matrix: the gradients of biases and of the scales of norms."""

from __future__ import annotations

from typing import Any

from ...backend import get_array_module
from .launch import WARP, Kernel, multiprocessors, width

THREADS = 256
MOST_WAYS = 32  # warps that share a column in add_strips: those of the largest block


def sum_rows(x: Any) -> Any:
    """The sum over axis 0 of a packed matrix (N, C), added up in float32: (C,), of the dtype of x."""
    rows, columns = x.shape
    w = width(x.dtype, columns)
    blocks = -(-columns // (WARP * w))
    number = max(1, min(4 * multiprocessors() // max(blocks, 1), -(-rows // (THREADS // WARP))))
    strips = get_array_module(x).empty((number, columns), "float32")
    Kernel("sum_rows.cu", "sum_strips", x.dtype, WIDTH=w)((blocks, number), THREADS, x, rows, columns, strips)
    return add_strips(strips, x.dtype)


def add_strips(strips: Any, dtype: Any) -> Any:
    """The sum over axis 0 of some rows of float32 (S, C): (C,), of another dtype."""
    number, columns = strips.shape
    ways = 1
    while ways < MOST_WAYS and 4 * ways <= number:  # each warp is left at least two rows to add up
        ways *= 2
    threads = max(THREADS, ways * WARP)
    total = get_array_module(strips).empty(columns, dtype)
    kernel = Kernel("sum_rows.cu", "add_strips", dtype, WIDTH=1)
    kernel(-(-columns // (threads // ways)), threads, strips, number, columns, ways, total)
    return total
