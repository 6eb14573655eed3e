"""Contestants in processes of their own, which take turns.

Each contestant (minigrad, PyTorch, PyTorch with a tuned allocator …) has its own process, so that none is measured with
another's threads, allocator or memory. One works while the others sleep on a pipe. A round is one turn of each, and
ratios are taken within a round, so that whatever disturbs the machine for longer than a turn disturbs all contestants.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS

ROOT = Path(__file__).resolve().parent.parent
# Seconds of silence before another's turn: OpenBLAS's threads wait for work by spinning for 2**28 cycles (0.1 s).
PAUSE = float(os.environ.get("BENCHMARK_PAUSE", "0.15"))


class BenchmarkError(Exception):
    """Something that the person who started the benchmark can mend."""


class Worker:
    """A contestant's process, which runs `python -m MODULE --worker LIBRARY`."""

    last_called: "Worker | None" = None

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.prepared: dict[str, Any] = {}
        library, environment = CONTESTANTS[name]
        given: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        command = [sys.executable, "-m", module, "--worker", library]
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **given)

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of the contestant's method of this name. Meanwhile this process sleeps."""
        if Worker.last_called is not self:
            time.sleep(PAUSE)
        Worker.last_called = self
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        if not answer:
            raise BenchmarkError(f"{self.name}: its process ended with status {self.process.wait()} in {method}()")
        return result_of(self.name, json.loads(answer))

    def prepare(self, **arguments: Any) -> str:
        self.prepared = arguments
        return self.call("prepare", **arguments)

    def restart(self) -> None:
        arguments = self.prepared
        self.close()
        self.__init__(self.module, self.name)  # type: ignore[misc]
        self.prepare(**arguments)

    def close(self) -> None:
        """End the process, and wait until its memory is free for the next."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def result_of(name: str, answer: dict[str, Any]) -> Any:
    if "failed" in answer:
        raise BenchmarkError(f"{name}: {answer['failed']}")
    return answer["result"]


def answer_to(contestant: Any, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a contestant's process answers: the method's result, or in one line why it failed."""
    try:
        return {"result": getattr(contestant, method)(**arguments)}
    except BenchmarkError as error:
        return {"failed": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{why(error)}, in {method}()"}


def why(error: Exception) -> str:
    """One line about an error: out of memory is what a smaller card will meet."""
    if isinstance(error, MemoryError):
        from minigrad.memory import describe_out_of_memory

        with contextlib.suppress(Exception):
            return describe_out_of_memory(error)
    kind = "out of memory" if "OutOfMemory" in type(error).__name__ else type(error).__name__
    return ": ".join([kind, *str(error).strip().splitlines()[:1]])


def serve(contestant: Any) -> None:
    """The other end of `Worker`: answer one call after another until the pipe is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is not an answer
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for request in iter(sys.stdin.readline, ""):
            print(json.dumps(answer_to(contestant, *json.loads(request))), file=answers, flush=True)


@contextlib.contextmanager
def start(module: str, names: Iterable[str]) -> Iterator[dict[str, Worker]]:
    """A process for each of the named contestants, by name, until the end of the `with` block."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in names:
            started[name] = Worker(module, name)
            stack.callback(started[name].close)
        yield started


def take_turns(names: Sequence[str], rounds: int, turn: Callable[[str], Any], warm_up: bool = True) -> dict[str, Any]:
    """The list of what `turn(name)` returned in each round, by name. Who begins changes from round to round.

    warm_up: begin with a round that does not count, in which buffers are made and caches filled.
    """
    results: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(rounds + warm_up):
        first = i % len(names)
        for name in [*names[first:], *names[:first]]:
            results[name].append(turn(name))
    return {name: values[warm_up:] for name, values in results.items()}


def prepared(module: str, names: list[str], args: Any, **where: Any) -> Iterator[tuple[int | None, dict[str, Worker]]]:
    """For each number of threads: the contestants' processes, when they have said who they are."""
    for threads in args.threads:
        with start(module, names) as processes:
            about = ask_all(processes, lambda worker: worker.prepare(threads=threads, **where))  # noqa: B023
            print("\n".join(["", *dict.fromkeys(about.values()), ""]), flush=True)
            yield threads, processes


def ask_all(processes: dict[str, Worker], ask: Callable[[Worker], Any]) -> dict[str, Any]:
    """What each answers. An opponent that fails is left out from then on; minigrad's failure ends the benchmark."""
    answers = {}
    for who, worker in list(processes.items()):
        try:
            answers[who] = ask(worker)
        except BenchmarkError as error:
            if who == "minigrad":
                raise
            print(f"left out: {error}", file=sys.stderr, flush=True)
            processes.pop(who).close()  # gives its memory back
    return answers


def by_direction(turns: dict[str, list[Any]]) -> dict[str, dict[str, list[float]]]:
    """Turns that returned (forward, backward), as the figures of each direction, by contestant."""
    columns = {name: list(zip(*pairs, strict=True)) for name, pairs in turns.items()}
    return {name: {"forward": list(both[0]), "backward": list(both[1])} for name, both in columns.items()}
