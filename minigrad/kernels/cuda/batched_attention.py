"""Attention product by product, where flash attention does not fit. See ops/attention.py for the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...backend import get_array_module
from ...random import counter
from ..split import are_parts_of_one, parts_of_one
from . import philox, products
from .cublaslt import matrix_of, product
from .launch import SCALARS, WARP, Kernel, compute_capability

MOST_THREADS, AT_ONCE = 256, 8  # of a block; elements that a thread has at a time, as in softmax.cu

SCORES = np.dtype(
    [("heads", np.int32), ("queries", np.int32), ("keys", np.int32), ("causal", np.int32), ("scale", np.float32)]
)  # struct Scores in C
MASK_STRIDES = np.dtype([(axis, np.int64) for axis in ("batch", "head", "row", "key")])


class BatchedAttention:
    """As ops/attention.py, for stacks of equal leading axes: cuBLASLt's products, and in between one kernel each way.

    Of the size of the scores, (…, T, U), only the weights p are saved, in the dtype of q, k and v; which of them were
    dropped is computed again from the number of the draw. While it runs the forward needs as much once more for the
    dropped weights, and for half precision the scores in float32; the backward needs dL/ds and the dropped weights.

    Heads that lie as (B, T, H, D) have no single distance from one to the next, which cuBLASLt needs, so where B > 1
    q, k, v and dL/dy are copied: each is D / U of the size of the scores, which are read and written many times.
    Where q, k and v are parts of one array, their gradients are written to parts of one, each as soon as it is known.
    """

    returns_new_arrays = True

    @staticmethod
    def fits(q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> bool:
        return (
            products.same_dtype(q, k, v)
            and str(q.dtype) in SCALARS
            and 2 <= q.ndim == k.ndim == v.ndim <= 4
            and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
            and q.shape[-1] == k.shape[-1]
            and k.shape[-2] == v.shape[-2]
            and min(q.size, k.size, v.size) > 0
            and (mask is None or _broadcasts(mask.shape, (*q.shape[:-1], k.shape[-2])))
        )

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> Any:
        xp = get_array_module(q)
        ctx.packed = q.ndim == 4 and are_parts_of_one(q, k, v)
        q, k, v = (_stack(x) for x in (q, k, v))
        ctx.dropout = philox.draw_dropout(dropout_p)
        s = _scores(q, k)
        p = s if s.dtype == q.dtype else xp.empty(s.shape, q.dtype)
        w = xp.empty_like(p) if ctx.dropout["dropped"][0] else None
        _, H, T, U = (1,) * (4 - s.ndim) + s.shape
        ctx.size = np.array([(H, T, U, bool(causal), 1 / math.sqrt(q.shape[-1]))], SCORES)
        _rows("attention_weights", p, s, ctx.size, *_with_strides(mask, s.shape), ctx.dropout, counter.earlier, p, w)
        ctx.save(q, k, v, p)
        return product(p if w is None else w, v, tf32=products.tf32)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        q, k, v, p = ctx.saved
        wants_q, wants_k, wants_v, *_ = ctx.needs_input_grad
        xp, tf32, g = get_array_module(g), products.tf32, _stack(g)
        w = xp.empty_like(p) if wants_v and ctx.dropout["dropped"][0] else None
        ds = product(g, v.swapaxes(-1, -2), tf32=tf32)  # dL/dw until the kernel has run
        _rows("attention_weights_backward", p, p, ctx.size, ctx.dropout, counter.earlier, ds, w)
        dq, dk, dv = parts_of_one(q, k, v) if ctx.packed else (None, None, None)
        dq = _put(product(ds, k, tf32=tf32), dq) if wants_q else None
        dk = _put(product(ds.swapaxes(-1, -2), q, tf32=tf32), dk) if wants_k else None
        dv = _put(product((p if w is None else w).swapaxes(-1, -2), g, tf32=tf32), dv) if wants_v else None
        return dq, dk, dv, None, None, None


def _scores(q: Any, k: Any) -> Any:
    """q k^T in float32: rounded to 16 bits, a score of 10 would be off by up to 0.02, and its weight by 2 %.

    float16 and bfloat16 lose nothing in tf32, so the products of half precision may use these tensor cores.
    """
    exact = q.dtype.itemsize == 2 and compute_capability() >= 80
    q, k = (x.astype("float32", copy=False) for x in (q, k))
    return product(q, k.swapaxes(-1, -2), tf32=products.tf32 or exact)


def _rows(name: str, p: Any, *arguments: Any) -> None:
    """Run a kernel of softmax.cu that has a block of threads for each row of the weights p."""
    keys = p.shape[-1]
    threads = min(MOST_THREADS, -(-keys // (AT_ONCE * WARP)) * WARP)
    Kernel("softmax.cu", name, p.dtype)(p.size // keys, threads, *arguments)


def _with_strides(mask: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """The mask as the kernel takes it: where it lies, and by how much it moves along each axis of the scores."""
    if mask is None:
        return None, np.zeros(1, MASK_STRIDES)
    mask = get_array_module(mask).broadcast_to(mask, shape)
    return mask, np.array([(0,) * (4 - mask.ndim) + mask.strides], MASK_STRIDES)  # booleans: a byte each


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Can an array of this shape be broadcast to the other one?"""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, size) for n, size in pairs)


def _put(value: Any, into: Any) -> Any:
    """The value, in the array `into` if there is one."""
    if into is None:
        return value
    into[...] = value
    return into


def _stack(x: Any) -> Any:
    """x where it lies, if cuBLASLt can read it so, else a copy."""
    return x if matrix_of(x) else get_array_module(x).ascontiguousarray(x)
