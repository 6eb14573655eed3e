"""A run's folder: file names, lock, and files of earlier runs; signals that stop a run; and what programs print."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from minigrad.distributed import is_first
from minigrad.serialization import remove_unfinished, replace

from . import pretrained, ranks
from .errors import ConfigError, reason

LAST, BEST = "last.safetensors", "best.safetensors"  # checkpoints: to resume from; with the lowest validation loss
METRICS, LOSS_CURVE = "metrics.csv", "loss.png"
ADAPTERS = "adapters.safetensors"  # of examples/finetune.py with --lora-rank
TRANSLATOR, CROSS_ATTENTION = "model.safetensors", "cross_attention.png"  # of examples/translate.py
OPS_TABLE, OPS_CURVE, ENGINE = "ops.csv", "ops.png", "engine"  # of --ops; ENGINE is the folder of the engine's run
MOVING = ".previous"  # the folder of an earlier run's files while they are moved; then it gets its number
RUN_FILES = (LAST, BEST, METRICS, LOSS_CURVE, OPS_TABLE, OPS_CURVE, ADAPTERS, TRANSLATOR, CROSS_ATTENTION)
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Ctrl-C, and what a scheduler sends before it kills


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make a run's folder and lock it until the end of this context, so that no other run uses it. Rank 0 does.

    Unfinished files of a killed run are removed, and files that it was moving are put back. Raises `ConfigError` if the
    folder cannot be made, if another run is using it, or if it holds a model in Hugging Face's layout, because
    `gpt.loading.load_model` would load that model instead of the run's.
    """
    if not is_first():
        yield
        return
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

    An earlier run is a folder with any of `RUN_FILES` or of the older checkpoints. Returns the subfolder, or None if
    there was no earlier run. All files are moved or none: if one cannot be moved, the others are put back, and
    `ConfigError` says why.
    """
    if not is_first():
        return None
    names = [*RUN_FILES, *(path.name for path in older_checkpoints(out).values())]
    found = [name for name in names if (out / name).exists()]
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


def older_checkpoints(out: Path) -> dict[int, Path]:
    """The checkpoints before the last one that --keep has left, by their steps, the newest first."""
    found = ((re.fullmatch(r"last-(\d+)\.safetensors", path.name), path) for path in out.glob("last-*.safetensors"))
    return dict(sorted(((int(match[1]), path) for match, path in found if match), reverse=True))


def delete_older(out: Path, step: int, keep: int) -> None:
    """Delete the older checkpoints, except the newest `keep` of those before this step."""
    older = older_checkpoints(out)
    kept = [number for number in older if number < step][:keep]
    for number in older.keys() - kept:
        older[number].unlink()


def keep_last(out: Path, step: int) -> None:
    """Give the last checkpoint, which is of this step, the name of an older one, before it is replaced.

    It has both names until then. Where the file system has no hard links, it is only renamed, and until the next one
    is complete, `gpt.checkpoint.load_last` finds it under its new name.
    """
    last, older = out / LAST, out / f"last-{step}.safetensors"
    older.unlink(missing_ok=True)
    try:
        os.link(last, older)
    except OSError:
        os.replace(last, older)


def check_unchanged(run: Mapping[str, Any], given: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise `ConfigError` if one of these options is given with --resume and is not the run's."""
    for name in names:
        if given.get(name, run[name]) != run[name]:
            raise ConfigError(f"--resume: {name} is {given[name]}; expected {run[name]}, as in the run")


@contextlib.contextmanager
def catch_signals(note: Callable[[int], None]) -> Iterator[None]:
    """Inside this context, a signal that asks the program to stop only calls `note` with its number.

    So the program can finish its step and save. The signals are `STOP_SIGNALS`. SIGHUP stays ignored under nohup. A
    second Ctrl-C does what it did before this context: it stops at once. The others may arrive any number of times,
    because some schedulers send them to a process and again to its group. Only the main thread receives signals: in
    any other, nothing changes.
    """
    before: dict[int, Any] = {}

    def receive(number: int, _: Any) -> None:
        note(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number in (getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)):
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_interrupted(step: int, number: int) -> NoReturn:
    """Print which step is saved and how to resume from it. End the program with status 128 + the signal's number."""
    print(f"interrupted; step {step} is saved. To resume:\n  {resume_command()}", flush=True)
    sys.exit(128 + number)


def resume_command() -> str:
    """The command line of this program, with --resume, and with the launcher if there was one."""
    return shlex.join([*ranks.command(), *sys.argv, *([] if "--resume" in sys.argv else ["--resume"])])


@contextlib.contextmanager
def lasting_screen() -> Iterator[None]:
    """Inside this context, a standard output or error that cannot be written is given up, and the program goes on.

    A full disk, a closed pipe and a terminal that is gone are said once, on the other of the two.
    """
    out, err = _Screen("standard output"), _Screen("standard error")
    out.stream, err.stream, out.other, err.other = sys.stdout, sys.stderr, err, out
    with contextlib.redirect_stdout(sys.stdout and out), contextlib.redirect_stderr(sys.stderr and err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


class _Screen:
    """A text stream that is replaced by the null device after its first error."""

    stream: Any
    other: _Screen

    def __init__(self, name: str) -> None:
        self.name, self.broken = name, False

    def write(self, text: str) -> int:
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self.attempt(lambda: self.stream.flush())

    def attempt(self, action: Callable[[], Any]) -> None:
        if self.broken or self.stream is None:
            return
        try:
            action()
        except OSError as error:
            self.broken = True
            with contextlib.suppress(OSError):  # what is buffered would be tried again when Python ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)
            self.other.write(
                f"\nwarning     {self.name} cannot be written ({reason(error)}); the run goes on without it\n"
            )
            self.other.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def print_above(bar: tqdm, text: str) -> None:
    """Print to standard output without disturbing the progress bar."""
    with bar.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def progress_bar(**options: Any) -> tqdm:
    """A progress bar of steps on standard error, of rank 0. It is updated rarely if that is not a terminal."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        unit="it",
        mininterval=0.2 if terminal else 20,
        dynamic_ncols=terminal,
        disable=sys.stderr is None or not is_first(),
        **options,
    )
