"""Matrix products."""

from __future__ import annotations

import math

from ..autograd import Function
from ..kernels import accelerated, cpu, cuda
from .precision import add_up, in_single
from .shape import sum_to


def matmul(a, b):
    """a @ b in the dtype of a."""
    stacked = max(a.ndim, b.ndim) > 2
    return (in_single(a, stacked) @ in_single(b, stacked)).astype(a.dtype, copy=False)


@accelerated(cpu=cpu.MatMul, cuda=cuda.MatMul)
class MatMul(Function):
    """y = a @ b, the matrix product over the last two axes, with the axes before them broadcast (NumPy's rules).

    Shapes: a (…, M, K), b (…, K, N), y (…, M, N). A 1-D `a` is a row, a 1-D `b` a column; y then lacks that axis.

    Backward. y_mn = sum_k a_mk b_kn, so a_mk contributes to every y_mn of row m with the factor b_kn, and b_kn to every
    y_mn of column n with the factor a_mk:
        dL/da_mk = sum_n g_mn b_kn      da = g b^T
        dL/db_kn = sum_m a_mk g_mn      db = a^T g
    summed over the leading axes that were broadcast.
    """

    @staticmethod
    def forward(ctx, a, b):
        if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
            raise ValueError("expected a (…, M, K) and b (…, K, N) with the same K; a 1-D a or b has only the axis K")
        ctx.save(a, b)
        return matmul(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved
        a_shape, b_shape = a.shape, b.shape
        if b.ndim == 1:
            b, g = b[:, None], g[..., None]  # (K, 1), (…, M, 1)
        if a.ndim == 1:
            a, g = a[None, :], g[..., None, :]  # (1, K), (…, 1, N)
        wants_a, wants_b = ctx.needs_input_grad
        da = sum_to(matmul(g, b.swapaxes(-1, -2)), a.shape) if wants_a else None
        db = sum_to(matmul(a.swapaxes(-1, -2), g), b.shape) if wants_b else None
        return da if da is None else da.reshape(a_shape), db if db is None else db.reshape(b_shape)


@accelerated(cpu=cpu.Linear, cuda=cuda.Linear)
class Linear(Function):
    """y = x W^T + b, applied to the last axis of x.

    Shapes: x (…, I), W (O, I), b (O,) or None, y (…, O). All rows of x are stacked into one matrix of N rows, so that
    each product is one large matrix product.

    Backward, with x (N, I) and g (N, O). y_no = sum_i x_ni W_oi + b_o gives
        dL/dx_ni = sum_o g_no W_oi      dx = g W
        dL/dW_oi = sum_n g_no x_ni      dW = g^T x
        dL/db_o  = sum_n g_no           b is added to every row
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        outputs, inputs = weight.shape if weight.ndim == 2 else (None, None)
        if x.ndim == 0 or inputs is None or x.shape[-1] != inputs or (bias is not None and bias.shape != (outputs,)):
            raise ValueError("expected x (…, I), weight (O, I) and bias (O,) or None")
        ctx.save(x, weight)
        n = math.prod(x.shape[:-1])
        y = in_single(x.reshape(n, inputs)) @ in_single(weight).T  # (N, O)
        if bias is not None:
            y += in_single(bias)
        return y.astype(x.dtype, copy=False).reshape(*x.shape[:-1], outputs)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved
        outputs, inputs = weight.shape
        n = math.prod(x.shape[:-1])
        g_rows = g.reshape(n, outputs)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dx = matmul(g_rows, weight).reshape(x.shape) if wants_x else None
        dweight = matmul(g_rows.T, x.reshape(n, inputs)) if wants_weight else None
        dbias = add_up(g_rows, axis=(0,)) if wants_bias else None
        return dx, dweight, dbias
