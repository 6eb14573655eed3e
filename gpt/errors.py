"""Errors that a user can fix, each with one clear line."""

import contextlib
import io
import os
import re
import signal
import sys
import urllib.error
from collections.abc import Callable, Iterator
from typing import NoReturn

from minigrad import DeviceError, get_num_threads
from minigrad.distributed import DistributedError, WorkerError, communicator, is_first
from minigrad.memory import describe_out_of_memory

CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
LONGEST_LINE, LONGEST_MESSAGE = 1000, 10_000  # characters of an error


class GPTError(ValueError):
    """Base class of the errors below: something that the user gave cannot work."""


class ConfigError(GPTError):
    """Options that contradict each other, or a bad value."""


class DataError(GPTError):
    """A text that is missing, unreadable or too short, or a download that failed."""


class TokenError(GPTError):
    """A character or a token id outside the vocabulary."""


class CheckpointError(GPTError):
    """A checkpoint that is missing, damaged, or of another model."""


class PretrainedError(GPTError):
    """A folder with GPT-2's weights that is incomplete, damaged, or of another model, or a model that is not GPT-2."""


class RankError(GPTError):
    """A rank differs from the others: in its options, its code, its data, or its weights."""


class OutOfMemoryError(GPTError, MemoryError):
    """There is not enough memory."""


def reason(error: Exception) -> str:
    """What went wrong, in the system's words and without its numbers."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a MemoryError inside this context into an `OutOfMemoryError` with the figures and the advice."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{describe_out_of_memory(error)}; {advice}") from error


def printable(text: str) -> str:
    """The text with control characters as escapes, except for tabs and line breaks: "\\x1b" for the one that begins a
    terminal's commands. So are the characters that reverse the direction of the text."""
    return re.sub(CONTROL, lambda found: found[0].encode("unicode_escape").decode(), text)


def _shortened(text: str, length: int) -> str:
    """A text of at most about `length` characters, with a note in place of its middle."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} … {len(text) - 2 * half:,} more … {text[-half:]}"


def message_of(error: BaseException) -> str:
    """What a program prints about an error. It may contain names from files, which are escaped and cut."""
    lines = [_shortened(line, LONGEST_LINE) for line in printable(str(error)).split("\n")]
    return _shortened("\n".join(lines), LONGEST_MESSAGE)


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main`. An error that a user can fix prints one line, without a traceback, with exit status 1.

    A character that standard output cannot show becomes a question mark. Ctrl-C ends with status 130.

    Of several ranks, rank 0 alone writes to standard output. An error on any rank ends all, and is printed once.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        get_num_threads()
    except ValueError as error:  # about MINIGRAD_NUM_THREADS
        sys.exit(f"error: {message_of(error)}")
    try:
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        main()
    except RankError as error:  # all ranks have it
        if is_first():
            print(f"error: {message_of(error)}", file=sys.stderr, flush=True)
        communicator().barrier()
        sys.exit(1)
    except DistributedError as error:
        sys.exit(f"error: {message_of(error)}")
    except (GPTError, DeviceError, WorkerError, OSError) as error:
        _end_all_ranks(message_of(error))
    except MemoryError as error:
        _end_all_ranks(describe_out_of_memory(error))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _end_all_ranks(message: str) -> NoReturn:
    """Print an error once and end all ranks, or this one alone if it cannot reach the others."""
    try:
        communicator().abort(message)
    except DistributedError:
        sys.exit(f"error: {message}")
