"""Attention heads that share one array, for the kernels of CPU and GPU: splitting and joining them copies nothing."""

from __future__ import annotations

from typing import Any

from ..backend import address, get_array_module


class Split:
    """Like ops/shape.py, but gradients that already lie end to end in one array, as attention's do, are not copied."""

    returns_new_arrays = False

    @staticmethod
    def fits(x: Any, sizes: Any, axis: int) -> bool:
        return True

    @staticmethod
    def forward(ctx: Any, x: Any, sizes: Any, axis: int) -> Any:
        ctx.shape = x.shape
        return ctx.function.forward(ctx, x, sizes, axis)

    @staticmethod
    def backward(ctx: Any, *gs: Any) -> Any:
        whole, shape, strides = gs[0].base, ctx.shape, gs[0].strides
        if type(whole) is not type(gs[0]) or whole.size != sum(g.size for g in gs) or not whole.flags.c_contiguous:
            return ctx.function.backward(ctx, *gs)
        axes = sorted(range(len(shape)), key=lambda axis: -strides[axis])  # in the order in which they lie in memory
        places = sorted(range(len(shape)), key=axes.__getitem__)
        whole, end = whole.reshape([shape[axis] for axis in axes]).transpose(places), 0
        for g in gs:
            start, end = end, end + g.shape[ctx.axis]
            own = whole[(slice(None),) * ctx.axis + (slice(start, end),)]
            if (address(own), own.strides, own.dtype) != (address(g), g.strides, g.dtype):
                return ctx.function.backward(ctx, *gs)
        return whole


def heads_of_tokens(shape: tuple[int, ...], like: Any) -> Any:
    """An empty (B, H, T, D) array that lies in memory as (B, T, H, D), so that joining the heads copies nothing."""
    B, H, T, D = shape
    return get_array_module(like).empty((B, T, H, D), like.dtype).transpose(0, 2, 1, 3)


def are_parts_of_one(*arrays: Any) -> bool:
    """True if these are views of one array. Then `Split` has probably made them."""
    return arrays[0].base is not None and all(x.base is arrays[0].base for x in arrays)


def parts_of_one(q: Any, k: Any, v: Any) -> list[Any]:
    """Empty arrays for dq, dk, dv. Those of one shape lie as (B, T, 3, H, D) in memory, so `Split` copies nothing."""
    if not q.shape == k.shape == v.shape:
        return [heads_of_tokens(x.shape, x) for x in (q, k, v)]
    B, H, T, D = q.shape
    packed = get_array_module(q).empty((B, T, 3, H, D), q.dtype)
    return [packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
