"""A run's folder: file names, lock, and files of earlier runs; and what all training programs print."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigrad.serialization import remove_unfinished, replace

from . import pretrained
from .errors import ConfigError, GPTError, reason

LAST, BEST = "last.safetensors", "best.safetensors"  # checkpoints: to resume from; with the lowest validation loss
METRICS, LOSS_CURVE = "metrics.csv", "loss.png"
ADAPTERS = "adapters.safetensors"  # of examples/finetune.py with --lora-rank
TRANSLATOR, CROSS_ATTENTION = "model.safetensors", "cross_attention.png"  # of examples/translate.py
OPS_TABLE, OPS_CURVE, ENGINE = "ops.csv", "ops.png", "engine"  # of --ops; ENGINE is the folder of the engine's run
MOVING = ".previous"  # the folder of an earlier run's files while they are moved; then it gets its number
RUN_FILES = (LAST, BEST, METRICS, LOSS_CURVE, OPS_TABLE, OPS_CURVE, ADAPTERS, TRANSLATOR, CROSS_ATTENTION)


class DivergedError(GPTError):
    """The loss is no longer a finite number."""


def refuse_divergence(loss: float, step: int, advice: str) -> None:
    """Raise `DivergedError` if the loss is not finite, before useless weights are saved."""
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} after step {step}; {advice}")


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make a run's folder and lock it until the end of this context, so that no other run uses it.

    Unfinished files of a killed run are removed, and files that it was moving are put back. Raises `ConfigError` if the
    folder cannot be made, if another run is using it, or if it holds a model in Hugging Face's layout, because
    `gpt.loading.load_model` would load that model instead of the run's.
    """
    if (out / pretrained.CONFIG).is_file():
        raise ConfigError(
            f"{out} holds a model in Hugging Face's layout ({pretrained.CONFIG}), which would be loaded instead of the "
            f"run's; name another folder with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made ({reason(error)})") from error
    with open(out / ".lock", "a") as file:
        if _lock(file, out):
            put_back(out)
            for folder, name in itertools.product((out, out / ENGINE), RUN_FILES):
                remove_unfinished(folder / name)
        yield


def _lock(file: Any, out: Path) -> bool:
    """Lock a file until it is closed. False if locks are not available: on Windows and on some file systems.

    The lock belongs to the process, not to the open file. It is released when the process dies, even if forked copies
    of the process, such as those of `DataParallel`, live on.
    """
    try:
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ConfigError(
            f"another run is using {out}; wait until it has finished, or name another folder with --out"
        ) from error
    except (ImportError, OSError):
        return False
    return True


def keep_previous_run(out: Path) -> Path | None:
    """Move the files of an earlier run in `out`, if there is one, to the subfolder previous-N, and say so.

    An earlier run is a folder with any of `RUN_FILES`. Returns the subfolder, or None if there was no earlier run. All
    files are moved or none: if one cannot be moved, the others are put back, and `ConfigError` says why.
    """
    found = [name for name in RUN_FILES if (out / name).exists()]
    if not found:
        return None
    number = next(n for n in itertools.count(1) if not (out / f"previous-{n}").exists())
    aside, moving = out / f"previous-{number}", out / MOVING
    try:
        moving.mkdir()
        for name in [*([ENGINE] if (out / ENGINE).is_dir() else []), *reversed(found)]:  # the last checkpoint last
            (out / name).rename(moving / name)
        replace(moving, aside)
    except OSError as error:
        put_back(out)
        raise ConfigError(
            f"{out}: the files of the earlier run cannot be moved to {aside} ({reason(error)})"
        ) from error
    print(f"moved       the files of an earlier run in {out} to {aside}")
    return aside


def put_back(out: Path) -> None:
    """Undo what `keep_previous_run` did before it failed or was killed."""
    if (out / MOVING).is_dir():
        for path in (out / MOVING).iterdir():
            path.rename(out / path.name)
        (out / MOVING).rmdir()


def check_unchanged(run: Mapping[str, Any], given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise `ConfigError` if one of these options is given with --resume and is not the run's."""
    for name in names:
        if given.get(name, run[name]) != run[name]:
            raise ConfigError(f"--resume: {name} is {given[name]}; expected {run[name]}, as in the run")


def print_interrupted(step: int) -> None:
    """Print which step of an interrupted run is saved, and the command that resumes it from there."""
    print(f"interrupted; step {step} is saved. To resume:\n  {resume_command()}")


def resume_command() -> str:
    """The command line of this program, with --resume."""
    return shlex.join(["python", *sys.argv, *([] if "--resume" in sys.argv else ["--resume"])])


def print_above(bar: tqdm, text: str) -> None:
    """Print to standard output without disturbing the progress bar."""
    with bar.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def progress_bar(**options: Any) -> tqdm:
    """A progress bar of steps on standard error: updated rarely if that is not a terminal, hidden if it is closed."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        unit="it",
        mininterval=0.2 if terminal else 20,
        dynamic_ncols=terminal,
        disable=sys.stderr is None,
        **options,
    )
