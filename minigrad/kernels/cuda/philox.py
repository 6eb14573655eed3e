"""Which elements a kernel drops: the key of the random bits that philox.cuh makes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import random

DROPOUT = np.dtype([("seed", np.uint32, 2), ("dropped", np.int32), ("factor", np.float32)])  # struct Dropout in C

# Kernels put this number, a uint32 on the device, or 0 for None, into their counters. A CUDA graph that is replayed has
# the keys that were drawn when it was captured: if it counts this up at its end, every replay drops other elements.
replays: Any = None


def draw_dropout(p: float) -> Any:
    """A key, drawn from the CPU's generator, and how many of 65536 values drop an element: an argument for kernels.

    As in `random.dropout_mask`, p is rounded to a multiple of 1/65536 and the factor 1 / (1 - p) to the rounded value.
    The same key drops the same elements, so the backward passes on the one that its forward drew.
    """
    dropped = round(p * 65536)
    factor = 65536 / (65536 - dropped) if dropped < 65536 else 0.0
    word = random.seeds(1)[0] if dropped else 0
    return np.array([((word & 0xFFFFFFFF, word >> 32), dropped, factor)], DROPOUT)  # one element: passed by value
