"""Losses."""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cpu
from .embedding import check_ids
from .reduce import finite_max


@accelerated(cpu=cpu.CrossEntropy)
class CrossEntropy(Function):
    """The negative log-likelihood of the targets under softmax(x), in nats.

        loss_n = ln(sum_j e^(x_nj)) - x_n,target(n)

    Shapes: x (…, V) logits, targets (…) integers from 0 to V - 1, or `ignore_index` where there is nothing to predict.
    `reduction`: "mean" over the targets that count, "sum", or "none" for one loss a target. The mean of no target is
    NaN, as there is none.

    Backward. Let p = softmax(x). The first term's derivative is p_j, the second's is 1 at the target:
        dloss_n/dx_nj = p_nj - 1[j = target(n)]
    times g, divided by the number of targets for the mean, and 0 in the rows that are ignored. The gradient of a row
    adds up to 0: what the target gains the other classes lose.
    """

    @staticmethod
    def forward(ctx, x, targets, ignore_index, reduction):
        xp = get_array_module(x)
        if x.ndim == 0 or targets.shape != x.shape[:-1]:
            raise ValueError("wanted logits (…, V) and targets (…)")
        flat = targets.reshape(-1)
        counted = flat != ignore_index
        flat = xp.where(counted, flat, 0)
        check_ids("targets", flat, x.shape[-1])

        rows = x.reshape(len(flat), x.shape[-1])  # (N, V)
        p = rows - finite_max(rows, axis=-1)
        at_target = p[xp.arange(len(flat)), flat]
        xp.exp(p, out=p)
        total = p.sum(axis=-1, keepdims=True)
        total = xp.where(total == 0, 1, total)  # as in softmax: a row of -inf has p = 0
        p /= total
        losses = xp.where(counted, xp.log(total[:, 0]) - at_target, xp.zeros((), x.dtype))  # (N,)

        ctx.save(p, flat, counted)
        n = counted.sum(dtype=x.dtype)
        ctx.shape, ctx.reduction, ctx.n = x.shape, reduction, xp.maximum(n, 1)
        if reduction == "none":
            return losses.reshape(targets.shape)
        return xp.where(n > 0, losses.sum() / ctx.n, xp.nan) if reduction == "mean" else losses.sum()

    @staticmethod
    def backward(ctx, g):
        p, flat, counted = ctx.saved
        xp = get_array_module(p)
        g_row = g.reshape(-1) / ctx.n if ctx.reduction == "mean" else g.reshape(-1)  # (N,) or (1,)
        g_row = xp.where(counted, g_row, xp.zeros((), p.dtype))  # (N,)
        dx = p * g_row[:, None]
        dx[xp.arange(len(flat)), flat] -= g_row
        return dx.reshape(ctx.shape), None, None, None
