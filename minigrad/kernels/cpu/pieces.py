"""Elementwise and row-by-row work, piece by piece.

A piece is a slice of consecutive rows or elements, small enough for the arrays of a computation to stay in a core's
cache. A NumPy expression passes over its arrays several times; on a piece, all passes but the first read the cache. The
pieces are shared among the threads of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .threads import in_parallel, parts_for, stretch

ALONE = 64 * 1024  # elements in a piece with one thread: several arrays of this size fit into a core's own cache
TOGETHER = 128 * 1024  # with several threads: with fewer calls they wait less for Python's interpreter lock
LEAST = 256 * 1024  # elements that justify another thread
VISITS = 8  # how often a pixel is read: a window of 3 × 3 sees it 9 times
LEAST_WHOLE = 32 * 1024  # the same for work on whole matrices, which costs more per element


def is_large(x: Any) -> bool:
    """True if cutting the array into pieces pays."""
    return x.size > ALONE


def pieces(rows: int, row_size: int) -> tuple[list[slice], int]:
    """The rows of an array cut into pieces, and the number of threads to use for them."""
    elements = rows * row_size
    parts = parts_for(elements, LEAST)
    size = TOGETHER if parts > 1 else ALONE
    count = max(1, min(rows, parts * round(elements / (size * parts))))  # equally many for every thread
    return [stretch(rows, i, count) for i in range(count)], min(parts, count)


def for_each(cut: Sequence[Any], parts: int, work: Callable[[int, Any], None]) -> None:
    """Call work(number, piece) for every piece of `cut`, on `parts` threads."""

    def share(i: int, parts: int) -> None:
        mine = stretch(len(cut), i, parts)
        for number in range(mine.start, mine.stop):
            work(number, cut[number])

    in_parallel(share, parts)


def forward_in_pieces(ctx: Any, x: Any, y: Any, cost: int, rest: Any) -> None:
    """y = f(x, …), piece by piece along the first axis, for the operation of `ctx`. `cost`: elements in a piece of one.

    Each piece has its own context.
    """
    ctx.cut, ctx.parts = pieces(len(x), cost)
    ctx.contexts = [type(ctx)(ctx.function, ctx.needs_input_grad) for _ in ctx.cut]

    def work(number: int, piece: slice) -> None:
        y[piece] = ctx.function.forward(ctx.contexts[number], x[piece], *rest)

    for_each(ctx.cut, ctx.parts, work)


def backward_in_pieces(ctx: Any, g: Any, dx: Any) -> list[Any]:
    """The backward of `forward_in_pieces`. The gradients of the pieces make up `dx`, unless it is None.

    Returns the gradients of the other arguments, which all pieces share: they are summed.
    """
    shared: list[Any] = [None] * len(ctx.cut)

    def work(number: int, piece: slice) -> None:
        gradients = ctx.function.backward(ctx.contexts[number], g[piece])
        own, *shared[number] = gradients if isinstance(gradients, tuple) else (gradients,)
        if dx is not None:
            dx[piece] = own

    for_each(ctx.cut, ctx.parts, work)
    return [None if parts[0] is None else sum(parts) for parts in zip(*shared, strict=True)]


class RowByRow:
    """For operations f(x, …) in which each row of the result depends only on the same row of x, like SiLU or RMSNorm.

    The operation's own forward and backward run piece by piece. The gradients of other arguments are summed.
    """

    returns_new_arrays = False

    @staticmethod
    def fits(x: Any, *rest: Any) -> bool:
        return x.ndim > 0 and is_large(x) and x.dtype.kind == "f" and x.flags.c_contiguous

    @staticmethod
    def forward(ctx: Any, x: Any, *rest: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])  # (N, C)
        y = np.empty_like(rows)
        forward_in_pieces(ctx, rows, y, rows.shape[1], rest)
        return y.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        g_rows = g.reshape(-1, g.shape[-1])
        dx = np.empty_like(g_rows)
        return dx.reshape(g.shape), *backward_in_pieces(ctx, g_rows, dx)


class ImageByImage:
    """For operations f(x, …) in which each image of the result depends only on the same image of x (N, C, H, W).

    As `RowByRow`. The operation has a function `output_shape(x, …)`: the shape of the result.
    """

    returns_new_arrays = False

    @staticmethod
    def fits(x: Any, *rest: Any) -> bool:
        return x.ndim == 4 and len(x) > 1 and VISITS * x.size > ALONE and x.dtype.kind == "f"

    @staticmethod
    def forward(ctx: Any, x: Any, *rest: Any) -> Any:
        ctx.shape = x.shape
        y = np.empty(ctx.function.output_shape(x, *rest), x.dtype)
        forward_in_pieces(ctx, x, y, VISITS * math.prod(x.shape[1:]), rest)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        dx = np.empty(ctx.shape, g.dtype) if ctx.needs_input_grad[0] else None
        return dx, *backward_in_pieces(ctx, g, dx)


def in_pieces(jobs: list[tuple[Callable[..., Any], list[Any]]]) -> list[Any]:
    """Call function(*arrays) for each job. Its arrays have one shape and are combined element by element.

    Every job is cut into pieces, and each thread gets an equal share of all elements. Returns the results of all
    pieces, in order.
    """
    cut = []
    for function, arrays in jobs:
        if arrays[0].size > ALONE and all(array.flags.c_contiguous for array in arrays):
            flat = [array.reshape(-1) for array in arrays]
            cut += [(function, [a[i : i + ALONE] for a in flat]) for i in range(0, flat[0].size, ALONE)]
        else:
            cut.append((function, arrays))
    ends = np.cumsum([arrays[0].size for _, arrays in cut])
    total = int(ends[-1]) if len(cut) else 0
    results = [None] * len(cut)

    def share(i: int, parts: int) -> None:
        first, last = np.searchsorted(ends, [total * i / parts, total * (i + 1) / parts], side="left")
        for number in range(first, len(cut) if i + 1 == parts else last):
            function, arrays = cut[number]
            results[number] = function(*arrays)

    in_parallel(share, parts_for(total, LEAST))
    return results


def in_whole(jobs: list[tuple[Callable[..., Any], list[Any]]]) -> None:
    """Call function(*arrays) for each job, several jobs at a time, the largest first."""
    largest_first = sorted(jobs, key=lambda job: -job[1][0].size)

    def share(i: int, parts: int) -> None:
        for function, arrays in largest_first[i::parts]:
            function(*arrays)

    in_parallel(share, parts_for(sum(arrays[0].size for _, arrays in jobs), LEAST_WHOLE))


def squared_norm(arrays: list[Any]) -> Any:
    """The sum of the squares of all elements of all arrays."""
    return sum(in_pieces([(np.vdot, [array, array]) for array in arrays]))
