"""Flash attention on tensor cores. See ops/attention.py for the formulas, flash_attention.cu for their computation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import address, get_array_module
from ...random import counter
from ..split import heads_of_tokens, parts_of_one
from . import philox
from .launch import ACCESS_BYTES, Kernel, compute_capability

WARPS, WARP_ROWS = 4, 16  # as in flash_attention.cu
THREADS = 32 * WARPS
LONGEST_HEAD = 128
DELTA_QUERIES = THREADS // 8  # a block of attention_delta

SIZE = np.dtype([("heads", np.int32), ("queries", np.int32), ("keys", np.int32)])  # struct Size in C
STRIDES = np.dtype([("batch", np.int32), ("head", np.int32), ("row", np.int32)])  # struct Strides

# (strips of 16 rows that a warp has, rows of the tiles that it meets) by kernel: all that fits into the registers
TILES = {
    64: {"FORWARD": (2, 64), "QUERY": (2, 32), "KEY": (2, 32)},
    128: {"FORWARD": (2, 32), "QUERY": (1, 32), "KEY": (1, 32)},
}


class FlashAttention:
    """As ops/attention.py, without a mask or with the causal one, for float16 and bfloat16.

    q, k and v are used where they lie: heads and rows may have any strides, as after `split` and `transpose`. The
    result and the gradients (B, H, T, D) lie in memory as (B, T, H, D), so that putting the heads together is free.
    What is kept is q, k, v, y, one number for each query and the dropout's key.
    """

    returns_new_arrays = True

    @staticmethod
    def fits(q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> bool:
        return (
            mask is None
            and str(q.dtype) in ("float16", "bfloat16")
            and q.dtype == k.dtype == v.dtype
            and q.ndim == k.ndim == v.ndim == 4
            and q.shape[:2] == k.shape[:2]
            and k.shape == v.shape
            and q.shape[3] == k.shape[3] <= LONGEST_HEAD
            and q.shape[3] % WARP_ROWS == 0
            and q.shape[2] > 1  # a single query is a product with a vector
            and min(q.size, k.size) > 0
            and 3 * q.shape[1] * max(q.shape[2], k.shape[2]) * q.shape[3] < 2**31  # strides of packed gradients
            and compute_capability() >= 80
        )

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> Any:
        q, k, v = (_rows(x) for x in (q, k, v))
        ctx.causal, ctx.dropout = bool(causal), philox.draw_dropout(dropout_p)
        y = heads_of_tokens(q.shape, q)
        lse = get_array_module(q).empty(q.shape[:3], "float32")
        arrays = [*_with_strides(q, k, v, y), lse]
        _launch("attention_forward", "FORWARD", ctx, q, k, q.shape[2], *arrays)
        ctx.save(q, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        q, k, v, y, lse = ctx.saved
        wants_q, wants_k, wants_v, *_ = ctx.needs_input_grad
        g = _rows(g)
        delta = get_array_module(q).empty(lse.shape, "float32")
        kernel = _kernel("attention_delta", q.dtype, q.shape[3], ctx)
        kernel(
            -(-lse.size // DELTA_QUERIES), THREADS, *_with_strides(g, y), delta, _size(q, k), q.shape[0], ctx.dropout
        )
        dq, dk, dv = parts_of_one(q, k, v)
        inputs = [*_with_strides(g, q, k, v), lse, delta]
        if wants_q:
            _launch("attention_backward_queries", "QUERY", ctx, q, k, q.shape[2], *inputs, *_with_strides(dq))
        if wants_k or wants_v:
            _launch("attention_backward_keys", "KEY", ctx, q, k, k.shape[2], *inputs, *_with_strides(dk, dv))
        return dq if wants_q else None, dk if wants_k else None, dv if wants_v else None, None, None, None


def _launch(name: str, tiles: str, ctx: Any, q: Any, k: Any, rows: int, *arrays: Any) -> None:
    """Run a kernel whose blocks each have so many rows of a head, as flash_attention.cu says."""
    head_size = q.shape[3]
    strips, columns = _tiles(head_size)[tiles]
    block_rows = strips * WARP_ROWS * WARPS
    if tiles == "FORWARD":
        shared_rows, numbers = block_rows + 2 * columns, 0
    else:  # two arrays have the block's rows, two the tiles', one in use and one on its way; also lse and delta
        shared_rows, numbers = 2 * block_rows + 4 * columns, 4 * columns
    shared_bytes = shared_rows * (head_size + 8) * q.dtype.itemsize + numbers * 4
    blocks = q.shape[0] * q.shape[1] * -(-rows // block_rows)
    kernel = _kernel(name, q.dtype, head_size, ctx)
    kernel(blocks, THREADS, *arrays, _size(q, k), ctx.dropout, counter.earlier, shared_bytes=shared_bytes)


def _kernel(name: str, dtype: Any, head_size: int, ctx: Any) -> Kernel:
    return Kernel(
        "flash_attention.cu", name, dtype, **constants(head_size, ctx.causal, bool(ctx.dropout["dropped"][0]))
    )


def constants(head_size: int, causal: bool, dropout: bool) -> dict[str, int]:
    """What is defined before flash_attention.cu."""
    pairs = {"HEAD": head_size, "CAUSAL": int(causal), "DROPOUT": int(dropout)}
    for kernel, (strips, columns) in _tiles(head_size).items():
        pairs |= {f"{kernel}_STRIPS": strips, f"{kernel}_COLUMNS": columns}
    return pairs


def _tiles(head_size: int) -> dict[str, tuple[int, int]]:
    return TILES[64 if head_size <= 64 else 128]


def _rows(x: Any) -> Any:
    """x where it lies, if kernels can read it 16 bytes at a time, else a copy that they can."""
    *strides, neighbor = x.strides
    aligned = all(n % ACCESS_BYTES == 0 for n in (address(x), *strides))
    readable = aligned and neighbor == x.itemsize and max(strides) // x.itemsize < 2**31
    return x if readable else x.copy()


def _with_strides(*arrays: Any) -> list[Any]:
    """Every array and behind it its strides in elements, as kernels take them."""
    return [
        item
        for x in arrays
        for item in (x, np.array([tuple(s // x.itemsize for s in x.strides[:3])], STRIDES))  # one element: by value
    ]


def _size(q: Any, k: Any) -> Any:
    return np.array([(q.shape[1], q.shape[2], k.shape[2])], SIZE)
