"""What can go wrong for a user, each with one clear line."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator

from minigrad import DeviceError
from minigrad.distributed import WorkerError
from minigrad.memory import describe_out_of_memory


class GPTError(ValueError):
    """Base of the errors below: something the user gave cannot work."""


class ConfigError(GPTError):
    """Options that contradict each other, or a value that has no meaning."""


class DataError(GPTError):
    """A text that is missing, unreadable or too short, or a download that failed."""


class TokenError(GPTError):
    """A character or a token id outside the vocabulary."""


class CheckpointError(GPTError):
    """A checkpoint that is missing, damaged, or of another model."""


class PretrainedError(GPTError):
    """A folder with GPT-2's weights that is incomplete, damaged, or of another model, or a model that is not GPT-2."""


class OutOfMemoryError(GPTError, MemoryError):
    """There is not enough memory for what was asked."""


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Running out of memory in here raises `OutOfMemoryError`: what was wanted, what there is, and what to do."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{describe_out_of_memory(error)}; {advice}") from error


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main`; what a user can mend ends it with one line and exit status 1, not with a traceback.

    A character that standard output cannot show becomes a question mark.
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
        sys.exit("\ninterrupted")
