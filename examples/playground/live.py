"""Following a run while it trains, in a process of its own: it reads the files that the run writes anyway.

The training has no hook for it and never waits for it. This process runs at the lowest priority, so it takes the time
that the training leaves.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minigrad as mg
from gpt import checkpoint
from gpt.errors import GPTError
from gpt.metrics import COLUMNS
from gpt.run import LAST, METRICS
from gpt.text.tokenizer import first_ids

from .address import address_of, check_extra, listen
from .analysis import Model

INTERVAL = 0.3  # seconds between looks at the run's files
PROMPT_TOKENS = 32  # at most, so that the maps of all heads stay small
SAMPLE = {"temperature": 0.8, "seed": 1337}
SAMPLE_TOKENS = 120  # beyond the context, each token costs much more
PROGRAM = Path(__file__).parents[1] / "playground.py"


class Follower:
    """What a run has written so far. A thread of its own adds what is new, until the process ends.

    rows: those of metrics.csv.
    estimates: for each checkpoint that came with an estimate of the losses, the attention over a fixed prompt, and a
        sample. One that is replaced within `INTERVAL` is missed.
    version: a number that changes when the run has gone back, or another one has begun in the folder.
    """

    def __init__(self, folder: Path, parent: int | None = None) -> None:
        self.folder, self.parent = folder, parent
        self.rows: list[dict[str, float]] = []
        self.estimates: list[dict[str, Any]] = []
        self.model: Model | None = None
        self.version = 0
        self._metrics, self._offset = 0, 0  # the file that is read, by its number, and where in it
        self._seen: Any = None  # the checkpoint that was read last

    def start(self) -> None:
        """Begin to follow."""
        give_way(0)
        mg.set_num_threads(1)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while self.parent in (None, os.getppid()):
            self.look()
            time.sleep(INTERVAL)
        os._exit(0)  # the program that trains is gone

    def look(self) -> None:
        """Read what is new."""
        with contextlib.suppress(FileNotFoundError):
            self._read_rows()
            self._read_checkpoint()

    def _read_rows(self) -> None:
        with open(self.folder / METRICS, "rb") as file:
            about = os.fstat(file.fileno())
            replaced = about.st_ino != self._metrics or about.st_size < self._offset
            file.seek(0 if replaced else self._offset)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]  # whole lines
        rows = [
            {name: float(x) for name, x in zip(COLUMNS, values, strict=True) if x and math.isfinite(float(x))}
            for values in csv.reader(content.decode().splitlines())
            if values != COLUMNS
        ]
        if replaced:  # a new run, or this one was resumed or went back
            last = rows[-1]["iteration"] if rows else -1
            self.rows, self._offset, self._metrics = rows, len(content), about.st_ino
            self.estimates = [estimate for estimate in self.estimates if estimate["step"] <= last]
            self.version += 1
        else:
            self.rows += rows
            self._offset += len(content)

    def _read_checkpoint(self) -> None:
        path = self.folder / LAST
        about = os.stat(path)
        identity = about.st_mtime_ns, about.st_ino, about.st_size
        if identity == self._seen:
            return
        self._seen = identity
        try:
            saved = checkpoint.load(path)
            step = saved.run["iteration"]
            model = Model(f"{self.folder}, step {step:,}", saved.model(), saved.tokenizer)
            new = estimate(model, step)
        except GPTError:  # a checkpoint of adapters, or weights that have diverged; the run itself says so
            return
        self.model = model
        if not self.estimates or self.estimates[-1]["step"] < step:
            self.estimates.append(new)


def give_way(pid: int) -> None:
    """Let a process, 0 for this one, run only when no other wants its core, as far as the system offers that."""
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    elif hasattr(os, "setpriority"):  # not on Windows
        os.setpriority(os.PRIO_PROCESS, pid, 19)


def estimate(model: Model, step: int) -> dict[str, Any]:
    """The attention of every head over the fixed prompt (n_layer, n_head, T, T), and a sample."""
    ids = model.tokenizer.encode(model.prompt())[: min(PROMPT_TOKENS, model.model.config.block_size)]
    weights = model.model.attention_weights(ids[None])
    tokens = model.continuation(first_ids(model.tokenizer), SAMPLE_TOKENS, SAMPLE)
    sample = list(iter(lambda: model.next_token(tokens), None))
    return {
        "step": step,
        "layers": model.model.config.n_layer,
        "heads": model.model.config.n_head,
        "attention": mg.functional.stack([layer[0] for layer in weights]).numpy(),
        "labels": [model.label(int(token)) for token in ids],
        "sample": model.tokenizer.decode(sample),
    }


def check(port: int | None) -> None:
    """Raise `ConfigError` if the page cannot be served at this port. None is for no page."""
    if port is not None:
        check_extra()
        listen(port).close()


@contextlib.contextmanager
def shown(out: Path, port: int | None) -> Iterator[None]:
    """Inside this context, a process of its own shows the run in `out` on a local page, unless the port is None."""
    if port is None:
        yield
        return
    command = [sys.executable, str(PROGRAM), "--live", "--checkpoint", str(out), "--port", str(port), "--no-browser"]
    page = subprocess.Popen([*command, "--parent", str(os.getpid())], start_new_session=True)  # not stopped by Ctrl-C
    give_way(page.pid)  # while it imports, too
    print(f"live        {address_of(port)}", flush=True)
    try:
        yield
    finally:
        page.terminate()
        page.wait()
