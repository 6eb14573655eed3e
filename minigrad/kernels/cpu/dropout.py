"""Dropout whose masks are drawn piece by piece, each from its own generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import random
from .pieces import for_each, is_large, pieces


class Masks:
    """Masks from `minigrad.random.dropout_mask`, drawn from a generator with this seed and kept in that order."""

    def __init__(self, p: float, seed: int) -> None:
        self.p, self.generator = p, np.random.SFC64(seed)
        self.scale = 1.0  # set with the first mask
        self.drawn: list[Any] = []

    def draw(self, shape: tuple[int, ...]) -> Any:
        mask, self.scale = random.dropout_mask(shape, self.p, source=self.generator)
        self.drawn.append(mask)
        return mask


class Dropout:
    """Like ops/dropout.py, but with different random numbers: y = x m / (1 - p)."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, p: float) -> bool:
        return is_large(x) and x.dtype.kind == "f" and p < 1

    @staticmethod
    def forward(ctx: Any, x: Any, p: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        ctx.cut, ctx.parts = pieces(*rows.shape)
        ctx.masks = [Masks(p, seed) for seed in random.seeds(len(ctx.cut))]
        return _drop(ctx, rows, draw=True).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return _drop(ctx, g.reshape(-1, g.shape[-1]), draw=False).reshape(g.shape), None


def _drop(ctx: Any, rows: Any, draw: bool) -> Any:
    """x m / (1 - p), with masks that are drawn now (`draw`) or were drawn in the forward."""
    y = np.empty_like(rows)

    def work(number: int, own: slice) -> None:
        masks = ctx.masks[number]
        np.multiply(rows[own], masks.draw(rows[own].shape) if draw else masks.drawn[0], out=y[own])
        y[own] *= rows.dtype.type(masks.scale)

    for_each(ctx.cut, ctx.parts, work)
    return y
