"""What the engine itself costs: recording an operation, walking a node, and whether that grows with the graph.

    python benchmarks/tape.py                       # chains of 1,000 to 1,000,000 operations
    python benchmarks/tape.py --quick               # to 100,000
    python benchmarks/tape.py --against none

A chain applies one operation over and over to four numbers, so that next to nothing of the time is arithmetic: the
column NumPy shows what the same calls cost without an engine. "Backward" is one `backward()` through the whole chain,
divided by its length; it frees the graph as it goes.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from common import (
    Spread,
    arguments,
    choose,
    counts,
    machine,
    memory,
    opponents,
    prepare,
    ratio,
    run_benchmark,
    serve,
    short,
    table,
    take_turns,
    workers,
    write_json,
)

N = 4  # numbers in the tensor
OPERATIONS = ["negative", "tanh", "add", "multiply", "linear"]  # the last three with parameters as the other operands


class Chain(NamedTuple):
    """What one library needs to run chains: its operations, how to start one, and how to walk back."""

    operations: dict[str, Callable[[Any], Any]]  # x -> the next x
    start: Any
    backward: Callable[[Any], None] | None  # None: the library records nothing


def minigrad_chain() -> Chain:
    import numpy as np

    import minigrad as mg
    from minigrad import functional as F
    from minigrad import nn

    x, w = nn.Parameter(np.full((1, N), 0.5, np.float32)), nn.Parameter(np.ones((1, N), np.float32))
    matrix, bias = nn.Parameter(np.eye(N, dtype=np.float32)), nn.Parameter(np.zeros(N, np.float32))
    upstream = np.ones((1, N), np.float32)

    def backward(y: mg.Tensor) -> None:
        y.backward(upstream)
        for leaf in (x, w, matrix, bias):
            leaf.grad = None

    operations = {
        "negative": lambda y: -y,
        "tanh": F.tanh,
        "add": lambda y: y + w,
        "multiply": lambda y: y * w,
        "linear": lambda y: F.linear(y, matrix, bias),
    }
    return Chain(operations, x, backward)


def torch_chain() -> Chain:
    import torch
    from torch.nn import functional as TF

    x, w = torch.full((1, N), 0.5, requires_grad=True), torch.ones((1, N), requires_grad=True)
    matrix, bias = torch.eye(N, requires_grad=True), torch.zeros(N, requires_grad=True)
    upstream = torch.ones((1, N))

    def backward(y: torch.Tensor) -> None:
        y.backward(upstream)
        for leaf in (x, w, matrix, bias):
            leaf.grad = None

    operations = {
        "negative": lambda y: -y,
        "tanh": torch.tanh,
        "add": lambda y: y + w,
        "multiply": lambda y: y * w,
        "linear": lambda y: TF.linear(y, matrix, bias),
    }
    return Chain(operations, x, backward)


def numpy_chain() -> Chain:
    import numpy as np

    x, w = np.full((1, N), 0.5, np.float32), np.ones((1, N), np.float32)
    matrix, bias = np.eye(N, dtype=np.float32), np.zeros(N, np.float32)
    operations = {
        "negative": lambda y: -y,
        "tanh": np.tanh,
        "add": lambda y: y + w,
        "multiply": lambda y: y * w,
        "linear": lambda y: y @ matrix.T + bias,
    }
    return Chain(operations, x, None)


class Contestant:
    """What runs in a contestant's process."""

    def __init__(self, library: str) -> None:
        self.library = library

    def prepare(self, threads: int | None) -> str:
        about = prepare(self.library, threads)
        if self.library == "torch":
            self.chains = {"torch": torch_chain()}
        else:
            self.chains = {"minigrad": minigrad_chain(), "numpy": numpy_chain()}
        return about

    def turn(self, operation: str, length: int, repeats: int, library: str | None = None) -> list[float]:
        """µs an operation forward and µs a node backward, the mean of so many chains."""
        chain = self.chains[library or self.library]
        call = chain.operations[operation]
        gc.collect()
        forward = backward = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            y = chain.start
            for _ in range(length):
                y = call(y)
            forward += time.perf_counter() - start
            if chain.backward is not None:
                start = time.perf_counter()
                chain.backward(y)
                backward += time.perf_counter() - start
        return [1e6 * forward / (repeats * length), 1e6 * backward / (repeats * length)]

    def bytes_a_node(self, length: int) -> float:
        """How much the process grows for each operation that is recorded; only true in a fresh process."""
        call, y = self.chains[self.library].operations[OPERATIONS[0]], self.chains[self.library].start
        before = memory("VmRSS")
        for _ in range(length):
            y = call(y)
        return 1e6 * (memory("VmRSS") - before) / length


def measure(processes: dict[str, Any], operation: str, length: int, rounds: int) -> dict[str, Any]:
    """Every round's figures by contestant, with NumPy as one more, which has no backward."""
    repeats = max(1, 5_000 // length)

    def turn(name: str) -> list[float]:
        if name == "NumPy":
            return processes["minigrad"].call(
                "turn", operation=operation, length=length, repeats=repeats, library="numpy"
            )
        return processes[name].call("turn", operation=operation, length=length, repeats=repeats)

    results = take_turns(["NumPy", *processes], rounds, turn)
    return {
        name: {"forward": [forward for forward, _ in turns], "backward": [backward for _, backward in turns]}
        for name, turns in results.items()
    }


def lines(measured: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The measurements, by what was measured, as lines of a table with the columns of HEADER."""
    result = []
    for title, figures in measured.items():
        cells = [title, short(Spread.of(figures["NumPy"]["forward"]).median)]
        for direction in ("forward", "backward"):
            ours, theirs = figures["minigrad"][direction], figures.get("PyTorch", {}).get(direction)
            cells.append(short(Spread.of(ours).median))
            cells += [short(Spread.of(theirs).median), str(ratio(theirs, ours))] if theirs else ["–", "–"]
        result.append(cells)
    return result


HEADER = ["NumPy", "forward", "PyTorch's", "× PyTorch", "backward", "PyTorch's", "× PyTorch"]


def main() -> None:
    parser = arguments("The engine's own cost for each operation and node.", quick="chains to 100,000, 3 rounds")
    parser.add_argument("--lengths", type=counts, help="of the chains (default: 1000,10000,100000,1000000)")
    parser.add_argument("--operations", metavar="NAME,…", help=f"of {', '.join(OPERATIONS)} (default: all)")
    args = parser.parse_args()
    if args.worker:
        serve(Contestant(args.worker))
        return
    names = choose("operation", OPERATIONS, args.operations)
    lengths = args.lengths or [10**n for n in range(3, 6 if args.quick else 7)]
    rounds = args.rounds or (3 if args.quick else 9)

    print(machine())
    runs = []
    for threads in args.threads:
        with workers(__file__, opponents(args.against, tuned=False)) as processes:
            print("\n" + "\n".join(worker.call("prepare", threads=threads) for worker in processes.values()) + "\n")
            nodes = min(100_000, max(lengths))
            held = {name: worker.call("bytes_a_node", length=nodes) for name, worker in processes.items()}
            print("measuring the operations …", file=sys.stderr, flush=True)
            operations = {name: measure(processes, name, lengths[0], rounds) for name in names}
            print(table([f"µs, chains of {lengths[0]:,}", *HEADER], lines(operations)), end="\n\n")
            growth = {}
            for length in lengths:
                print(f"measuring a chain of {length:,} …", file=sys.stderr, flush=True)
                growth[f"{length:,}"] = measure(processes, OPERATIONS[0], length, min(rounds, 3))
            print(table([f"µs, chains of {OPERATIONS[0]}", *HEADER], lines(growth)))
        runs.append({"threads": threads, "operations": operations, "growth": growth, "bytes_a_node": held})
        print(f"\nBytes a node of {OPERATIONS[0]}: " + ", ".join(f"{short(b)} ({name})" for name, b in held.items()))
    print("Medians of µs an operation; in brackets the smallest and largest ratio of a round.")
    write_json(args.json, {"runs": runs})


if __name__ == "__main__":
    run_benchmark(main)
