"""Beam search: the likeliest sequence that a model can be found to give, keeping several beginnings at once.

Greedy search takes the likeliest token at every step and may so miss a sequence that begins less likely and ends
likelier. Beam search keeps the K likeliest beginnings, its hypotheses, and goes on with all of them; K = 1 is greedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from ..options import number_or_nan

PAD, START, END = 0, 1, 2  # the tokens that every vocabulary of a seq2seq model begins with


class Hypothesis(NamedTuple):
    """A sequence, with END as its last token unless it was cut off, and its score."""

    tokens: np.ndarray  # (T,)
    score: float


def normalizer(length: int, length_penalty: float) -> float:
    """((5 + length) / 6)^length_penalty, by which a hypothesis' log-probability is divided (Wu et al., 2016).

    Every token makes a sequence less likely, so log-probabilities alone favor short ones: that is 0. Larger values
    favor longer ones; GNMT and "Attention Is All You Need" took values from 0.2 to 0.6.
    """
    return ((5 + length) / 6) ** length_penalty


def check_length_penalty(length_penalty: float) -> None:
    """Raise `ConfigError` for a length penalty without meaning, and for one whose `normalizer` could overflow."""
    if not 0 <= number_or_nan(length_penalty) <= 10:
        raise ConfigError(f"length_penalty is {length_penalty!r}; expected a number from 0 to 10")


def beam_search(
    next_log_probabilities: Callable[[np.ndarray, np.ndarray], Any],
    batch_size: int,
    beam_size: int,
    max_new_tokens: int,
    length_penalty: float,
) -> list[Hypothesis]:
    """The best hypothesis found for each of B = `batch_size` sentences, K = `beam_size` of them side by side.

    next_log_probabilities(tokens, rows): log-probabilities (B K, V) of what follows. Row i now holds the hypothesis
        that was in row rows[i], and after it tokens[i], integers (B K,). A row that holds none has the token PAD.

    A hypothesis that ends leaves the beam, which is then narrower by one, and waits with its score: its log-probability
    over `normalizer` of its length, with END. Search ends when none is left that could still get a better score. A
    hypothesis of `max_new_tokens` that has not ended counts only where none has.
    """
    B, K = batch_size, beam_size
    log_p = np.full((B, K), -np.inf)  # of each hypothesis; -inf where there is none
    log_p[:, 0] = 0
    tokens = np.zeros((B, K, 0), np.int64)
    newest, rows = np.full(B * K, START), np.arange(B * K)
    ended: list[list[Hypothesis]] = [[] for _ in range(B)]
    best_score = np.full((B, 1), -np.inf)  # of those that have ended
    for length in range(1, max_new_tokens + 1):
        following = np.array(next_log_probabilities(newest, rows), np.float64).reshape(B, K, -1)  # (B, K, V)
        following[:, :, [PAD, START]] = -np.inf  # which are no part of a sentence
        log_p, parent, token = _likeliest(log_p[:, :, None] + following, K)  # (B, K), the best first
        tokens = np.concatenate([np.take_along_axis(tokens, parent[:, :, None], axis=1), token[:, :, None]], axis=2)
        width = K - np.array([[len(hypotheses)] for hypotheses in ended])  # (B, 1)
        log_p[np.arange(K) >= width] = -np.inf

        score = log_p / normalizer(length, length_penalty)
        for b, k in np.argwhere((token == END) & np.isfinite(score)):
            ended[b].append(Hypothesis(tokens[b, k], float(score[b, k])))
            best_score[b] = max(best_score[b, 0], score[b, k])
        # Tokens to come make log_p less; all that can raise a score is length. So this is the most it can become:
        highest = log_p / normalizer(max_new_tokens, length_penalty)
        alive = (token != END) & (highest > best_score)
        log_p[~alive] = -np.inf
        if not alive.any():
            break
        newest, rows = np.where(alive, token, PAD).reshape(-1), (np.arange(B)[:, None] * K + parent).reshape(-1)
    return [
        max(hypotheses, key=lambda hypothesis: hypothesis.score)
        if hypotheses
        else Hypothesis(tokens[b, log_p[b].argmax()], float(score[b].max()))
        for b, hypotheses in enumerate(ended)
    ]


def _likeliest(log_p: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest of log_p (B, K, V) of each sentence, the largest first: their values, hypotheses and tokens."""
    B, _, V = log_p.shape
    flat = log_p.reshape(B, -1)
    found = np.argpartition(-flat, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(flat, found, axis=1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    return np.take_along_axis(flat, found, axis=1), found // V, found % V
