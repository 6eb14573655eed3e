"""Scaled dot-product attention."""

from __future__ import annotations

import math

from .. import random
from ..autograd import Function
from ..backend import device_of, get_array_module
from ..kernels import accelerated, cpu, cuda
from .dropout import drop
from .precision import computed_in_single
from .shape import sum_to
from .softmax import softmax, softmax_backward


@accelerated(cpu=cpu.Attention, cuda=(cuda.FlashAttention, cuda.BatchedAttention))
@computed_in_single
class Attention(Function):
    """Every query is compared with all keys and takes a weighted average of the values (Vaswani et al., 2017).

        S = q k^T / sqrt(D)        scores, (…, T, U)
        P = softmax(S)             over the keys; where masked, S = -inf and so P = 0
        y = dropout(P) v           (…, T, E)

    Shapes: q (…, T, D); k (…, U, D); v (…, U, E), often with E = D; leading axes broadcast. `mask` is boolean, true
    where a query may attend to a key, and broadcasts to (…, T, U). `causal` aligns the last query with the last key:
    query i attends to the keys up to i + U - T, so T new queries can follow U - T cached keys. A query that may attend
    to no key gets y = 0.

    Backward. Each of the three lines is a matrix product or a softmax; each is undone in turn, from the last to the
    first. With dX for dL/dX,
        dv = dropout(P)^T g                         y is linear in v
        dP = dropout(g v^T)                         and in P; the same elements are dropped
        dS = P (dP - sum over keys of dP P)         softmax's backward
        dq = dS k / sqrt(D)      dk = dS^T q / sqrt(D)
    """

    @staticmethod
    def forward(ctx, q, k, v, causal, mask, dropout_p):
        xp = get_array_module(q)
        if min(q.ndim, k.ndim, v.ndim) < 2 or not q.shape[-1] == k.shape[-1] > 0 or k.shape[-2] != v.shape[-2]:
            raise ValueError("expected q (…, T, D), k (…, U, D) and v (…, U, E) with D of at least 1")
        t, u = q.shape[-2], k.shape[-2]
        ctx.scale = 1 / math.sqrt(q.shape[-1])
        s = (q * ctx.scale) @ k.swapaxes(-1, -2)  # (…, T, U)
        if causal and t > 1:
            xp.copyto(s, -xp.inf, where=xp.triu(xp.ones((t, u), bool), k=1 + u - t))
        if mask is not None:
            xp.copyto(s, -xp.inf, where=~mask)
        p = softmax(s, axis=-1)
        ctx.dropout = random.dropout_mask(p.shape, dropout_p, device_of(q)) if dropout_p else None
        ctx.save(q, k, v, p)
        return drop(p, ctx.dropout) @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved
        dv = drop(p, ctx.dropout).swapaxes(-1, -2) @ g
        dp = drop(g @ v.swapaxes(-1, -2), ctx.dropout)
        ds = softmax_backward(dp, p, axis=-1)
        ds *= ctx.scale
        return sum_to(ds @ k, q.shape), sum_to(ds.swapaxes(-1, -2) @ q, k.shape), sum_to(dv, v.shape), None, None, None
