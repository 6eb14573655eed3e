"""The folder of a run: the names of its files, its lock, what an earlier run left, and what programs say of a run."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigrad.serialization import remove_unfinished

from . import pretrained
from .errors import ConfigError, GPTError, reason

LAST, BEST = "last.safetensors", "best.safetensors"  # checkpoints: to resume from, and with the lowest validation loss
METRICS, LOSS_CURVE = "metrics.csv", "loss.png"
ADAPTERS = "adapters.safetensors"  # of examples/finetune.py with --lora-rank
TRANSLATOR, CROSS_ATTENTION = "model.safetensors", "cross_attention.png"  # of examples/translate.py
OPS_TABLE, OPS_CURVE, ENGINE = "ops.csv", "ops.png", "engine"  # of --ops; ENGINE is the folder of the engine's own run
RUN_FILES = (LAST, BEST, METRICS, LOSS_CURVE, OPS_TABLE, OPS_CURVE, ADAPTERS, TRANSLATOR, CROSS_ATTENTION)


class DivergedError(GPTError):
    """The loss is no longer a finite number."""


def refuse_divergence(loss: float, step: int, advice: str) -> None:
    """Raise `DivergedError` for a loss that is not finite, before useless weights are saved."""
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} after step {step}; {advice}")


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it until the end of this context.

    Unfinished files that a killed run left there are removed. Raises `ConfigError` if the folder cannot be made, if
    another run is using it, and if it holds a model in Hugging Face's layout, which `gpt.loading.load_model` would take
    for the run's.
    """
    if (out / pretrained.CONFIG).is_file():
        raise ConfigError(
            f"{out / pretrained.CONFIG} exists, so loading a model from {out} would load the one that this file "
            f"belongs to, not the run's; name another folder with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made ({reason(error)})") from error
    with open(out / ".lock", "a") as file:
        if _lock(file, out):
            for folder, name in itertools.product((out, out / ENGINE), RUN_FILES):
                remove_unfinished(folder / name)
        yield


def _lock(file: Any, out: Path) -> bool:
    """Lock a file until it is closed. False where there are no such locks: on Windows and in some file systems.

    The lock belongs to the process, not to the open file. It is free again when the process dies, even if copies of the
    process, such as those that `DataParallel` makes, live on.
    """
    try:
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ConfigError(f"another run is using {out}; wait for its end, or name another folder with --out") from error
    except (ImportError, OSError):
        return False
    return True


def keep_previous_run(out: Path) -> Path | None:
    """Move the files of an earlier run in `out` into a folder of their own, and say so.

    A folder with any of `RUN_FILES` holds an earlier run. Returns the folder of its files, or None if there was none.
    """
    found = [name for name in RUN_FILES if (out / name).exists()]
    if not found:
        return None
    number = next(n for n in itertools.count(1) if not (out / f"previous-{n}").exists())
    aside = out / f"previous-{number}"
    aside.mkdir()
    for name in [*found, *([ENGINE] if (out / ENGINE).is_dir() else [])]:
        (out / name).rename(aside / name)
    print(f"an earlier run was in {out}; its files are now in {aside}")
    return aside


def resume_command() -> str:
    """The command line of this program, with --resume."""
    return shlex.join(["python", *sys.argv, *([] if "--resume" in sys.argv else ["--resume"])])


def progress_bar(**options: Any) -> tqdm:
    """A bar of steps on standard error: drawn seldom if that is no terminal, and not at all if it is closed."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        unit="it",
        mininterval=0.2 if terminal else 20,
        dynamic_ncols=terminal,
        disable=sys.stderr is None,
        **options,
    )
