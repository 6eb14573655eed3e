"""Matrix products through cuBLASLt. See ops/matmul.py for the formulas and where they come from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from .cublaslt import TYPES, product
from .launch import SCALARS, packed
from .sums import sum_rows

tf32 = False  # inside `rounding_to_tf32`


@contextlib.contextmanager
def rounding_to_tf32(rounding: bool = True) -> Iterator[None]:
    """Inside this context float32 products may round factors to 10 bits of mantissa: tensor cores multiply these."""
    global tf32
    before, tf32 = tf32, rounding
    try:
        yield
    finally:
        tf32 = before


def same_dtype(*arrays: Any) -> bool:
    dtypes = {str(array.dtype) for array in arrays if array is not None}
    return len(dtypes) == 1 and dtypes <= set(TYPES)


class Linear:
    """y = x W^T + b, with the bias added by the product itself; see ops/matmul.py."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, weight: Any, bias: Any) -> bool:
        return (
            same_dtype(x, weight, bias)
            and str(x.dtype) in SCALARS
            and x.ndim > 0
            and weight.ndim == 2
            and x.shape[-1] == weight.shape[1]
            and (bias is None or bias.shape == weight.shape[:1])
        )

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save(x, weight)
        outputs, inputs = weight.shape
        y = product(x.reshape(math.prod(x.shape[:-1]), inputs), weight.T, bias, tf32=tf32)
        return y.reshape(*x.shape[:-1], outputs)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, weight = ctx.saved
        outputs, inputs = weight.shape
        n = math.prod(x.shape[:-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows, g_rows = x.reshape(n, inputs), packed(g).reshape(n, outputs)
        dx = product(g_rows, weight, tf32=tf32).reshape(x.shape) if wants_x else None
        dweight = product(g_rows.T, rows, tf32=tf32) if wants_weight else None
        return dx, dweight, sum_rows(g_rows) if wants_bias else None


class MatMul:
    """y = a @ b for matrices and for stacks of matrices with equal leading axes; see ops/matmul.py."""

    returns_new_arrays = True

    @staticmethod
    def fits(a: Any, b: Any) -> bool:
        alike = same_dtype(a, b) and a.ndim == b.ndim >= 2 and a.shape[:-2] == b.shape[:-2]
        return alike and a.shape[-1] == b.shape[-2]

    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        ctx.save(a, b)
        return product(a, b, tf32=tf32)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        a, b = ctx.saved
        wants_a, wants_b = ctx.needs_input_grad
        da = product(g, b.swapaxes(-1, -2), tf32=tf32) if wants_a else None
        db = product(a.swapaxes(-1, -2), g, tf32=tf32) if wants_b else None
        return da, db
