"""Beam search: search for a model's likeliest sequence.

Greedy search takes the likeliest token at each step, so it misses sequences whose beginning is less likely but whose
whole is likelier. Beam search keeps the K likeliest beginnings, the hypotheses, and extends all of them. K = 1 is
greedy search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from ..options import number_or_nan

PAD, START, END = 0, 1, 2  # the first tokens of every vocabulary of a seq2seq model


class Hypothesis(NamedTuple):
    """A sequence and its score. Its last token is END unless it was cut off."""

    tokens: np.ndarray  # (T,)
    score: float


def normalizer(length: int, length_penalty: float) -> float:
    """((5 + length) / 6)^length_penalty: the divisor of a hypothesis's log-probability (Wu et al., 2016).

    Every token makes a sequence less likely, so plain log-probabilities (penalty 0) favor short sequences. Larger
    penalties favor longer ones. GNMT and "Attention Is All You Need" use values from 0.2 to 0.6.
    """
    return ((5 + length) / 6) ** length_penalty


def check_length_penalty(length_penalty: float) -> None:
    """Raise `ConfigError` unless the penalty is a number from 0 to 10; beyond that `normalizer` could overflow."""
    if not 0 <= number_or_nan(length_penalty) <= 10:
        raise ConfigError(f"length_penalty is {length_penalty!r}; expected a number from 0 to 10")


def beam_search(
    next_log_probabilities: Callable[[np.ndarray, np.ndarray], Any],
    batch_size: int,
    beam_size: int,
    max_new_tokens: int,
    length_penalty: float,
) -> list[Hypothesis]:
    """The best hypothesis found for each of B = `batch_size` sentences, with K = `beam_size` hypotheses per sentence.

    next_log_probabilities(tokens, rows): log-probabilities (B K, V) of the next token. Row i now holds the hypothesis
        that was in row rows[i], followed by tokens[i], integers (B K,). A row without a hypothesis has the token PAD.

    A hypothesis that ends leaves the beam, which becomes narrower by one. Its score is its log-probability divided by
    `normalizer` of its length, END included. The search stops when no hypothesis left can reach a better score. A
    hypothesis that reaches `max_new_tokens` without END is returned only if none has ended.
    """
    B, K = batch_size, beam_size
    log_p = np.full((B, K), -np.inf)  # of each hypothesis; -inf if there is none
    log_p[:, 0] = 0
    tokens = np.zeros((B, K, 0), np.int64)
    newest, rows = np.full(B * K, START), np.arange(B * K)
    ended: list[list[Hypothesis]] = [[] for _ in range(B)]
    best_score = np.full((B, 1), -np.inf)  # among ended hypotheses
    for length in range(1, max_new_tokens + 1):
        following = np.array(next_log_probabilities(newest, rows), np.float64).reshape(B, K, -1)  # (B, K, V)
        following[:, :, [PAD, START]] = -np.inf  # never generated
        log_p, parent, token = _likeliest(log_p[:, :, None] + following, K)  # (B, K), best first
        tokens = np.concatenate([np.take_along_axis(tokens, parent[:, :, None], axis=1), token[:, :, None]], axis=2)
        width = K - np.array([[len(hypotheses)] for hypotheses in ended])  # (B, 1)
        log_p[np.arange(K) >= width] = -np.inf

        score = log_p / normalizer(length, length_penalty)
        for b, k in np.argwhere((token == END) & np.isfinite(score)):
            ended[b].append(Hypothesis(tokens[b, k], float(score[b, k])))
            best_score[b] = max(best_score[b, 0], score[b, k])
        # Further tokens only lower log_p, and only a greater length can raise the score. So this is an upper bound:
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
    """The k largest entries of log_p (B, K, V) for each sentence, largest first: values, hypotheses and tokens."""
    B, _, V = log_p.shape
    flat = log_p.reshape(B, -1)
    found = np.argpartition(-flat, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(flat, found, axis=1), axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    return np.take_along_axis(flat, found, axis=1), found // V, found % V
