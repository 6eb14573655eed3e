"""What the benchmarks share: contestants in processes that take turns, figures with their spread, and tables.

Each contestant (minigrad, PyTorch, PyTorch with a tuned allocator) has a process of its own, so that nobody is measured
with another's threads, allocator or memory. The processes take turns: one works while the others sleep on a pipe. A
round is one turn of each, and ratios are taken within a round, so that whatever disturbs the machine for longer than a
turn disturbs all contestants alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Makes glibc keep freed memory, and ask for huge pages, in PyTorch's process, as `keep_freed_memory` and NumPy do in
# minigrad's. Without it PyTorch asks the system for most of its memory afresh at every step.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
CONTESTANTS: dict[str, tuple[str, dict[str, str]]] = {  # name: the library, and its process's environment
    "minigrad": ("minigrad", {}),
    "minigrad, 1 process": ("minigrad", {}),
    "minigrad, checkpointed": ("minigrad", {}),
    "reference": ("minigrad", {"MINIGRAD_KERNELS": "reference"}),
    "PyTorch": ("torch", {}),
    "PyTorch tuned": ("torch", TUNED),
}
# Seconds of silence before another's turn: OpenBLAS's threads wait for work by spinning for 2**28 cycles (0.1 s).
PAUSE = float(os.environ.get("BENCHMARK_PAUSE", "0.15"))


class BenchmarkError(Exception):
    """Something that the person who started the benchmark can mend."""


# Processes that take turns


class Worker:
    """A contestant's process. `worker.call("name", …)` runs the method `name` of the contestant there."""

    last_called: Worker | None = None

    def __init__(self, script: str, name: str) -> None:
        self.name = name
        self.library, environment = CONTESTANTS[name]
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", self.library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def call(self, method: str, **arguments: Any) -> Any:
        """The method's result. Meanwhile this process sleeps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if Worker.last_called is not self:
            time.sleep(PAUSE)
        Worker.last_called = self
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        if not answer:
            raise BenchmarkError(f"{self.name}: its process ended with status {self.process.wait()} in {method}()")
        return json.loads(answer)

    def close(self) -> None:
        """End the process, and wait until its memory is free for the next."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(contestant: Any) -> None:
    """The other end of `Worker`: answer one call after another until the pipe is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is not an answer
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for request in iter(sys.stdin.readline, ""):
            method, arguments = json.loads(request)
            print(json.dumps(getattr(contestant, method)(**arguments)), file=answers, flush=True)


@contextlib.contextmanager
def workers(script: str, names: Iterable[str]) -> Iterator[dict[str, Worker]]:
    """A process for each of the named contestants, by name, until the end of the `with` block."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in names:
            started[name] = Worker(script, name)
            stack.callback(started[name].close)
        yield started


def take_turns(
    contestants: Sequence[str], rounds: int, turn: Callable[[str], Any], warm_up: bool = True
) -> dict[str, list[Any]]:
    """What `turn(name)` returned in each round, by name. Who begins changes from round to round.

    warm_up: begin with a round that does not count, in which buffers are made and caches filled.
    """
    results: dict[str, list[Any]] = {name: [] for name in contestants}
    for i in range(rounds + warm_up):
        first = i % len(contestants)
        for name in [*contestants[first:], *contestants[:first]]:
            results[name].append(turn(name))
    return {name: values[warm_up:] for name, values in results.items()}


# A worker's surroundings


def prepare(library: str, threads: int | None) -> str:
    """Import the library and set its number of threads, unless that is None. Its name, version and threads."""
    if library == "torch":
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return f"PyTorch {torch.__version__} on {torch.get_num_threads()} thread(s)"
    import numpy as np

    import minigrad as mg
    from minigrad.kernels.cpu import blas
    from minigrad.memory import keep_freed_memory

    keep_freed_memory()  # as the Trainer does
    if threads is not None:
        mg.set_num_threads(threads)
        if os.environ.get("MINIGRAD_KERNELS") == "reference":  # then NumPy's threads work, and not the engine's
            from threadpoolctl import threadpool_limits

            threadpool_limits(threads, user_api="blas")
    with_numpy = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[call-overload,index]
    products = blas.library() if blas.library() != "numpy" else f"{with_numpy['name']} {with_numpy['version']}"
    return f"minigrad {mg.__version__} on {mg.get_num_threads()} thread(s), NumPy {np.__version__}, {products}"


def memory(field: str = "VmHWM") -> float:
    """Resident memory of this process and its workers in MB: its peak so far, or with "VmRSS" the current figure.

    Linux keeps VmHWM for the program itself; getrusage's figure starts from that of the process that started it. Of
    several processes it counts what they have in common once: their sum, less what the current sum has twice.
    """
    processes = [Path("/proc/self"), *(Path(f"/proc/{child.pid}") for child in multiprocessing.active_children())]
    if processes[0].exists():
        total = sum(_kilobytes(process / "status", field) for process in processes)
        if len(processes) > 1:
            for process in processes:
                total -= _kilobytes(process / "status", "VmRSS") - _kilobytes(process / "smaps_rollup", "Pss")
        return total * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _kilobytes(file: Path, field: str) -> int:
    """The number behind `field:` in one of Linux's files of figures."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


# Figures


class Spread(NamedTuple):
    """A median with its smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long they took, round by round: above 1 means that we are faster."""
    return Spread.of(t / o for t, o in zip(theirs, ours, strict=True))


def short(value: float | None) -> str:
    """A figure to three digits: 1234, 45.6, 0.0123; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table whose columns are aligned, the first to the left and the others to the right."""
    texts = [[str(cell) for cell in line] for line in [header, *lines]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in texts
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


# A script's surroundings


def arguments(description: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; `quick` says what --quick does."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--against", choices=["torch", "none"], default="torch", help="whom to compare with")
    parser.add_argument("--rounds", type=positive, help="rounds that count (more: narrower spread)")
    parser.add_argument("--threads", type=counts, default=[None], metavar="N,…", help="default: each library's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, round by round")
    parser.add_argument("--worker", choices=["minigrad", "torch"], help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"wanted at least 1, got {value}")
    return value


def counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def choose(what: str, known: Iterable[str], given: str | None) -> list[str]:
    """The names in a comma-separated option; all known ones if it was not given."""
    known = list(known)
    names = known if given is None else given.split(",")
    for name in names:
        if name not in known:
            raise BenchmarkError(f"unknown {what} {name!r}; there are {', '.join(known)}")
    return names


def opponents(against: str, tuned: bool = True) -> list[str]:
    """The contestants' names: minigrad, and unless `against` is "none" PyTorch, plain and tuned."""
    if against == "none":
        return ["minigrad"]
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkError("PyTorch is not installed (pip install torch); to measure minigrad alone: --against none")
    return ["minigrad", "PyTorch", "PyTorch tuned"] if tuned else ["minigrad", "PyTorch"]


def machine() -> str:
    """The processor, its cores, and what else is running."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = f"\nnote: the load is {load:.1f} already; other programs disturb these figures" if load > 0.5 else ""
    return f"{name}, {cores} cores, {platform.system()}, Python {platform.python_version()}{busy}"


def write_json(path: Path | None, figures: Any) -> None:
    """Write all figures to a file, if one was asked for."""
    if path is not None:
        from minigrad.serialization import write_atomically

        write_atomically(path, json.dumps({"machine": machine(), **figures}, indent=1).encode())
        print(f"\nAll figures are in {path}")


def run_benchmark(main: Callable[[], None]) -> None:
    """Run a benchmark's `main`; what a person can mend ends it with one line, not with a traceback."""
    try:
        main()
    except (BenchmarkError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
