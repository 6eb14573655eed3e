"""Kill training runs and stop them by signals, at random times, and compare what they become with runs left alone.

    python tests/reliability/kill.py --kills 200 --signals 100

A run that is killed or stopped is resumed until it has ended. Its last checkpoint, which holds the weights, the
optimizer's state, the random numbers and the metrics, must then equal the one of an uninterrupted run bit for bit. The
times are drawn from `--seed`; what they hit also depends on the machine. Ends with an error at the first difference.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpt import checkpoint
from gpt.run import LAST, STOP_SIGNALS
from minigrad.serialization import load_with_metadata

PROGRAM = Path(__file__).parents[2] / "examples" / "train_shakespeare.py"
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 60
OPTIONS = ["--device", "cpu", "--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--dropout", 0.1]
OPTIONS += ["--batch-size", 4, "--processes", 2, "--eval-interval", 60, "--eval-iters", 5]
SAVING = ["--save-interval", 7, "--keep", 3]  # changes no step


class Failed(AssertionError):
    """A run did not become what it should."""


@dataclasses.dataclass
class Tally:
    """How often runs were hit, and how many of them were then finished and compared."""

    hits: int = 0
    in_training: int = 0  # hits after the first step and before the last
    finished: int = 0

    def __str__(self) -> str:
        return f"{self.hits} ({self.in_training} in training), {self.finished} runs finished, all equal bit for bit"


class Runs:
    """Runs of one small model in a folder. The first is left alone; `expected` is its last checkpoint."""

    def __init__(self, folder: Path, seed: int, steps: int = 400) -> None:
        self.folder, self.rng, self.steps = folder, random.Random(seed), steps
        (folder / "text.txt").write_text(TEXT, encoding="utf-8")
        started = time.monotonic()
        end, output = self.start(folder / "whole", [], None, None)
        if end:
            raise Failed(f"the run that was left alone ended with status {end}:\n{output}")
        self.seconds = time.monotonic() - started  # of a whole run: it is hit before
        self.expected = last_checkpoint(folder / "whole")

    def start(self, out: Path, options: list[Any], after: float | None, number: int | None) -> tuple[int, str]:
        """Start or resume the run in a folder. After some seconds, send a signal. Returns the status and the output."""
        options = [*options, "--resume"] if (out / LAST).exists() else [*OPTIONS, *options, "--max-iters", self.steps]
        words = [sys.executable, PROGRAM, "--data", self.folder / "text.txt", "--out", out, *options]
        with subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                output, _ = process.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                output, _ = process.communicate(timeout=120)
            return process.returncode, output

    def check(self, count: int, numbers: list[int]) -> Tally:
        """Hit runs `count` times with one of these signals, and compare each run that ends in spite of it."""
        tally, run, out = Tally(), 0, self.folder / "hit-0"
        while tally.hits < count:
            number = self.rng.choice(numbers)
            before = step_of(out)
            status, output = self.start(out, SAVING, self.rng.uniform(0.1, self.seconds), number)
            if status == 0:
                self.compare(out)
                tally.finished += 1
                run += 1
                out = self.folder / f"hit-{run}"
                continue
            tally.hits += 1
            saved = re.search(r"^interrupted; step (\d+) is saved", output, re.MULTILINE)
            if number == signal.SIGKILL:
                tally.in_training += "it/s" in output
                if status != -number:
                    raise Failed(f"a killed run ended with status {status}:\n{output}")
            elif saved:
                tally.in_training += 1
                if status != 128 + number or step_of(out) != int(saved[1]) or step_of(out) < before:
                    raise Failed(f"signal {number}: status {status}, step {step_of(out)} is saved:\n{output}")
            elif status not in (-number, 128 + number):  # before the training or after it: a shell shows 128 + number
                raise Failed(f"signal {number}: status {status}:\n{output}")
        if step_of(out) or tally.finished == 0:
            status, output = self.start(out, SAVING, None, None)
            if status:
                raise Failed(f"the last run ended with status {status}:\n{output}")
            self.compare(out)
            tally.finished += 1
        return tally

    def compare(self, out: Path) -> None:
        """Raise `Failed` if the last checkpoint of a run is not that of the run that was left alone."""
        found = last_checkpoint(out)
        for name, value in self.expected.items():
            if found.get(name) != value:
                raise Failed(f"{out}: {name} differs from that of the run that was left alone")
        if found.keys() != self.expected.keys():
            raise Failed(f"{out}: expected {sorted(self.expected)}, got {sorted(found)}")
        left = [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]
        if left:
            raise Failed(f"{out}: unfinished files are left: {left}")


def last_checkpoint(out: Path) -> dict[str, Any]:
    """All that a run's last checkpoint holds, except speeds and the options of saving, which may differ."""
    tensors, metadata = load_with_metadata(out / LAST)
    run = json.loads(metadata["minigrad"])["run"]
    run["rows"] = checkpoint.load(out / LAST).rows()
    for row in run["rows"]:
        row.pop("tokens_per_second", None)
    run.pop("metrics")  # the hash of these rows, with their speeds
    for name in ("save_interval", "keep"):
        run["train_config"].pop(name)
    return {name: value.numpy().tobytes() for name, value in tensors.items()} | {f"run.{k}": v for k, v in run.items()}


def step_of(out: Path) -> int:
    """The step of a run's last checkpoint, 0 if there is none."""
    if not (out / LAST).exists():
        return 0
    return json.loads(load_with_metadata(out / LAST)[1]["minigrad"])["run"]["iteration"]


def stop_signals() -> list[int]:
    return [getattr(signal, name) for name in STOP_SIGNALS]


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and stop training runs at random times, and compare them.")
    parser.add_argument("--kills", type=int, default=200, help="how often SIGKILL is sent (default: 200)")
    parser.add_argument("--signals", type=int, default=100, help=f"how often {', '.join(STOP_SIGNALS)} (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the times and the signals (default: 0)")
    args = parser.parse_args()
    for what, count, numbers in (
        ("kills", args.kills, [signal.SIGKILL]),
        ("signals", args.signals, stop_signals()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{what:<12}{Runs(Path(folder), args.seed).check(count, numbers)}", flush=True)


if __name__ == "__main__":
    main()
