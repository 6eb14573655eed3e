"""Figures with their spread, tables in Markdown, goals, and the file of --json."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """A median with its smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long they took, round by round: above 1 means that we are faster."""
    return Spread.of(t / o for t, o in zip(theirs, ours, strict=True))


def median(values: Sequence[float] | None) -> float | None:
    return None if values is None else statistics.median(values)


def short(value: float | None) -> str:
    """A figure to three digits: 1234, 45.6, 0.0123; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times_and_ratios(by_name: dict[str, Sequence[float]], others: Sequence[str], ours: str = "minigrad") -> list[str]:
    """The cells of a line: the median of each of the others, then how many times as long each of them took."""
    times = [short(median(by_name.get(other))) for other in others]
    return times + [str(ratio(by_name[other], by_name[ours])) if other in by_name else "–" for other in others]


def reached(values: dict[str, float], goals: dict[str, tuple[float, float]], sign: int = 1) -> list[str]:
    """The cells "must reach", "goal" and "reached", by opponent. With sign -1 less is better."""
    cells: list[list[str]] = [[], [], []]
    for who, (must_reach, goal) in goals.items():
        verdict = "–"
        if who in values:
            above = [sign * values[who] >= sign * limit for limit in (must_reach, goal)]
            verdict = "goal" if above[1] else "yes" if above[0] else "no"
        for column, cell in zip(cells, (f"{must_reach} ({who})", f"{goal} ({who})", verdict), strict=True):
            column.append(cell)
    return ["; ".join(column) or "–" for column in cells]


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table whose columns are aligned, the first to the left and the others to the right."""
    texts = [[str(cell) for cell in line] for line in [header, *lines]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    texts.insert(1, rule)
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def write_json(path: Path | None, figures: Any) -> None:
    """Write all figures to a file, if one was asked for: the whole file or nothing."""
    if path is not None:
        from minigrad.serialization import write_atomically

        write_atomically(path, json.dumps(figures, indent=1).encode())
