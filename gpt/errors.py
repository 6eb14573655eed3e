"""What can go wrong for a user, each with one clear line."""

import sys
from collections.abc import Callable

from minigrad import DeviceError


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


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main`; what a user can mend ends it with one line and exit status 1, not with a traceback."""
    try:
        main()
    except (GPTError, DeviceError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
