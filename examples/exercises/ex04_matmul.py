"""Exercise 4 of 11: the matrix product."""

from __future__ import annotations

import minigrad as mg
from minigrad.ops.shape import sum_to  # noqa: F401 - for your backward


class MatMul(mg.Function):
    """y = a @ b: y_mn = sum over k of a_mk b_kn, for each of the matrices along the leading axes, which broadcast.

    Shapes: a (…, M, K), b (…, K, N), y and g (…, M, N). A 1-D a is one row, a 1-D b one column.

    Derive the backward, first for two plain matrices.
      1. In which elements of y does a_mk occur? With which factor in each of them? So dL/da_mk is a sum: over which
         index, and of what?
      2. That sum is itself a product of two matrices, one of them transposed. Which one, and in which order?
         Check the shapes: g is (M, N), b is (K, N), and the result must be (M, K).
      3. Do the same for b_kn: the sum, then the product of shape (K, N).
      4. With leading axes, x.T would reverse all axes. What swaps only the last two? (Look for swapaxes.)
      5. If the leading axes of a were broadcast, sum_to(da, a.shape) sums over them, as in exercise 1.
    """

    @staticmethod
    def forward(ctx, a, b):
        if a.ndim == 0 or b.ndim == 0:
            raise ValueError("expected at least one axis in a and in b")
        rows = a[None, :] if a.ndim == 1 else a  # (…, M, K)
        columns = b[:, None] if b.ndim == 1 else b  # (…, K, N)
        y = rows @ columns  # (…, M, N)
        ctx.save(rows, columns)
        ctx.shapes = a.shape, b.shape, y.shape
        if a.ndim == 1:
            y = y.squeeze(-2)  # without the axis that was added to a
        return y.squeeze(-1) if b.ndim == 1 else y  # without the axis that was added to b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved  # (…, M, K) and (…, K, N)
        a_shape, b_shape, y_shape = ctx.shapes
        g = g.reshape(y_shape)  # (…, M, N)
        # return da.reshape(a_shape), db.reshape(b_shape)
        raise NotImplementedError("not written yet")
