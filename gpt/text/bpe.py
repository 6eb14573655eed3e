"""Byte-pair encoding: learn which adjacent tokens to merge (Gage, 1994; for words: Sennrich et al., 2016)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

MAX_TOKEN_BYTES = 256  # GPT-2's longest token has 128
BORDER = 0xFF  # separates pieces; UTF-8 never contains this byte, so no piece contains its token
JOINED = -1  # marks the place of a merged pair's right token


def learn_merges(pieces: Mapping[str, int], n_merges: int) -> list[tuple[int, int]]:
    """Learn up to `n_merges` merges from pieces of text (usually words) and the number of times each piece occurs.

    Tokens 0 to 255 are the bytes. Each step counts the pairs of adjacent tokens within pieces and merges every
    occurrence of the most frequent pair, from left to right. Merge number i, returned as (left, right), makes token
    256 + i. Ties go to the lowest left token, then to the lowest right token. Pairs longer than MAX_TOKEN_BYTES are
    skipped. The list is shorter than `n_merges` if no remaining pair occurs twice.

    No two merges make the same bytes, so the bytes identify a token. Tokens are never split again, so the merges inside
    a token depended only on its own bytes, and the same bytes were always merged in the same way.

    A new pair always contains the newest token, so all occurrences of a pair appear in one step, and afterwards their
    number can only fall. Therefore the places of a pair are stored once, and a heap orders the pairs by counts that may
    be out of date, but never too low. A popped pair whose count has fallen is pushed back with the new count.
    """
    text = bytes([BORDER]) + b"".join(piece.encode() + bytes([BORDER]) for piece in pieces)
    ids = np.frombuffer(text, np.uint8).astype(np.int32)  # (N,): each token, at the place of its first byte
    lengths = [1, *(len(piece.encode()) + 1 for piece in pieces)]
    weights = np.repeat([0, *pieces.values()], lengths)  # (N,): how often the piece at each place occurs
    before, after = np.arange(-1, len(ids) - 1), np.arange(1, len(ids) + 1)  # (N,): the places of adjacent tokens

    tokens = [bytes([byte]) for byte in range(256)]
    counts: dict[tuple[int, int], int] = {}
    places: dict[tuple[int, int], np.ndarray] = {}  # of each pair's left tokens; some may be merged by now
    heap: list[tuple[int, int, int]] = []
    merges: list[tuple[int, int]] = []

    def add(at: np.ndarray) -> None:
        """Add the pairs whose left tokens are at these places."""
        for pair, group, count in _by_pair(ids[at], ids[after[at]], weights[at]):
            if count > 1:
                counts[pair], places[pair] = count, at[group]
                heapq.heappush(heap, (-count, *pair))

    def subtract(at: np.ndarray) -> None:
        """Subtract the pairs whose left tokens are at these places; they are about to disappear."""
        for pair, _, count in _by_pair(ids[at], ids[after[at]], weights[at]):
            if pair in counts:
                counts[pair] -= count

    add(np.flatnonzero((ids[:-1] != BORDER) & (ids[1:] != BORDER)))
    while heap and len(merges) < n_merges:
        count, left, right = heapq.heappop(heap)
        pair = left, right
        if counts[pair] < -count:
            if counts[pair] > 1:
                heapq.heappush(heap, (-counts[pair], *pair))
            continue
        joined = tokens[left] + tokens[right]
        if len(joined) > MAX_TOKEN_BYTES:
            continue
        at = places.pop(pair)
        at = at[(ids[at] == left) & (ids[after[at]] == right)]
        if left == right:
            at = _every_other(at, after)
        gone = after[at]  # the places of the right tokens
        ends = at[ids[before[at]] != BORDER]
        subtract(np.union1d(before[ends], gone[ids[after[gone]] != BORDER]))
        del counts[pair]

        token = len(tokens)
        ids[at], ids[gone] = token, JOINED
        after[at] = after[gone]
        before[after[at]] = at
        starts = before[at]
        add(np.union1d(starts[ids[starts] != BORDER], at[ids[after[at]] != BORDER]))
        tokens.append(joined)
        merges.append(pair)
    return merges


def _by_pair(
    lefts: np.ndarray, rights: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[tuple[int, int], np.ndarray, int]]:
    """Each distinct pair, its indices in the arrays (in order), and the sum of its weights."""
    if not len(lefts):
        return
    codes = lefts.astype(np.int64) << 32 | rights
    order = codes.argsort(kind="stable")
    codes = codes[order]
    bounds = np.flatnonzero(np.diff(codes, prepend=-1))
    sums = np.add.reduceat(weights[order], bounds).tolist()
    ends = [*bounds[1:].tolist(), len(codes)]
    for code, start, end, total in zip(codes[bounds].tolist(), bounds.tolist(), ends, sums, strict=True):
        yield (code >> 32, code & 0xFFFFFFFF), order[start:end], total


def _every_other(at: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The first, third, … of overlapping pairs, as in a a a a: these are merged when going from left to right."""
    first = np.r_[True, at[1:] != after[at[:-1]]]  # starts of runs of overlapping pairs
    number = np.arange(len(at))
    number -= np.maximum.accumulate(np.where(first, number, 0))
    return at[number % 2 == 0]
