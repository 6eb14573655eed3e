"""Cross-entropy in few passes. See ops/loss.py for the formulas and their derivation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pieces import for_each, pieces
from .products import same_floats


class CrossEntropy:
    """Like ops/loss.py, but each piece of the rows is exponentiated, summed and divided while it is in the cache."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, targets: Any, ignore_index: int, reduction: str, label_smoothing: float = 0.0) -> bool:
        return (
            same_floats(x)
            and x.ndim > 0
            and x.size > 0
            and targets.shape == x.shape[:-1]
            and targets.dtype.kind in "iu"
            and not ((targets != ignore_index) & ((targets < 0) | (targets >= x.shape[-1]))).any()
        )

    @staticmethod
    def forward(ctx: Any, x: Any, targets: Any, ignore_index: int, reduction: str, label_smoothing: float = 0.0) -> Any:
        logits = x.reshape(-1, x.shape[-1])  # (N, V)
        flat = targets.reshape(-1)
        counted = flat != ignore_index
        flat = np.where(counted, flat, 0)
        p, losses = np.empty_like(logits), np.empty(len(logits), x.dtype)
        ctx.cut, ctx.parts = pieces(*logits.shape)

        def work(_: int, own: slice) -> None:
            rows = p[own]
            highest = logits[own].max(axis=-1, keepdims=True)
            highest[highest == -np.inf] = 0  # a row of -inf has p = 0, as in the reference
            np.subtract(logits[own], highest, out=rows)
            qx = rows[np.arange(len(rows)), flat[own]]  # sum_j q_j x_j, without smoothing
            if label_smoothing:
                qx = (1 - label_smoothing) * qx + label_smoothing * rows.mean(axis=-1)
            np.exp(rows, out=rows)
            total = np.dot(rows, np.ones(rows.shape[1], x.dtype))  # dot, unlike matmul, always releases Python's lock
            total[total == 0] = 1
            rows *= (1 / total)[:, None]
            losses[own] = np.where(counted[own], np.log(total) - qx, 0)

        for_each(ctx.cut, ctx.parts, work)
        ctx.save(p, flat, counted)
        n = counted.sum(dtype=x.dtype)
        ctx.shape, ctx.n = x.shape, np.maximum(n, 1) if reduction == "mean" else x.dtype.type(1)
        ctx.label_smoothing = label_smoothing
        if reduction == "none":
            return losses.reshape(targets.shape)
        if reduction == "sum":
            return losses.sum()
        return losses.sum() / n if n else x.dtype.type(np.nan)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        p, flat, counted = ctx.saved
        g_row = np.where(counted, g.reshape(-1) / ctx.n, p.dtype.type(0))  # (N,); g is (1,) for mean and sum
        dx = np.empty_like(p)
        e, V = ctx.label_smoothing, p.shape[-1]

        def work(_: int, own: slice) -> None:
            np.multiply(p[own], g_row[own, None], out=dx[own])
            if e:
                dx[own] -= e / V * g_row[own, None]
            dx[own][np.arange(len(dx[own])), flat[own]] -= (1 - e) * g_row[own]

        for_each(ctx.cut, ctx.parts, work)
        return dx.reshape(ctx.shape), None, None, None, None
