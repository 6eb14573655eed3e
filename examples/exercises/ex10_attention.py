"""Exercise 10 of 11: attention, the heart of the Transformer. You have written all of its parts already."""

from __future__ import annotations

import math

import minigrad as mg
from minigrad.ops.dropout import drop
from minigrad.ops.shape import sum_to  # noqa: F401 - for your backward
from minigrad.ops.softmax import softmax


class Attention(mg.Function):
    """Every query is compared with all keys and takes a weighted average of the values (Vaswani et al., 2017).

        S = q k^T / sqrt(D)        scores, (…, T, U); -inf where query t may not attend to key u
        P = softmax(S)             over the keys
        A = drop(P)                P times 0 or 1/(1 - p), drawn at random; A = P without dropout
        y = A v

    Shapes: q (…, T, D); k (…, U, D); v (…, U, E); y and g (…, T, E); leading axes, such as batch and heads, broadcast.
    `causal`: query t attends to the keys up to t + U - T. `mask`: boolean, true where a query may attend to a key.

    Derive the backward, from the last line to the first, with dX for dL/dX.
      1. y = A v is a matrix product: exercise 4. What are dA and dv?
      2. drop multiplies every element by a constant, and drop(x, ctx.dropout) multiplies x by the same constants. So
         what is dP, given dA?
      3. P = softmax(S) along the last axis: exercise 7. What is dS, given dP and P?
      4. Where S was set to -inf, P is 0. So what is dS there? Does the backward need the mask at all?
      5. S = q k^T / sqrt(D) is a product again. What are dq and dk? Do not forget ctx.scale = 1 / sqrt(D).
      6. Leading axes that were broadcast: sum_to, as in exercise 4.
    """

    @staticmethod
    def forward(ctx, q, k, v, causal, mask, dropout_p):
        xp = mg.get_array_module(q)
        T, U, D = q.shape[-2], k.shape[-2], q.shape[-1]
        ctx.scale = 1 / math.sqrt(D)
        s = (q * ctx.scale) @ k.swapaxes(-1, -2)  # (…, T, U)
        if causal:
            s = xp.where(xp.tri(T, U, U - T, dtype=bool), s, -xp.inf)
        if mask is not None:
            s = xp.where(mask, s, -xp.inf)
        p = softmax(s, axis=-1)
        ctx.dropout = mg.random.dropout_mask(p.shape, dropout_p, mg.Tensor(q).device) if dropout_p else None
        ctx.save(q, k, v, p)
        return drop(p, ctx.dropout) @ v

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved
        # return dq, dk, dv, None, None, None
        raise NotImplementedError("not written yet")
