"""Random numbers on a GPU: which elements a kernel drops (see dropout.cuh), and the words of a draw by one kernel."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

from ... import random
from ...random import counter
from .. import in_use
from .launch import Kernel

DROPOUT = np.dtype([("seed", np.uint64), ("draw", np.uint64), ("dropped", np.int32), ("factor", np.float32)])
THREADS = 256
CHECKED_WORDS, CHECKED_DRAW = 4099, (0xA409382212345678, 2**32 - 1)  # a last block that is not full, large numbers

checked: dict[str, bool] = {}  # by GPU: are the kernel's words those of `counter.draw_words`?


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
    """The n words of `counter.draw_words` in one launch; None where that must not be used.

    It takes part in every draw, whether or not other kernels are in use, so it is checked by itself: the first draw on
    a GPU compares words of both, which are equal in all bits or the kernel stays off. `reference` leaves it out too.
    """
    if device == "cpu" or not in_use("cpu"):
        return None
    if device not in checked:
        if counter.earlier is not None:
            return None  # a capture: nothing runs that could be compared
        checked[device] = _is_right(device)
    return _launch(n, seed, draw) if checked[device] else None


def _is_right(device: str) -> bool:
    expected = counter.draw_words(CHECKED_WORDS, *CHECKED_DRAW, device)
    try:
        right = bool((_launch(CHECKED_WORDS, *CHECKED_DRAW) == expected).all())
        reason = "its words are wrong"
    except Exception as error:
        right, reason = False, f"{type(error).__name__}: {error}"
    if not right:
        warnings.warn(f"the kernel random_words is off on {device}: {reason}", RuntimeWarning, stacklevel=2)
    return right


def _launch(n: int, seed: int, draw: int) -> Any:
    words = importlib.import_module("cupy").empty(n, "uint32")
    blocks = -(-n // (4 * THREADS))
    Kernel("random_words.cu", "random_words", "float32")(
        blocks, THREADS, _dropout(seed, draw), counter.earlier, np.int64(n), words
    )
    return words


counter.words_on_gpu = random_words
