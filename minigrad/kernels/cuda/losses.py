"""Cross-entropy that keeps the logits instead of their softmax. See ops/loss.py for the formulas."""

from __future__ import annotations

import sys
from typing import Any

from ...backend import get_array_module, is_array
from .launch import SCALARS, Kernel, packed, width

THREADS = 256


class CrossEntropy:
    """As ops/loss.py, without label smoothing. The loss is float32, whatever the logits are.

    The gradient is written over the logits where nobody else holds them, which saves as much memory as the logits
    take: with GPT-2's vocabulary more than all other activations of a batch.
    """

    returns_new_arrays = True

    @staticmethod
    def fits(x: Any, targets: Any, ignore_index: int, reduction: str, label_smoothing: float = 0.0) -> bool:
        return (
            str(x.dtype) in SCALARS
            and x.ndim > 0
            and x.size > 0
            and targets.shape == x.shape[:-1]
            and targets.dtype.kind in "iu"
            and not label_smoothing
        )

    @staticmethod
    def forward(ctx: Any, x: Any, targets: Any, ignore_index: int, reduction: str, label_smoothing: float = 0.0) -> Any:
        xp = get_array_module(x)
        targets = xp.ascontiguousarray(targets.reshape(-1), dtype="int32")
        x, n, vocabulary = packed(x), targets.size, x.shape[-1]
        losses, lse, total = xp.empty(n, "float32"), xp.empty(n, "float32"), xp.empty(2, "float32")
        kernel = _kernel("cross_entropy_forward", x)
        kernel(n, THREADS, x, targets, ignore_index, vocabulary, losses, lse)
        if reduction != "none":
            kernel = _kernel("add_losses", x)
            kernel(1, 1024, losses, targets, ignore_index, n, int(reduction == "mean"), total)
        ctx.save(x, targets, lse, total if reduction == "mean" else None)
        ctx.ignore_index = ignore_index
        return losses.reshape(x.shape[:-1]) if reduction == "none" else total[0]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, targets, lse, total = ctx.saved
        if not ctx.retained:
            ctx.save()  # so that only this function, and whoever else has the logits, holds them
        xp = get_array_module(x)
        g = xp.ascontiguousarray(g.reshape(-1), dtype="float32")
        dx = x if not ctx.retained and held_once(x) else xp.empty_like(x)
        kernel = _kernel("cross_entropy_backward", x)
        kernel(targets.size, THREADS, g, g.size, total, x, targets, lse, ctx.ignore_index, x.shape[-1], dx)
        return dx, None, None, None, None


def held_once(array: Any) -> bool:
    """Does nobody but the caller's one variable hold this memory? Reference counts tell; False where they do not."""
    ours = 3  # the caller's variable, this function's parameter, and getrefcount's own
    while sys.getrefcount(array) == ours:
        if not is_array(array.base):
            return True
        array, ours = array.base, 3  # the view's reference to its base, this variable, and getrefcount's own
    return False


def _kernel(name: str, x: Any) -> Kernel:
    return Kernel("cross_entropy.cu", name, x.dtype, WIDTH=width(x.dtype, x.shape[-1]))
