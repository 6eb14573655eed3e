"""Layer normalization. See ops/normalization.py for the formulas and where they come from."""

from __future__ import annotations

from typing import Any

from ...backend import get_array_module
from .launch import SCALARS, WARP, Kernel, multiprocessors, packed, width
from .sums import add_strips

THREADS = 128  # of a block: four rows at a time, or one that is longer than a warp's registers hold
LONGEST_FOR_A_WARP = 1024
LONGEST_ROW = THREADS // WARP * LONGEST_FOR_A_WARP


class LayerNorm:
    """As ops/normalization.py, computed in float32. Saved for backward: x, and mu and r of every row."""

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, gamma: Any, beta: Any, eps: float) -> bool:
        return (
            str(x.dtype) in SCALARS
            and x.ndim > 0
            and 0 < x.shape[-1] <= LONGEST_ROW
            and x.size > 0
            and all(p is None or (p.shape == x.shape[-1:] and p.dtype == x.dtype) for p in (gamma, beta))
        )

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        xp = get_array_module(x)
        x, gamma, beta = packed(x), packed(gamma), packed(beta)
        rows = x.size // x.shape[-1]
        y, mu, r = xp.empty_like(x), xp.empty((2, rows), "float32"), xp.empty(rows, "float32")
        blocks = -(-rows // (THREADS // _row_threads(x)))
        kernel = _kernel("layer_norm_forward", x)
        kernel(blocks, THREADS, x, gamma, beta, float(eps), rows, y, mu, r)
        ctx.save(x, gamma, mu, r)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, gamma, mu, r = ctx.saved
        _, wants_gamma, wants_beta, _ = ctx.needs_input_grad
        xp = get_array_module(x)
        rows, channels = r.size, x.shape[-1]
        blocks = min(-(-rows // (THREADS // _row_threads(x))), 2 * multiprocessors())
        dx, dgamma, dbeta = xp.empty_like(x), *(xp.empty((blocks, channels), "float32") for _ in range(2))
        kernel = _kernel("layer_norm_backward", x)
        kernel(blocks, THREADS, packed(g), x, gamma, mu, r, rows, dx, dgamma, dbeta)
        return (
            dx,
            add_strips(dgamma, x.dtype) if wants_gamma else None,
            add_strips(dbeta, x.dtype) if wants_beta else None,
            None,
        )


def _kernel(name: str, x: Any) -> Kernel:
    channels = x.shape[-1]
    constants = {"CHANNELS": channels, "WIDTH": width(x.dtype, channels), "ROW_THREADS": _row_threads(x)}
    return Kernel("layer_norm.cu", name, x.dtype, **constants)


def _row_threads(x: Any) -> int:
    """How many threads share a row of x."""
    return WARP if x.shape[-1] <= LONGEST_FOR_A_WARP else THREADS
