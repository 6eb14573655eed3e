"""Random numbers on a GPU: which elements a kernel drops (see dropout.cuh), and the words of a draw by one kernel."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ... import random
from ...random import counter
from .. import in_use
from .launch import Kernel

DROPOUT = np.dtype([("seed", np.uint64), ("draw", np.uint64), ("dropped", np.int32), ("factor", np.float32)])
THREADS = 256


def draw_dropout(p: float) -> Any:
    """What decides which elements are dropped with probability p, struct Dropout in C: an argument for kernels.

    It is one draw of the GPUs' generator, and the same argument drops the same elements: the backward passes on what
    the forward drew, and a state of minigrad.random that is restored draws it again. Where p is 0 nothing is drawn.
    """
    dropped, factor = random.dropout_threshold(p)
    seed, draw = counter.next_draw() if p else (0, 0)
    return _dropout(seed, draw, dropped, factor)


def _dropout(seed: int, draw: int, dropped: int = 0, factor: float = 1.0) -> Any:
    return np.array([(seed % 2**64, draw, dropped, factor)], DROPOUT)  # one element: passed by value


def random_words(n: int, seed: int, draw: int, device: str) -> Any:
    """The n words of `counter.draw_words` on a GPU in one launch; None where this kernel is off."""
    if device == "cpu" or not in_use(device, "uint32", "RandomWords"):
        return None
    return launch_random_words(n, seed, draw)


def launch_random_words(n: int, seed: int, draw: int) -> Any:
    words = importlib.import_module("cupy").empty(n, "uint32")
    blocks = -(-n // (4 * THREADS))
    Kernel("random_words.cu", "random_words", "float32")(
        blocks, THREADS, _dropout(seed, draw), counter.earlier, np.int64(n), words
    )
    return words


counter.words_on_gpu = random_words
