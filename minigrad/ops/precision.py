"""Half precision: numbers are kept in 16 bits and computed with in float32.

float16 ends at 65504, so that the square of 256 is too much for it, and has 11 bits, so that a sum stands still when it
is 2048 times as large as what is added. Neither is in the way of most results, only of what is computed in between; an
operation that squares, multiplies or adds up therefore does that in float32 and rounds once, at the end, as PyTorch's
and CUDA's do.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ..backend import get_array_module, is_array

MANY = 4096  # numbers of 24 bits: each rounding loses half of the last one, all together up to a four-thousandth


def is_half(x):
    """Is this an array of float16 or bfloat16?"""
    return is_array(x) and x.dtype.itemsize == 2 and str(x.dtype) in ("float16", "bfloat16")


def computed_in_single(operation):
    """Let an operation see float32 where its first array is half precision, and round what it returns."""
    forward, backward = operation.forward, operation.backward

    def widened(arrays):
        return [x.astype("float32") if is_half(x) else x for x in arrays]

    @functools.wraps(forward)
    def forward_in_single(ctx, *arguments):
        ctx.half = arguments[0].dtype if is_half(arguments[0]) else None
        if ctx.half is None:
            return forward(ctx, *arguments)
        return forward(ctx, *widened(arguments)).astype(ctx.half)

    @functools.wraps(backward)
    def backward_in_single(ctx, g):
        if ctx.half is None:
            return backward(ctx, g)
        gradients = backward(ctx, *widened([g]))
        several = isinstance(gradients, tuple)
        rounded = tuple(x if x is None else x.astype(ctx.half) for x in (gradients if several else (gradients,)))
        return rounded if several else rounded[0]

    operation.forward, operation.backward = staticmethod(forward_in_single), staticmethod(backward_in_single)
    return operation


def choose(mask, a, b):
    """a where the mask is true, else b, of their dtype: CuPy's `where` makes float32 of bfloat16."""
    y = get_array_module(mask).where(mask, a, b)
    dtypes = {x.dtype for x in (a, b) if is_array(x)}
    return y.astype(dtypes.pop(), copy=False) if len(dtypes) == 1 and (is_half(a) or is_half(b)) else y


def kept_where(mask, g):
    """g where the mask is true, else 0. Their product would be NaN where g is infinite and the mask false."""
    return choose(mask, g, get_array_module(g).zeros((), g.dtype))


def in_single(x, stacked=False):
    """x in float32 if its library cannot multiply such matrices and add up in float32 by itself.

    NumPy cannot for half precision. CuPy can, but for stacks of bfloat16 matrices, on which its matmul fails (its pull
    request 10317).
    """
    if not is_half(x) or (get_array_module(x) is not np and not (stacked and str(x.dtype) == "bfloat16")):
        return x
    return x.astype("float32")


def count(shape, axis):
    """How many elements of `shape` a reduction over `axis` turns into one."""
    return math.prod(n for i, n in enumerate(shape) if axis is None or i in axis)


def add_up(x, axis=None, keepdims=False):
    """x.sum(axis), of the dtype of x, but added up with more digits where they would run out.

    Half precision is added up in float32. NumPy adds up a whole array by halves, which is exact enough, but rows one
    after the other: of ten million float32 rows of 0.1 the mean was 0.109. Many are added up in float64 therefore.
    """
    wide = None
    if is_half(x):
        wide = "float32"
    elif isinstance(x, np.ndarray) and x.dtype == np.float32 and not (axis is None and x.flags.c_contiguous):
        wide = "float64" if count(x.shape, axis) > MANY else None
    if wide is None:
        return x.sum(axis=axis, keepdims=keepdims)
    return x.sum(axis=axis, keepdims=keepdims, dtype=wide).astype(x.dtype)
