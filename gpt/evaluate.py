"""How well a model predicts a text: loss, perplexity, and bits per byte."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import minigrad as mg
from minigrad import functional as F

from .errors import ConfigError, DataError, memory_advice
from .model import GPT


class Evaluation(NamedTuple):
    """The negative log-likelihood of a text, `nats` in all, for `n_tokens` predictions and `n_bytes` of UTF-8."""

    nats: float
    n_tokens: int
    n_bytes: int

    @property
    def loss(self) -> float:
        """Nats per predicted token: the mean cross-entropy."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """e^loss: the number of equally likely tokens that would be as hard to predict."""
        return math.exp(self.loss) if self.loss < 709 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text; unlike the others, it can be compared between tokenizers."""
        return self.nats / math.log(2) / self.n_bytes


class Window(NamedTuple):
    """The model reads ids[start:end] and predicts ids[start + 1 : end + 1]; the last `counted` predictions count."""

    start: int
    end: int
    counted: int


def windows(n_tokens: int, block_size: int, stride: int) -> Iterator[Window]:
    """Windows over a text such that each token except the first is predicted once.

    All predictions of the first window count. Each later window starts `stride` tokens further, and only its last
    `stride` predictions count: they are made from at least block_size - stride + 1 tokens, and at most block_size.
    """
    end = min(block_size, n_tokens - 1)
    yield Window(0, end, end)
    while end < n_tokens - 1:
        counted = min(stride, n_tokens - 1 - end)
        end += counted
        yield Window(end - block_size, end, counted)


def evaluate(
    model: GPT, ids: Any, n_bytes: int, stride: int | None = None, batch_size: int = 4, progress: bool = False
) -> Evaluation:
    """Measure how well a model predicts a text.

    ids: the text's tokens, integers (N,).
    n_bytes: the length of the text in UTF-8.
    stride: the number of tokens by which the windows advance, see `windows`. A shorter stride gives more context and
        takes longer. None is half of the block size: GPT-2's figures are usually quoted with 512 of 1024.
    batch_size: the number of windows computed at a time.
    progress: show a bar.

    The first token is not predicted, since nothing comes before it. Raises `ConfigError` for a bad stride, batch size
    or number of bytes, and `DataError` for a text of fewer than two tokens.
    """
    block_size, device = model.config.block_size, model.wte.weight.device
    stride = max(1, block_size // 2) if stride is None else stride
    if not 1 <= stride <= block_size:
        raise ConfigError(f"stride is {stride}; expected 1 to the block size, {block_size}")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
    if len(ids) < 2:
        raise DataError(
            f"the text has {len(ids)} tokens; expected at least 2, the second to be predicted from the first"
        )
    if n_bytes < 1:
        raise ConfigError(f"n_bytes is {n_bytes}; expected at least 1")
    nats, bar = 0.0, tqdm(total=len(ids) - 1, unit="token", unit_scale=True, disable=not progress)
    with bar, model.evaluating(), mg.no_grad():
        for batch in _batches(windows(len(ids), block_size, stride), batch_size):
            rows = np.stack([ids[window.start : window.end + 1] for window in batch]).astype(np.int64)
            counted = batch[0].counted
            read, predicted = (mg.Tensor(part, device=device).data for part in (rows[:, :-1], rows[:, -counted:]))
            with memory_advice("to use less memory: a smaller --batch-size"):
                logits = model.logits(model.hidden_states(read)[:, -counted:])  # (B, counted, V)
                losses = F.cross_entropy(logits, predicted, reduction="none")
            nats += float(losses.numpy().sum(dtype=np.float64))
            bar.update(losses.size)
    return Evaluation(nats, len(ids) - 1, n_bytes)


def _batches(all_windows: Iterator[Window], batch_size: int) -> Iterator[list[Window]]:
    """Up to batch_size windows of one shape at a time."""
    for _, alike in itertools.groupby(all_windows, lambda window: (window.end - window.start, window.counted)):
        while batch := list(itertools.islice(alike, batch_size)):
            yield batch
