"""Losses."""

from __future__ import annotations

from ..autograd import Function
from ..backend import get_array_module
from ..kernels import accelerated, cpu, cuda
from .embedding import check_ids
from .precision import is_half
from .reduce import finite_max


@accelerated(cpu=cpu.CrossEntropy, cuda=cuda.CrossEntropy)
class CrossEntropy(Function):
    """The negative log-likelihood of the targets under p = softmax(x), in nats.

        loss_n = -sum_j q_nj ln p_nj = ln(sum_j e^(x_nj)) - sum_j q_nj x_nj        as the q_nj of a row add up to 1

    q_n is the distribution that p_n should match. Without label smoothing it is 1 at the target, so that
    loss_n = -ln p_n,target(n). Label smoothing e takes a share e of that 1 and divides it equally among all V classes
    (Szegedy et al., 2016),
        q_nj = (1 - e) 1[j = target(n)] + e / V
    so that no logit is driven to infinity: the loss is smallest where p = q.

    Shapes: x (…, V) logits, targets (…) integers from 0 to V - 1, or `ignore_index` where there is nothing to predict.
    `reduction`: "mean" over the targets that are not ignored, "sum", or "none" for one loss per target. The mean is NaN
    if all targets are ignored. The loss of half-precision logits is float32.

    Backward. The first term's derivative is p_j, the second's is q_j:
        dloss_n/dx_nj = p_nj - q_nj
    times g, divided by the number of targets for the mean, and 0 in the rows that are ignored. The gradient of a row
    adds up to 0: what the target gains, the other classes lose.

    A row of only -inf has p = 0, as in softmax.py. So its loss is inf, and its gradient is -q, which is finite.
    """

    @staticmethod
    def forward(ctx, x, targets, ignore_index, reduction, label_smoothing=0.0):
        xp = get_array_module(x)
        if x.ndim == 0 or targets.shape != x.shape[:-1]:
            raise ValueError("expected logits (…, V) and targets (…)")
        flat = targets.reshape(-1)
        counted = flat != ignore_index
        flat = xp.where(counted, flat, 0)
        check_ids("targets", flat, x.shape[-1])

        rows = x.reshape(len(flat), x.shape[-1])  # (N, V)
        rows = rows.astype("float32") if is_half(rows) else rows
        p = rows - finite_max(rows, axis=-1)
        qx = p[xp.arange(len(flat)), flat]  # sum_j q_j x_j, without smoothing
        if label_smoothing:
            qx = (1 - label_smoothing) * qx + label_smoothing * p.mean(axis=-1)
        xp.exp(p, out=p)
        total = p.sum(axis=-1, keepdims=True)
        total = xp.where(total == 0, 1, total)  # as in softmax: a row of -inf has p = 0
        p /= total
        losses = xp.where(counted, xp.log(total[:, 0]) - qx, xp.zeros((), p.dtype))  # (N,)

        ctx.save(p, flat, counted)
        n = counted.sum(dtype=p.dtype)
        ctx.shape, ctx.dtype, ctx.n = x.shape, x.dtype, xp.maximum(n, 1)
        ctx.reduction, ctx.label_smoothing = reduction, label_smoothing
        if reduction == "none":
            return losses.reshape(targets.shape)
        return xp.where(n > 0, losses.sum() / ctx.n, xp.nan) if reduction == "mean" else losses.sum()

    @staticmethod
    def backward(ctx, g):
        p, flat, counted = ctx.saved
        xp = get_array_module(p)
        g_row = g.reshape(-1) / ctx.n if ctx.reduction == "mean" else g.reshape(-1)  # (N,) or (1,)
        g_row = xp.where(counted, g_row, xp.zeros((), p.dtype))  # (N,)
        e, V = ctx.label_smoothing, p.shape[-1]
        dx = (p - e / V if e else p) * g_row[:, None]
        dx[xp.arange(len(flat)), flat] -= (1 - e) * g_row
        return dx.reshape(ctx.shape).astype(ctx.dtype, copy=False), None, None, None, None
