"""Looking up rows of a table."""

from __future__ import annotations

import numpy as np

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cuda
from .precision import is_half


def check_ids(what, ids, size):
    """Raise unless all ids are from 0 to size - 1. Values on a GPU are not checked: the host would have to wait."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"expected {what} of an integer dtype, not {ids.dtype}")
    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexError(f"expected {what} from 0 to {size - 1}, but they range from {ids.min()} to {ids.max()}")


def sum_rows(ids, rows, n):
    """Sum rows by id: row v of the result (n, C) is the sum of those rows (N, C) whose id, in ids (N,), is v.

    The rows are sorted by id, so that the rows of one id are consecutive. Their order is always the same, and so the
    result is the same bit for bit.

    NumPy sums runs of consecutive rows with `reduceat`. CuPy's version subtracts running totals of all rows, which
    loses digits, and the GPU would have to tell the host where the runs start. So on a GPU every row adds the row
    before it if that row has the same id, then the total two rows before it, four, eight, …: in the end the last row
    of each run holds the sum of the run.
    """
    if is_half(rows):
        return sum_rows(ids, rows.astype("float32"), n).astype(rows.dtype)
    xp = get_array_module(rows)
    table = xp.zeros((n, rows.shape[1]), rows.dtype)
    if not ids.size:
        return table
    order = xp.argsort(ids, kind="stable")
    ids, rows = ids[order], rows[order]
    if xp is np:
        starts = np.flatnonzero(np.concatenate([np.ones(1, bool), ids[1:] != ids[:-1]]))
        table[ids[starts]] = np.add.reduceat(rows, starts, axis=0)
        return table
    distance = 1
    while distance < len(ids):
        same = (ids[distance:] == ids[:-distance])[:, None]
        rows[distance:] += xp.where(same, rows[:-distance], xp.zeros((), rows.dtype))
        distance *= 2
    names = xp.arange(n)
    last = xp.searchsorted(ids, names, side="right") - 1  # -1 if no id is that small; ids[-1] is then another id
    return xp.where((ids[last] == names)[:, None], rows[last], table)


@accelerated(cuda=cuda.Embedding)
class Embedding(Function):
    """y = W[ids]: one row of the table W for every id.

    Shapes: ids (…), W (V, C), y (…, C).

    Backward. Row v of W is copied to every place where ids = v, so its gradient is the sum of g over those places.
    """

    returns_new_arrays = True

    @staticmethod
    def forward(ctx, ids, weight):
        if weight.ndim != 2:
            raise ValueError("expected weight (V, C)")
        check_ids("ids", ids, weight.shape[0])
        ctx.save(ids)
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    def backward(ctx, g):
        (ids,) = ctx.saved
        return None, sum_rows(ids.reshape(-1), g.reshape(ids.size, ctx.shape[1]), ctx.shape[0])
