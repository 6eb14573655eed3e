"""Byte-pair encoding: learning which neighbors to join (Gage, 1994; for words: Sennrich, Haddow and Birch, 2016)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

MAX_TOKEN_BYTES = 256  # GPT-2's longest token has 128
BORDER = 0xFF  # between pieces; no byte of UTF-8 has this value, so the token of this byte is in no piece
JOINED = -1  # where the right half of a merged pair stood


def learn_merges(pieces: Mapping[str, int], n_merges: int) -> list[tuple[int, int]]:
    """The merges that byte-pair encoding learns from pieces of text and how often each occurs.

    The tokens 0 to 255 are the bytes. A step counts how often each two tokens are neighbors within a piece, takes
    the most frequent pair, and joins it from left to right wherever it occurs. Merge number i, as (left, right), makes
    the token 256 + i. Among equally frequent pairs the one with the lowest left token is taken, of these the one with
    the lowest right token. Passed over are pairs of together more than MAX_TOKEN_BYTES. The list is shorter than
    n_merges if no pair is left that occurs twice.

    No two merges make the same bytes, so a token can be known by its bytes: tokens never come apart again, so between
    two ends of tokens nothing outside has had a say, and the same bytes have been joined in the same way.

    Every pair has as a part the token that was made last when it first came up, so all of its occurrences come up in
    one step; afterwards they only become fewer. So the places of a pair are written down once, and a heap orders the
    pairs by a count that may be out of date, but only ever too high: what is popped is put back if it has become less.
    """
    text = bytes([BORDER]) + b"".join(piece.encode() + bytes([BORDER]) for piece in pieces)
    ids = np.frombuffer(text, np.uint8).astype(np.int32)  # (N,): the tokens, at the place of their first byte
    lengths = [1, *(len(piece.encode()) + 1 for piece in pieces)]
    weights = np.repeat([0, *pieces.values()], lengths)  # (N,): how often the piece at each place occurs
    before, after = np.arange(-1, len(ids) - 1), np.arange(1, len(ids) + 1)  # (N,): the places of the neighbors

    tokens = [bytes([byte]) for byte in range(256)]
    counts: dict[tuple[int, int], int] = {}
    places: dict[tuple[int, int], np.ndarray] = {}  # of each pair's left tokens, some of which may be gone
    heap: list[tuple[int, int, int]] = []
    merges: list[tuple[int, int]] = []

    def add(at: np.ndarray) -> None:
        """Enter all pairs whose left tokens are at these places."""
        for pair, group, count in _by_pair(ids[at], ids[after[at]], weights[at]):
            if count > 1:
                counts[pair], places[pair] = count, at[group]
                heapq.heappush(heap, (-count, *pair))

    def subtract(at: np.ndarray) -> None:
        """These pairs are going to be no more."""
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
        gone = after[at]  # the places of the right tokens, which are joined to the left ones
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
    """Every distinct pair, where it is in the arrays (in order), and the sum of its weights."""
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
    """Of overlapping pairs, as in a a a a, the first, the third …: those that joining from left to right joins."""
    first = np.r_[True, at[1:] != after[at[:-1]]]  # of a run of overlapping pairs
    number = np.arange(len(at))
    number -= np.maximum.accumulate(np.where(first, number, 0))
    return at[number % 2 == 0]
