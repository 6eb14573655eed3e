"""Pairs of texts, a source and its target: read from a file or generated, then split into training and validation."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..errors import DataError
from ..text.data import read_text

Pair: TypeAlias = tuple[str, str]


def load_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read the pairs of a UTF-8 file: on each line a source, a tab and its target. Blank lines are skipped.

    Raises `DataError` with the line number for a line that is not a pair, and for a file without pairs.
    """
    pairs = []
    for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 2:
            what = f"{len(parts) - 1} tabs" if len(parts) > 2 else "no tab"
            raise DataError(
                f"{path}, line {number}: expected a source, a tab and a target, got {what} in {line[:60]!r}"
            )
        for side, text in zip(("source", "target"), parts, strict=True):
            if not text.strip():
                raise DataError(f"{path}, line {number}: the {side} is empty")
        pairs.append((parts[0], parts[1]))
    if not pairs:
        raise DataError(f"{path}: expected a source, a tab and a target on each line, got only blank lines")
    return pairs


def split_pairs(pairs: Sequence[Pair], val_share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split into training and validation pairs, both shuffled. Validation has about `val_share` of the pairs.

    Pairs that share a source or a target, directly or through other pairs, form a group, and a group is never divided:
    no source or target of validation occurs in training. So validation may get fewer pairs than its share. Repeated
    pairs count once. Raises `DataError` if no group is small enough for validation.
    """
    pairs = list(dict.fromkeys(pairs))
    group = _linked(pairs)
    rng = np.random.default_rng(seed)
    size = max(1, round(val_share * len(pairs)))
    held_out: set[int] = set()
    n_val, sizes = 0, Counter(group)
    for name in rng.permutation(list(sizes)).tolist():
        if n_val + sizes[name] <= size:
            held_out.add(name)
            n_val += sizes[name]
    if not 0 < n_val < len(pairs):
        raise DataError(
            f"{len(pairs)} distinct pairs cannot be split: expected 1 to {size} for validation, and others for "
            "training that share no source or target with them"
        )
    order = rng.permutation(len(pairs)).tolist()
    train, val = [[pairs[i] for i in order if (group[i] in held_out) == side] for side in (False, True)]
    return train, val


def _linked(pairs: Sequence[Pair]) -> list[int]:
    """The group number of each pair. Pairs with a common source or target are in one group (union-find)."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple[int, str], int] = {}  # the first pair with a text on a side
    for i, pair in enumerate(pairs):
        for text in enumerate(pair):
            parent[root(i)] = root(first.setdefault(text, i))
    return [root(i) for i in range(len(pairs))]


# Dates: from many formats to ISO 8601

FIRST_DAY, LAST_DAY = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)  # so two digits identify the year
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ROMAN = "I II III IV V VI VII VIII IX X XI XII".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
ORDINALS += [f"twenty-{ordinal}" for ordinal in ORDINALS[:9]] + ["thirtieth", "thirty-first"]


def ways_to_write_date(date: datetime.date) -> list[str]:
    """The date in many formats. No format can be read as another date from 1950 to 2049.

    12/25/98 and 25/12/98 are included only if the day cannot be mistaken for the month or equals it.
    """
    d, m, y = date.day, date.month, date.year
    month, weekday, ordinal = MONTHS[m - 1], WEEKDAYS[date.weekday()], ORDINALS[d - 1]
    suffix = "th" if d in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
    ways = [
        f"the {d}{suffix} of {month} {y}",
        f"{month} {d}{suffix}, {y}",
        f"the {ordinal} of {month}, {y}",
        f"{month} the {ordinal}, {y}",
        f"{month} {d}, {y}",
        f"{weekday}, {d} {month} {y}",
        f"{weekday[:3]} {month[:3]} {d} {y}",
        f"{d} {month} '{y % 100:02}",
        f"{month[:3]} {d}, '{y % 100:02}",
        f"{y}, {month} {d}",
        f"{d}.{ROMAN[m - 1]}.{y}",
        f"{d:02}-{month[:3].upper()}-{y}",
        f"{d:02}{month[:3].upper()}{y % 100:02}",
        f"{y}/{m}/{d}",
        f"{y}{m:02}{d:02}",
    ]
    if d > 12 or d == m:
        ways += [f"{d:02}/{m:02}/{y % 100:02}", f"{m}/{d}/{y}"]
    return ways


def date_pairs(count: int, seed: int) -> list[Pair]:
    """`count` random dates, each in a random format and in ISO 8601: ("3 May '98", "1998-05-03")."""
    rng = np.random.default_rng(seed)
    dates = rng.integers(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1, count)
    written = [(datetime.date.fromordinal(int(day)), rng.random()) for day in dates]
    return [(_one_of(ways_to_write_date(date), draw), date.isoformat()) for date, draw in written]


# Numbers: from English words to digits

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def ways_to_write_number(number: int) -> list[str]:
    """A number from 0 to 999,999 in English words: with and without "and", hyphens, commas, and "a" for "one"."""
    ways = [
        _in_words(number, conjunction, hyphen, comma)
        for conjunction in (" and ", " ")
        for hyphen in ("-", " ")
        for comma in (",", "")
    ]
    ways += ["a" + way.removeprefix("one") for way in ways if way.startswith(("one hundred", "one thousand"))]
    return list(dict.fromkeys(ways))


def _in_words(n: int, conjunction: str, hyphen: str, comma: str) -> str:
    if n < 20:
        return UNITS[n]
    if n < 100:
        return TENS[n // 10 - 2] + (hyphen + UNITS[n % 10] if n % 10 else "")
    whole, name, rest = (n // 1000, "thousand", n % 1000) if n >= 1000 else (n // 100, "hundred", n % 100)
    text = f"{_in_words(whole, conjunction, hyphen, comma)} {name}"
    if not rest:
        return text
    return text + (conjunction if rest < 100 else comma + " ") + _in_words(rest, conjunction, hyphen, comma)


def number_pairs(count: int, seed: int) -> list[Pair]:
    """`count` random numbers of up to 6 digits, each in a random wording: ("a hundred and seven", "107")."""
    rng = np.random.default_rng(seed)
    drawn = [(int(rng.integers(10**digits)), rng.random()) for digits in rng.integers(1, 7, count)]
    return [(_one_of(ways_to_write_number(number), draw), str(number)) for number, draw in drawn]


def _one_of(ways: Sequence[str], draw: float) -> str:
    return ways[int(draw * len(ways))]
