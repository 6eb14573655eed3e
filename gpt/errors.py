"""Errors that a user can fix, each with one clear line."""

import contextlib
import io
import signal
import sys
import urllib.error
from collections.abc import Callable, Iterator

from minigrad import DeviceError
from minigrad.distributed import WorkerError
from minigrad.memory import describe_out_of_memory


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


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main`. An error that a user can fix prints one line, without a traceback, with exit status 1.

    A character that standard output cannot show becomes a question mark. Ctrl-C ends with status 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except (GPTError, DeviceError, WorkerError, OSError) as error:
        sys.exit(f"error: {error}")
    except MemoryError as error:
        sys.exit(f"error: {describe_out_of_memory(error)}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
