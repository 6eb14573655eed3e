"""What the commands share: options, the machine, and errors as one line."""

import argparse
import contextlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.figures import write_json
from benchmarks.workers import BenchmarkError, serve


def arguments(description: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; `quick` says what --quick does."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--against", default="torch", metavar="torch|none", help="whom to compare with")
    parser.add_argument("--rounds", type=positive, help="rounds that count (more: narrower spread)")
    parser.add_argument("--threads", type=counts, default=[None], metavar="N,…", help="default: each library's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, round by round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def run(parser: argparse.ArgumentParser, contestant: Callable[[str], Any], main: Callable[[Any], Any]) -> None:
    """Be a contestant's process if asked to be; else run `main(args)`, and write what it returns to the file of --json.

    What the person who started it can mend ends it with one line, without a traceback.
    """
    args = parser.parse_args()
    try:
        if args.worker:
            serve(contestant(args.worker))
        elif (figures := main(args)) is not None and args.json:
            write_json(args.json, {"machine": machine(), **figures})
            print(f"\nAll figures are in {args.json}")
    except (BenchmarkError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")


def choose(what: str, known: Iterable[str], given: str | None) -> list[str]:
    """The names in a comma-separated option; all known ones if it was not given."""
    known = list(known)
    names = known if given is None else given.split(",")
    for name in names:
        if name not in known:
            raise BenchmarkError(f"unknown {what} {name!r}; there are {', '.join(known)}")
    return names


def opponents(against: str, known: dict[str, list[str]] | None = None) -> list[str]:
    """The contestants' names: minigrad, and those of each library in --against, unless it is "none"."""
    known = known or {"torch": ["PyTorch", "PyTorch tuned"]}
    names = ["minigrad"]
    for library in [] if against == "none" else against.split(","):
        choose("opponent", [*known, "none"], library)
        if importlib.util.find_spec(library) is None:
            title = f"{library.replace('torch', 'PyTorch')} is not installed (pip install {library})"
            raise BenchmarkError(f"{title}; to measure minigrad alone: --against none")
        names += known[library]
    return names


def progress(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)


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
