"""Attention by tiles of queries. See ops/attention.py for the formulas and their derivation.

Three things make it fast:
  - Causal attention does not compute what the mask would remove, except in the tiles on the diagonal.
  - Softmax subtracts each row's largest score m so that nothing overflows. If all scores are within +-60, nothing can
    overflow, not even a sum of e^60 in float32, and e^-60 is far from underflow: m is then left out. Checking a whole
    tile for this takes a tenth of the time that m takes.
  - In the backward, the sum over keys of dP P is the dot product of a row of g and a row of y, since y = P v: a sum
    over D instead of T.

OpenBLAS takes longer to multiply by the transpose of a small matrix than to copy it out and multiply by the copy.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ... import random
from ..split import heads_of_tokens, parts_of_one
from .dropout import Masks
from .pieces import for_each
from .products import same_floats
from .threads import parts_for, stretch

LEAST = 5e7  # multiplications that justify another thread: a tile takes many calls that need Python's lock
SAFE = 60.0
TILE = 64  # queries in a tile
GROUP = 192 * 1024  # elements of a tile, over all heads that are processed together


class Attention:
    """Attention without a mask or with the causal mask. Queries, keys and values have the same leading axes (B, H)."""

    returns_new_arrays = True

    @staticmethod
    def fits(q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> bool:
        return (
            mask is None
            and same_floats(q, k, v)
            and q.ndim == k.ndim == v.ndim == 4
            and q.shape[:2] == k.shape[:2] == v.shape[:2]
            and q.shape[3] == k.shape[3]
            and k.shape[2] == v.shape[2]
            and (1 < q.shape[2] <= k.shape[2] or not causal)
            and min(q.size, k.size, v.size) > 0
            and dropout_p < 1
        )

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, causal: bool, mask: Any, dropout_p: float) -> Any:
        y = heads_of_tokens(q.shape[:3] + v.shape[3:], q)
        parts = parts_for(4 * q.size * k.shape[2], LEAST)  # two products, and the weights in between
        ctx.groups = groups(q, k, parts)
        ctx.parts = min(parts, len(ctx.groups))
        keep = any(ctx.needs_input_grad)
        drops = [Masks(dropout_p, seed) for seed in random.seeds(len(ctx.groups))] if dropout_p else None
        ctx.saved_tiles = [None] * len(ctx.groups)

        def work(number: int, group: Any) -> None:
            drop = drops[number] if drops else None
            tiles = forward_group(q[group], k[group], v[group], y[group], causal, drop)
            ctx.saved_tiles[number] = (tiles, drop) if keep else None

        for_each(ctx.groups, ctx.parts, work)
        ctx.save(q, k, v, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        q, k, v, y = ctx.saved
        dq, dk, dv = parts_of_one(q, k, v)

        def work(number: int, group: Any) -> None:
            arrays = [array[group] for array in (g, q, k, v, y, dq, dk, dv)]
            backward_group(*arrays, *ctx.saved_tiles[number])

        for_each(ctx.groups, ctx.parts, work)
        return dq, dk, dv, None, None, None


def groups(q: Any, k: Any, parts: int) -> list[tuple[slice, slice]]:
    """The sequences and heads (B, H) in groups that are processed together, equally many for every thread."""
    B, H, T, _ = q.shape
    size = max(1, GROUP // (min(T, TILE) * k.shape[2]))  # heads in a group, over all its sequences
    if parts > 1:
        size = min(size, max(1, B * H // parts))
    if size >= H and parts <= B:
        count = -(-B * H // size)
        count = min(B, -(-count // parts) * parts)
        return [(stretch(B, i, count), slice(None)) for i in range(count)]
    count = -(-H // size)
    return [(slice(b, b + 1), stretch(H, i, count)) for b in range(B) for i in range(count)]


def tile_bounds(T: int, U: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, last query + 1, number of keys that they attend to) for each tile."""
    starts = range(0, T, TILE)
    return [(a, min(T, a + TILE), min(T, a + TILE) + U - T if causal else U) for a in starts]


def forward_group(q: Any, k: Any, v: Any, y: Any, causal: bool, drop: Masks | None) -> list[Any]:
    """Fill y, (b, h, T, D), and return the weights P (b, h, t, u) of each tile."""
    T, U = q.shape[2], k.shape[2]
    scaled = np.multiply(k.swapaxes(2, 3), q.dtype.type(1 / math.sqrt(q.shape[3])), order="C")  # (b, h, D, U)
    tiles = []
    for start, stop, keys in tile_bounds(T, U, causal):
        p = q[:, :, start:stop] @ scaled[..., :keys]
        softmax_in_place(p, causal)
        own = y[:, :, start:stop]
        if drop is None:
            np.matmul(p, v[:, :, :keys], out=own)
        else:
            np.matmul(p * drop.draw(p.shape), v[:, :, :keys], out=own)
            own *= q.dtype.type(drop.scale)
        tiles.append(p)
    return tiles


def softmax_in_place(s: Any, causal: bool) -> None:
    """Turn scores s (b, h, t, u) into weights, 0 for the future: exp(s) or exp(s - m), divided by the row's sum."""
    t, u = s.shape[2:]
    past = triangle(t, s.dtype)
    if not (s.max() < SAFE and s.min() > -SAFE):
        if causal:
            np.copyto(s[..., u - t :], -np.inf, where=past == 0)
        m = s.max(axis=-1, keepdims=True)
        s -= np.where(m == -np.inf, 0, m)
    np.exp(s, out=s)
    if causal:
        s[..., u - t :] *= past
    sums = s @ np.ones((u, 1), s.dtype)  # (b, h, t, 1)
    sums[sums == 0] = 1  # a query that may attend to no key: as in ops/softmax.py
    s *= 1 / sums


@functools.lru_cache(maxsize=4)
def triangle(t: int, dtype: Any) -> Any:
    """A matrix (t, t): 1 where a query may attend to a key of its own tile, 0 above the diagonal."""
    past = np.tri(t, dtype=dtype)
    past.setflags(write=False)  # all calls share it
    return past


def backward_group(
    g: Any, q: Any, k: Any, v: Any, y: Any, dq: Any, dk: Any, dv: Any, tiles: list[Any], drop: Masks | None
) -> None:
    """Fill dq, dk and dv, all (b, h, …, D). The last tile comes first: it has all the keys and so starts dk and dv."""
    scale = q.dtype.type(1 / math.sqrt(q.shape[3]))
    v = np.multiply(v.swapaxes(2, 3), scale, order="C")  # (b, h, D, U); this scales dS, and so dq and dk
    stop = T = q.shape[2]
    sums = [dk, dv]
    if len(tiles) > 1:  # heads of packed projections lie far apart in memory: adding to them is slow
        sums = [np.empty(part.shape, part.dtype) for part in sums]
    dk_sum, dv_sum = sums
    for number in reversed(range(len(tiles))):
        p = tiles[number]
        start, keys = stop - p.shape[2], p.shape[3]
        own = slice(start, stop)
        dy = g[:, :, own]  # (b, h, t, D)
        shift = scale * np.vecdot(dy, y[:, :, own])[..., None]  # (b, h, t, 1)
        if drop is not None:
            dy = dy * q.dtype.type(drop.scale)
        ds = dy @ v[..., :keys]  # (b, h, t, keys)
        if drop is None:
            weights = p
        else:
            ds *= drop.drawn[number]
            weights = p * drop.drawn[number]
        add_product(weights, dy, dv_sum[:, :, :keys], first=stop == T)
        ds -= shift
        ds *= p
        np.matmul(ds, k[:, :, :keys], out=dq[:, :, own])
        add_product(ds, q[:, :, own], dk_sum[:, :, :keys], first=stop == T)
        stop = start
    if len(tiles) > 1:
        dk[...], dv[...] = sums


def add_product(a: Any, b: Any, out: Any, first: bool) -> None:
    """out = a^T b the first time, then out += a^T b."""
    if first:
        np.matmul(a.swapaxes(2, 3), b, out=out)
    else:
        out += a.swapaxes(2, 3) @ b
