"""The metrics of a run: metrics.csv is the record, and a checkpoint keeps only its length and its SHA-256."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigrad.serialization import naming, write_atomically

from .errors import DataError

COLUMNS = ["iteration", "loss", "learning_rate", "grad_norm", "tokens_per_second", "train_loss", "val_loss"]


class Metrics:
    """Rows, in memory and in the file at `path`. A row has the iteration, and values of some of the other columns.

    Without a path they are only in memory, as on the ranks that write no files.
    """

    def __init__(self, path: Path | None, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.path, self.rows = path, list(rows)
        self.length, self.hash = 0, hashlib.sha256()  # of the file; the length is 0 until the file has all rows
        self.error = ""  # why the file could not be written, the last time

    def start(self) -> None:
        """Write the file with the rows so far. After resuming, this removes rows later than the checkpoint."""
        if self.path is None:
            return
        content = f"{','.join(COLUMNS)}\r\n".encode() + _lines(self.rows)
        with self.going_on():
            write_atomically(self.path, content)
            self.length, self.hash, self.error = len(content), hashlib.sha256(content), ""

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Inside this context, a file that cannot be written is only reported, once. The next row tries again."""
        try:
            yield
        except OSError as error:
            if not self.error:
                tqdm.write(f"warning     {error}; the run goes on without it")
            self.length, self.error = 0, str(error)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and append it to the file at once."""
        self.rows.append(row)
        if self.path is None or not self.length:
            self.start()
            return
        line = _lines([row])
        with self.going_on():
            with naming(self.path), open(self.path, "ab") as file:
                file.write(line)
            self.length += len(line)
            self.hash.update(line)

    def to_keep(self) -> dict[str, Any]:
        """What a checkpoint keeps: the length and the SHA-256 of the file, which is on the disk now; see `read`.

        If the file cannot be written, the checkpoint keeps the rows themselves.
        """
        if not self.length:
            self.start()
        elif self.path is not None:
            with self.going_on(), naming(self.path), open(self.path, "r+b") as file:
                os.fsync(file.fileno())
        if not self.length:
            return {"rows": self.rows}
        return {"metrics": {"bytes": self.length, "sha256": self.hash.hexdigest()}}


def read(path: Path, mark: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that the file had at the time of a mark.

    Raises FileNotFoundError if there is no file, and `DataError` if it does not begin as it was then.
    """
    with naming(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(mark["bytes"], size))
    if len(content) < mark["bytes"] or hashlib.sha256(content).hexdigest() != mark["sha256"]:
        raise DataError(
            f"{path}: its first {mark['bytes']:,} bytes are not those that the checkpoint was saved with; restore the "
            "file, or move it away to resume without its rows"
        )
    try:
        rows = [
            {name: int(value) if name == "iteration" else float(value) for name, value in row.items() if value}
            for row in csv.DictReader(io.StringIO(content.decode(), newline=""))
        ]
        check_rows(rows)
    except (TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not the metrics of a run ({error})") from error
    return rows


def check_rows(rows: Any) -> None:
    """Raise ValueError unless these are rows of metrics."""
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of rows, got {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, dict) or not row.keys() <= set(COLUMNS) or type(row.get("iteration")) is not int:
            raise ValueError(f"expected an iteration, and values of {', '.join(COLUMNS[1:])}; got {row!r:.100}")
        if any(type(value) not in (int, float) for value in row.values()):
            raise ValueError(f"expected numbers, got {row!r:.100}")


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS).writerows(rows)
    return text.getvalue().encode()
