"""Half precision: values are stored in 16 bits and computed in float32.

The largest float16 is 65504, so the square of 256 overflows. float16 has 11 significant bits, so a sum stops growing
once it is 2048 times as large as the next number to add. Most results are within these limits; intermediate values
often are not. An operation that squares, multiplies or adds up therefore computes in float32 and rounds once, at the
end, as PyTorch's and CUDA's operations do.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ..backend import get_array_module, is_array

BLOCKS = 16  # that a long sum is cut into: each addition in a row may lose half of the last of float32's 24 bits


def is_half(x):
    """True for an array of float16 or bfloat16."""
    return is_array(x) and x.dtype.itemsize == 2 and str(x.dtype) in ("float16", "bfloat16")


def computed_in_single(operation):
    """Decorate an operation: if its first array is half precision, it runs in float32 and its results are rounded."""
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
    """a where the mask is true, else b, in the dtype of a and b (CuPy's `where` turns bfloat16 into float32)."""
    y = get_array_module(mask).where(mask, a, b)
    dtypes = {x.dtype for x in (a, b) if is_array(x)}
    return y.astype(dtypes.pop(), copy=False) if len(dtypes) == 1 and (is_half(a) or is_half(b)) else y


def kept_where(mask, g):
    """g where the mask is true, else 0. (g * mask would be NaN where g is infinite and the mask is false.)"""
    return choose(mask, g, get_array_module(g).zeros((), g.dtype))


def in_single(x, stacked=False):
    """x in float32 if its library cannot multiply such matrices and add up in float32 by itself.

    NumPy cannot do this for half precision. CuPy can, except for stacks of bfloat16 matrices, on which its matmul fails
    (CuPy's pull request 10317).
    """
    if not is_half(x) or (get_array_module(x) is not np and not (stacked and str(x.dtype) == "bfloat16")):
        return x
    return x.astype("float32")


def count(shape, axis):
    """The number of elements that a reduction of `shape` over `axis` combines into one."""
    return math.prod(n for i, n in enumerate(shape) if axis is None or i in axis)


def add_up(x, axis=None, keepdims=False):
    """x.sum(axis) in the dtype of x, without losing digits: half precision is added up in float32, rows in blocks.

    Along an axis whose elements lie next to each other in memory NumPy adds pairs, then pairs of pairs, and so does
    CuPy. Along any other axis it adds one element after the other: ten million float32 rows of 0.1 had the mean 0.109.
    """
    dtype = "float32" if is_half(x) else None
    if not isinstance(x, np.ndarray) or count(x.shape, axis) < 2 * BLOCKS or (axis is None and x.flags.c_contiguous):
        y = x.sum(axis=axis, keepdims=keepdims, dtype=dtype)
    else:
        axes = tuple(range(x.ndim)) if axis is None else tuple(axis)
        y = functools.reduce(lambda x, axis: add_blocks(x, axis, dtype), axes, x)
        y = y if keepdims else y.squeeze(axis=axes)
    return y.astype(x.dtype) if dtype else y


def add_blocks(x, axis, dtype):
    """x.sum(axis, keepdims=True) of a NumPy array: `BLOCKS` blocks are added up, and then the elements of their sum.

    That is done in the same way, so n elements take BLOCKS log(n) / log(BLOCKS) additions in a row instead of n.
    """
    size = x.shape[axis] // BLOCKS
    if size < 2 or x.strides[axis] == x.itemsize:
        return x.sum(axis=axis, keepdims=True, dtype=dtype)
    before, end = (slice(None),) * axis, BLOCKS * size
    blocks = x[(*before, slice(end))].reshape(*x.shape[:axis], BLOCKS, size, *x.shape[axis + 1 :])
    rest = x[(*before, slice(end, None))].sum(axis=axis, keepdims=True, dtype=dtype)
    return add_blocks(blocks.sum(axis=axis, dtype=dtype), axis, dtype) + rest
