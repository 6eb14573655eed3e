"""Rotary position embedding."""

from __future__ import annotations

import functools

import numpy as np

from ..autograd import Function
from ..backend import get_array_module, kind_of
from .precision import computed_in_single


def turns(xp, length, size, offset, base, dtype):
    """cos and sin of the angles of `length` positions from `offset` on, as `turn` wants them: both (T, D).

    The angles are computed in float64: of the position 10,000 a float32 knows no more than three decimal places.
    """
    frequencies = base ** (xp.arange(0, size, 2, dtype="float64") / -size)  # (D/2,)
    angles = xp.arange(offset, offset + length, dtype="float64")[:, None] * frequencies  # (T, D/2)
    cos, sin = xp.cos(angles), xp.sin(angles)
    return xp.concatenate([cos, cos], axis=1).astype(dtype), xp.concatenate([-sin, sin], axis=1).astype(dtype)


# All layers ask for the same table. On a GPU it is made anew: a captured graph may not read what a cache has dropped.
turns_on_cpu = functools.lru_cache(maxsize=32)(functools.partial(turns, np))


def turn(x, cos, sin):
    """[a cos - b sin, b cos + a sin] for x = [a, b], with cos = [cos, cos] and sin = [-sin, sin]. A new array."""
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)  # heads are strided views; a copy of them costs less than reading them twice
    half = x.shape[-1] // 2
    y = xp.concatenate([x[..., half:], x[..., :half]], axis=-1)  # [b, a]
    y *= sin
    y += x * cos
    return y


@computed_in_single
class Rotary(Function):
    """Rotary position embedding (Su et al., 2021): pairs of channels are turned, the further the later the position.

    With the row x = [a, b] cut into halves, the pair (a_i, b_i) at position p is turned by the angle p base^(-2i/D):

        y = [a cos - b sin, b cos + a sin]

    Shapes: x and y (…, T, D), D even; the rows are at the positions p = offset … offset + T - 1. Pairing channel i with
    i + D/2 is the half-split convention of GPT-NeoX, and of LLaMA in Hugging Face's format; the original pairs
    neighbors, which is the same but for the order of the channels.

    Turning two rows by the same angle leaves their product as it is. The product of a query and a key therefore
    depends on how far apart they are, and not on where.

    Backward. At every position y = R x, and R is a rotation, so dL/dx = R^T g = R^-1 g: g is turned back, which is the
    same formula with -sin for sin.
    """

    @staticmethod
    def forward(ctx, x, offset, base):
        if x.ndim < 2 or x.shape[-1] % 2 or kind_of(x.dtype) != "f" or not base > 0 or offset % 1:
            raise ValueError("expected floating x (…, T, D) with an even D, a whole offset and a base above 0")
        xp = get_array_module(x)
        table = (*x.shape[-2:], offset, base, x.dtype)
        cos, sin = turns_on_cpu(*table) if xp is np else turns(xp, *table)
        ctx.save(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved
        return turn(g, cos, -sin), None, None
