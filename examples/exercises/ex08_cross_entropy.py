"""Exercise 8 of 11: cross-entropy, the GPT's loss."""

from __future__ import annotations

import minigrad as mg
from minigrad.ops.embedding import check_ids
from minigrad.ops.reduce import finite_max


class CrossEntropy(mg.Function):
    """How badly p = softmax(x) predicts the targets, in nats. For row n of the logits x,

        loss_n = -sum over j of q_nj ln p_nj        q_nj = 1 at j = target(n), else 0

    so loss_n = -ln p_n,target. (`label_smoothing` takes a share of the target's 1 and divides it equally among all
    classes.) A row of q always adds up to 1. Since ln p_nj = x_nj - ln s_n with s_n = sum over i of e^(x_ni),

        loss_n = ln s_n - sum over j of q_nj x_nj

    Shapes: x (…, V), targets (…) integers from 0 to V - 1, or `ignore_index`: such a row has no loss. `reduction`:
    "mean" over the targets that are not ignored, "sum", or "none", which gives one loss for each target.

    Derive the backward, starting from the last formula.
      1. What is d(ln s_n)/dx_nj? You know this quotient: it has a name. And what is the derivative of the other term?
      2. So what is dloss_n/dx_nj? It should be 0 where the prediction p equals the target distribution q.
      3. Which g reaches row n? For "none" g has the shape of targets; reshape it to a column (N, 1). For "sum" there is
         one g for all rows. For "mean" there is one g too, and each loss was divided by ctx.n.
      4. Ignored rows get a gradient of 0, whatever p is there. `counted` is False for them.
    """

    @staticmethod
    def forward(ctx, x, targets, ignore_index, reduction, label_smoothing=0.0):
        xp = mg.get_array_module(x)
        V = x.shape[-1]
        rows, flat = x.reshape(targets.size, V), targets.reshape(-1)  # (N, V), (N,)
        counted = flat != ignore_index
        flat = xp.where(counted, flat, 0)  # any class will do for an ignored target
        check_ids("targets", flat, V)

        rows = rows - finite_max(rows, axis=-1)  # changes neither p nor the loss, and nothing overflows
        e = xp.exp(rows)
        s = e.sum(axis=-1, keepdims=True)  # (N, 1)
        s = xp.where(s == 0, 1, s)  # a row of -inf has p = 0
        p = e / s  # (N, V)
        q = xp.full(p.shape, label_smoothing / V, x.dtype)
        q[xp.arange(len(flat)), flat] += 1 - label_smoothing
        losses = xp.log(s[:, 0]) - (q * xp.where(q > 0, rows, 0)).sum(axis=-1)  # `where`: 0 times -inf is NaN
        losses = xp.where(counted, losses, 0)  # (N,)

        ctx.save(p, q, counted)
        ctx.shape, ctx.reduction, ctx.n = x.shape, reduction, xp.maximum(counted.sum(dtype=x.dtype), 1)
        if reduction == "none":
            return losses.reshape(targets.shape)
        if reduction == "sum":
            return losses.sum()
        return xp.where(counted.any(), losses.sum() / ctx.n, xp.nan)

    @staticmethod
    def backward(ctx, g):
        p, q, counted = ctx.saved  # (N, V), (N, V), (N,)
        # return dL/dx in the shape ctx.shape, and None for each of the other four arguments
        raise NotImplementedError("not written yet")
