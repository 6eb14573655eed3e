"""Looking up rows of a table."""

from __future__ import annotations

import numpy as np

from ..autograd import Function
from ..backend import get_array_module


def check_ids(what, ids, size):
    """Refuse ids outside 0 … size - 1. Arrays on a GPU are not looked at: that would make the host wait for it."""
    if ids.dtype.kind not in "iu":
        raise TypeError(f"wanted {what} of an integer dtype, not {ids.dtype}")
    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexError(f"wanted {what} from 0 to {size - 1}, but they range from {ids.min()} to {ids.max()}")


class Embedding(Function):
    """y = W[ids]: row `id` of the table W for every id.

    Shapes: ids (…), W (V, C), y (…, C).

    Backward. Row v of W is copied to every place where ids = v, so its gradient is the sum of g over those places.
    The places are sorted by id, which turns each such sum into a sum over one stretch of consecutive rows; the order
    within a stretch is always the same, so the result is too, bit for bit.
    """

    returns_new_arrays = True

    @staticmethod
    def forward(ctx, ids, weight):
        if weight.ndim != 2:
            raise ValueError("wanted weight (V, C)")
        check_ids("ids", ids, weight.shape[0])
        ctx.save(ids)
        ctx.shape = weight.shape
        return weight[ids]

    @staticmethod
    def backward(ctx, g):
        (ids,) = ctx.saved
        xp = get_array_module(g)
        dweight = xp.zeros(ctx.shape, g.dtype)
        if ids.size:
            ids = ids.reshape(-1)
            order = xp.argsort(ids, kind="stable")
            ids = ids[order]
            starts = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), ids[1:] != ids[:-1]]))
            dweight[ids[starts]] = xp.add.reduceat(g.reshape(-1, ctx.shape[1])[order], starts, axis=0)
        return None, dweight
