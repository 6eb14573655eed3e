"""Which elements a kernel drops: the argument that dropout.cuh makes random bits of."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import random
from ...random import counter

DROPOUT = np.dtype([("seed", np.uint64), ("draw", np.uint64), ("dropped", np.int32), ("factor", np.float32)])


def draw_dropout(p: float) -> Any:
    """What decides which elements are dropped with probability p, struct Dropout in C: an argument for kernels.

    It is one draw of the GPUs' generator, and the same argument drops the same elements: the backward passes on what
    the forward drew, and a state of minigrad.random that is restored draws it again. Where p is 0 nothing is drawn.
    """
    dropped, factor = random.dropout_threshold(p)
    seed, draw = counter.next_draw() if p else (0, 0)
    return np.array([(seed % 2**64, draw, dropped, factor)], DROPOUT)  # one element: passed by value
