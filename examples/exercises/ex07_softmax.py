"""Exercise 7 of 11: softmax, which turns numbers into probabilities. Attention and cross-entropy both contain it."""

from __future__ import annotations

import minigrad as mg
from minigrad.ops.reduce import finite_max


class Softmax(mg.Function):
    """y_i = e^(x_i) / s, with s = sum over j of e^(x_j), along one axis of x.

    Shapes: x, y and g have the same shape; `axis` is counted from 0. A row of only -inf gives zeros, and zero gradient.

    Derive the backward. Look at one row.
      1. x_i affects every y_j, since it occurs in s. Use the quotient rule: what is dy_j/dx_i for j != i? And
         dy_i/dx_i? Write both in terms of y alone, without e or s.
      2. Write 1[i = j] for "1 if i = j, else 0". Then both are one formula. Which?
      3. L depends on x_i through every y_j: dL/dx_i = sum over j of g_j dy_j/dx_i. Insert the formula. There are two
         terms, and both contain y_i.
      4. One of the terms contains a sum that is the same for all i of a row. Compute it once, along ctx.axis, and keep
         the axis (keepdims) so that it broadcasts.
      5. Adding a constant to a whole row of x does not change y. What does that say about the sum of dL/dx over a row?
         Does your formula agree?
    """

    @staticmethod
    def forward(ctx, x, axis):
        xp = mg.get_array_module(x)
        e = xp.exp(x - finite_max(x, axis))  # the largest x is subtracted so that nothing overflows; y stays the same
        s = e.sum(axis=axis, keepdims=True)
        y = e / xp.where(s == 0, 1, s)  # s is 0 where all x are -inf
        ctx.axis = axis
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved
        # return dL/dx, None: the second argument, axis, takes no gradient
        raise NotImplementedError("not written yet")
