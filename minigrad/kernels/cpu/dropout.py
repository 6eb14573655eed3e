"""Dropout whose masks are drawn piece by piece, each from a generator of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import random
from .pieces import ALONE, for_each, pieces


class Masks:
    """Masks that are False with probability p, from a generator with this seed, kept in the order of drawing.

    As in `minigrad.random.dropout_mask`, each element compares 16 random bits with a threshold.
    """

    def __init__(self, p: float, seed: int) -> None:
        self.generator = np.random.SFC64(seed)
        self.threshold = min(round(p * 65536), 65535)
        self.scale = 65536 / (65536 - self.threshold)
        self.drawn: list[Any] = []

    def draw(self, shape: tuple[int, ...]) -> Any:
        n = math.prod(shape)
        bits = self.generator.random_raw(-(-n // 4)).view(np.uint16)[:n]
        self.drawn.append((bits >= self.threshold).reshape(shape))
        return self.drawn[-1]


class Dropout:
    """As ops/dropout.py, with other random numbers: y = x m / (1 - p)."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, p: float) -> bool:
        return x.size > ALONE and x.dtype.kind == "f" and p < 1

    @staticmethod
    def forward(ctx: Any, x: Any, p: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        ctx.cut, ctx.parts = pieces(*rows.shape)
        ctx.masks = [Masks(p, seed) for seed in random.seeds(len(ctx.cut))]
        return Dropout.apply(ctx, rows, draw=True).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return Dropout.apply(ctx, g.reshape(-1, g.shape[-1]), draw=False).reshape(g.shape), None

    @staticmethod
    def apply(ctx: Any, rows: Any, draw: bool) -> Any:
        y = np.empty_like(rows)

        def work(number: int, own: slice) -> None:
            masks = ctx.masks[number]
            np.multiply(rows[own], masks.draw(rows[own].shape) if draw else masks.drawn[0], out=y[own])
            y[own] *= rows.dtype.type(masks.scale)

        for_each(ctx.cut, ctx.parts, work)
        return y
