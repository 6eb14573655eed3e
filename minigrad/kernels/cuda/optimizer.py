"""Clipping and AdamW for all parameters in one launch. See optim/optimizer.py for the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import kernels
from ...backend import address, check_same_device, device_of, get_array_module
from . import graph
from .launch import SCALARS, Kernel

CHUNK = 4096  # elements that a block has, as in adamw.cu
THREADS = 256


def usable(parameters: Sequence[Any], gradients: Sequence[Any]) -> bool:
    """Can the kernels here change these arrays? They want one GPU, parameters of one dtype, and contiguous arrays."""
    if get_array_module(parameters[0]) is np:
        return False
    dtype, *others = {str(w.dtype) for w in parameters}
    return (
        not others
        and dtype in SCALARS
        and kernels.in_use(device_of(parameters[0]), dtype, "AdamW", "ClipGradNorm")
        and len({device_of(array) for array in (*parameters, *gradients)}) == 1
        and all(array.flags.c_contiguous for array in (*parameters, *gradients))
        and {str(g.dtype) for g in gradients} <= {dtype, "float32"}
    )


class Tensors:
    """Tables on the card that tell a kernel where the parameters and what belongs to them are.

    `rows`: (w, g, m, v, master) for each parameter, arrays or None.
    """

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        sizes = [next(array for array in row if array is not None).size for row in rows]
        wide = [[row[1] is not None and str(row[1].dtype) == "float32"] for row in rows]
        table = [
            [*map(address, row), size, *is_float32] for row, size, is_float32 in zip(rows, sizes, wide, strict=True)
        ]
        counts = [-(-size // CHUNK) for size in sizes]
        chunks = [np.stack([np.full(n, i), np.arange(n)], axis=1) for i, n in enumerate(counts)]
        some = next(array for array in rows[0] if array is not None)
        check_same_device("the optimizer", [some])  # which makes its GPU the current one
        self.xp = get_array_module(some)
        self.dtype = next((row[0].dtype for row in rows if row[0] is not None), some.dtype)
        self.table = graph.upload(self.xp, np.array(table, np.int64))
        self.chunks = graph.upload(self.xp, np.concatenate(chunks).astype(np.int32))

    def launch(self, name: str, *arguments: Any) -> None:
        """A kernel that has one block a chunk."""
        Kernel("adamw.cu", name, self.dtype)(len(self.chunks), THREADS, self.table, self.chunks, *arguments)


def clip_grad_norm(
    parameters: Sequence[Any], gradients: Sequence[Any], max_norm: float, loss_scale: float = 1.0
) -> Any:
    """Divide gradients by `loss_scale`, and then scale them so that their global norm is at most `max_norm`.

    The norm in between, a float32 array (0-d).
    """
    tensors = Tensors([(w, g, None, None, None) for w, g in zip(parameters, gradients, strict=True)])
    squares, norm = tensors.xp.empty(len(tensors.chunks), "float32"), tensors.xp.empty(2, "float32")
    tensors.launch("sum_squares", squares)
    kernel = Kernel("adamw.cu", "finish_norm", tensors.dtype)
    limit = min(float(max_norm), float(np.finfo(np.float32).max))
    kernel(1, 1024, squares, squares.size, limit, float(loss_scale), norm)
    tensors.launch("scale_gradients", norm)
    return norm[0]


def adamw(
    rows: Sequence[Sequence[Any]],
    lr: float | Callable[[], float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    t: int | Callable[[], int],
) -> None:
    """The t-th step of AdamW for parameters with (w, g, m, v, master) each.

    Where lr and t are functions, a step that is captured asks them again before every replay.
    """
    tensors = Tensors(rows)

    def numbers() -> np.ndarray:
        step = t() if callable(t) else t
        c1, root_c2 = 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)
        return np.array([lr() if callable(lr) else lr, c1, root_c2], np.float32)

    on_card = graph.upload(tensors.xp, numbers)
    tensors.launch("adamw", on_card, *map(float, betas), float(eps), float(weight_decay))
