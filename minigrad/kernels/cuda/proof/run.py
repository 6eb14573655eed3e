"""Checking all kernels, in a process that may crash or hang.

The process says on its standard output, a line of JSON each, which kernel it is about to check and what came of it. If
it ends too soon, or says nothing for `SILENCE` seconds, the kernel that it was checking has failed, and another process
goes on with the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ....backend import on
from .cases import units
from .check import Failure, largest_error

COMMAND = [sys.executable, "-P", "-m", "minigrad.kernels.cuda.proof"]  # what checks, in a process of its own
SILENCE = 90.0  # seconds
FROM_OUTSIDE = {"SIGHUP", "SIGINT", "SIGKILL", "SIGTERM"}  # signals that no kernel causes


class Unknown(Exception):
    """Nothing can be said of the kernels: the check could not run."""


class Result(NamedTuple):
    """How a kernel failed, or "" if it passed; the largest error, and the seconds that the check took."""

    failure: str
    error: float | None = None
    seconds: float = 0.0


def check_all(device: int, skip: Collection[str], say: Callable[[dict[str, Any]], Any]) -> None:
    """Check all kernels on a GPU, in this process, but for those in `skip`, and say what comes of each."""
    try:
        with on(f"cuda:{device}"):
            works()
            for subject, dtype in units():
                unit = f"{subject.name} {dtype}"
                if unit in skip:
                    continue
                say({"started": unit})
                start, error, failure = time.perf_counter(), None, ""
                try:
                    error = largest_error(subject, dtype, subject.texts)
                except Exception as problem:
                    if is_unrelated(problem):
                        raise
                    failure = str(problem) if isinstance(problem, Failure) else f"{type(problem).__name__}: {problem}"
                seconds = time.perf_counter() - start
                say({"unit": unit, "failure": failure, "error": error, "seconds": seconds})
                if failure:
                    with contextlib.suppress(Exception):
                        works()
                        continue
                    return  # an error that stays: another process goes on
    except Exception as problem:
        say({"unknown": f"{type(problem).__name__}: {problem}"})
    else:
        say({"finished": True})


def works() -> None:
    """Use the GPU. Raises what CuPy raises where that is not possible, or not any more."""
    cupy = importlib.import_module("cupy")
    (cupy.arange(2, dtype="float32") + 1).get()


def is_unrelated(problem: Exception) -> bool:
    """Does this error say nothing about a kernel? There is no memory, or a file cannot be written."""
    words = str(problem).lower()  # CUDA's own errors, and cuBLASLt's for no memory
    in_words = any(some in words for some in ("out of memory", "memoryallocation", "with status 3 "))
    return in_words or isinstance(problem, (MemoryError, OSError))


def prove(device: int, said: Callable[[str, Result], Any] = lambda unit, result: None) -> dict[str, Result]:
    """Check all kernels on a GPU in other processes: the results by "LayerNorm float32", …. Raises `Unknown`."""
    results: dict[str, Result] = {}
    while True:
        running, news, ended = None, 0, ""
        for message in messages(device, results):
            if "started" in message:
                running = message["started"]
            elif "unit" in message:
                unit, running, news = message.pop("unit"), None, news + 1
                results[unit] = Result(**message)
                said(unit, results[unit])
            elif "unknown" in message:
                raise Unknown(message["unknown"])
            elif "finished" in message:
                return results
            else:
                ended = message["ended"]
        if running is not None:
            results[running] = Result(ended)
            said(running, results[running])
        elif not news:
            raise Unknown(f"the check {ended}")


def messages(device: int, done: Collection[str]) -> Iterator[dict[str, Any]]:
    """What a process says that checks all kernels which are not done, and at last how it ended."""
    environment = {**os.environ, "MINIGRAD_KERNELS": "reference"}
    root = str(Path(__file__).parents[4])  # so that the process imports this minigrad
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    skip = [argument for unit in done for argument in ("--skip", unit)]
    with tempfile.TemporaryFile() as errors:
        try:
            command = [*COMMAND, "--json", "--device", str(device), *skip]
            pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
            process = subprocess.Popen(command, env=environment, **pipes)
        except (OSError, ValueError, TypeError) as error:  # no executable, as in a program that embeds Python
            yield {"unknown": f"no process could be started to check them: {error}"}
            return
        try:
            for line in lines_of(process.stdout):
                if line.startswith(b"{"):  # and is nothing that a library prints
                    yield json.loads(line)
            status = process.wait(SILENCE)
        except (queue.Empty, subprocess.TimeoutExpired):
            yield {"ended": f"did not end within {SILENCE:g} seconds"}
            return
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)  # a driver may need longer to stop what hangs
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        if how in FROM_OUTSIDE:
            yield {"unknown": f"the process that checks them was ended by {how}"}
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        yield {"ended": f"ended its process ({how}{': ' + last if last else ''})"}


def lines_of(stream: Any) -> Iterator[bytes]:
    """The lines of a stream. Raises `queue.Empty` if nothing comes for `SILENCE` seconds."""
    lines: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put(b"")

    threading.Thread(target=read, daemon=True).start()
    while line := lines.get(timeout=SILENCE):
        yield line
