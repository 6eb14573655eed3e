"""Rotary position embedding."""

from __future__ import annotations

import functools

import numpy as np

from ..autograd import Function
from ..backend import get_array_module, kind_of
from .precision import computed_in_single


def turns(xp, length, size, offset, base, dtype):
    """cos and sin of the angles of `length` positions, starting at `offset`, as `turn` expects them: both (T, D).

    The angles are computed in float64: a float32 near 10,000 has only three decimal places.
    """
    frequencies = base ** (xp.arange(0, size, 2, dtype="float64") / -size)  # (D/2,)
    angles = xp.arange(offset, offset + length, dtype="float64")[:, None] * frequencies  # (T, D/2)
    cos, sin = xp.cos(angles), xp.sin(angles)
    return xp.concatenate([cos, cos], axis=1).astype(dtype), xp.concatenate([-sin, sin], axis=1).astype(dtype)


# All layers use the same table, so it is cached. On a GPU it is recomputed: a captured graph must not read an array
# that the cache has dropped.
turns_on_cpu = functools.lru_cache(maxsize=32)(functools.partial(turns, np))


def turn(x, cos, sin):
    """[a cos - b sin, b cos + a sin] as a new array, for x = [a, b], given [cos, cos] and [-sin, sin]."""
    xp = get_array_module(x)
    x = xp.ascontiguousarray(x)  # heads are strided views; one copy costs less than reading them twice
    half = x.shape[-1] // 2
    y = xp.concatenate([x[..., half:], x[..., :half]], axis=-1)  # [b, a]
    y *= sin
    y += x * cos
    return y


@computed_in_single
class Rotary(Function):
    """Rotary position embedding (Su et al., 2021): pairs of channels are rotated by angles that grow with the position.

    The row x = [a, b] is split into halves, and the pair (a_i, b_i) at position p is rotated by p base^(-2i/D):

        y = [a cos - b sin, b cos + a sin]

    Shapes: x and y (…, T, D), D even; the rows are at the positions p = offset … offset + T - 1. Pairing channel i with
    i + D/2 is the half-split convention of GPT-NeoX, and of LLaMA in Hugging Face's format. The original paper pairs
    neighboring channels, which differs only in the order of the channels.

    Rotating two rows by the same angle does not change their dot product. The dot product of a query and a key
    therefore depends only on the distance between them, not on their positions.

    Backward. At every position y = R x, and R is a rotation, so dL/dx = R^T g = R^-1 g: g is rotated back, by the same
    formula with -sin for sin.
    """

    @staticmethod
    def forward(ctx, x, offset, base):
        if x.ndim < 2 or x.shape[-1] % 2 or kind_of(x.dtype) != "f" or not base > 0 or offset % 1:
            raise ValueError("expected floating x (…, T, D) with an even D, an integer offset and a base above 0")
        xp = get_array_module(x)
        table = (*x.shape[-2:], offset, base, x.dtype)
        cos, sin = turns_on_cpu(*table) if xp is np else turns(xp, *table)
        ctx.save(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved
        return turn(g, cos, -sin), None, None
