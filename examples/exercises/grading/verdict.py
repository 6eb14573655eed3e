"""What grading says of an exercise, and how a check says it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class WrongGradient(NamedTuple):
    """A gradient to draw: where it was computed, and both arrays."""

    title: str
    given: Any
    right: Any


class Grade(NamedTuple):
    """The state of an exercise, RIGHT, WRONG or NOT_WRITTEN, a message about it, and its wrong gradient if known."""

    state: str
    message: str = ""
    wrong: WrongGradient | None = None


class Mistake(Exception):
    """Something is wrong; the message says what."""

    def __init__(self, message: str, wrong: WrongGradient | None = None) -> None:
        super().__init__(message)
        self.wrong = wrong


class NotWritten(Exception):
    """The code to write raises NotImplementedError."""


@contextlib.contextmanager
def mistakes_in(file: str) -> Iterator[None]:
    """A context in which an error of the student's code, which is in `file`, becomes a `Mistake` with its line."""
    try:
        yield
    except NotImplementedError as error:
        raise NotWritten from error
    except Mistake:
        raise
    except (Exception, SystemExit) as error:
        raise Mistake(f"{line_of(error, file)}: {type(error).__name__}: {error}") from error


def line_of(error: BaseException, file: str) -> str:
    """The number and the text of the last line in `file` that led to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if Path(frame.filename).name == file), frames[-1])
    return f"line {place.lineno}, {place.line}"
