"""What the engine itself costs: recording an operation, walking a node, and whether that grows with the graph.

    python -m benchmarks.tape                       # chains of 1,000 to 1,000,000 operations
    python -m benchmarks.tape --quick               # to 100,000
    python -m benchmarks.tape --against none

A chain applies one operation over and over to four numbers, so that next to nothing of the time is arithmetic: the
column NumPy shows what the same calls cost without an engine. "Backward" is one `backward()` through the whole chain,
divided by its length; it frees the graph as it goes.
"""

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command, contestants, workers
from benchmarks.figures import median, short, table, times_and_ratios

N = 4  # numbers in the tensor
OPERATIONS = ["negative", "tanh", "add", "multiply", "linear"]  # the last three with parameters as the other operands


class Chain(NamedTuple):
    """What one library needs to run chains: its operations, how to start one, and how to walk back."""

    operations: dict[str, Callable[[Any], Any]]  # x -> the next x
    start: Any
    backward: Callable[[Any], None] | None  # None: the library records nothing


def chain(library: str) -> Chain:
    ones = np.ones((1, N), np.float32)
    arrays = [ones / 2, ones, np.eye(N, dtype=np.float32), np.zeros(N, np.float32)]
    upstream, leaves, tanh = ones, arrays, np.tanh
    linear = lambda y, matrix, bias: y @ matrix.T + bias  # noqa: E731
    if library == "torch":
        import torch

        leaves, upstream = [torch.tensor(x, requires_grad=True) for x in arrays], torch.from_numpy(ones)
        tanh, linear = torch.tanh, torch.nn.functional.linear
    elif library == "minigrad":
        from minigrad import functional as F
        from minigrad import nn

        leaves, tanh, linear = [nn.Parameter(x) for x in arrays], F.tanh, F.linear
    x, w, matrix, bias = leaves

    def backward(y: Any) -> None:
        y.backward(upstream)
        for leaf in leaves:
            leaf.grad = None

    operations = {
        "negative": lambda y: -y,
        "tanh": tanh,
        "add": lambda y: y + w,
        "multiply": lambda y: y * w,
        "linear": lambda y: linear(y, matrix, bias),
    }
    return Chain(operations, x, None if library == "numpy" else backward)


class Contestant(contestants.Contestant):
    def turn(self, operation: str, length: int, repeats: int, library: str | None = None) -> list[float]:
        """µs an operation forward and µs a node backward, the mean of so many chains."""
        operations, first, walk = chain(library or self.library)
        call = operations[operation]
        gc.collect()
        forward = backward = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            y = first
            for _ in range(length):
                y = call(y)
            forward += time.perf_counter() - start
            if walk is not None:
                start = time.perf_counter()
                walk(y)
                backward += time.perf_counter() - start
        return [1e6 * forward / (repeats * length), 1e6 * backward / (repeats * length)]

    def bytes_a_node(self, length: int) -> float:
        """How much the process grows for each operation that is recorded; only true in a fresh process."""
        operations, y, _ = chain(self.library)
        before = contestants.memory("VmRSS")
        for _ in range(length):
            y = operations[OPERATIONS[0]](y)
        return 1e6 * (contestants.memory("VmRSS") - before) / length


def measure(processes: dict[str, Any], operation: str, length: int, rounds: int) -> dict[str, Any]:
    """Every round's figures by contestant, with NumPy as one more, which has no backward."""
    work = {"operation": operation, "length": length, "repeats": max(1, 5_000 // length)}

    who = {"NumPy": (processes["minigrad"], "numpy"), **{name: (worker, None) for name, worker in processes.items()}}
    turns = workers.take_turns(list(who), rounds, lambda name: who[name][0].call("turn", **work, library=who[name][1]))
    return workers.by_direction(turns)


def table_of(title: str, measured: dict[str, dict[str, Any]]) -> str:
    lines = []
    for what, figures in measured.items():
        line = [what, short(median(figures["NumPy"]["forward"]))]
        for direction in ("forward", "backward"):
            us = {name: directions[direction] for name, directions in figures.items()}
            line += [short(median(us["minigrad"])), *times_and_ratios(us, ["PyTorch"])]
        lines.append(line)
    ways = ["forward", "PyTorch's", "× PyTorch", "backward", "PyTorch's", "× PyTorch"]
    return table([title, "NumPy", *ways], lines)


def benchmark(args: Any) -> dict[str, Any]:
    names = command.choose("operation", OPERATIONS, args.operations)
    lengths = args.lengths or [10**n for n in range(3, 6 if args.quick else 7)]
    rounds = args.rounds or (3 if args.quick else 9)
    opponents = command.opponents(args.against, {"torch": ["PyTorch"]})
    print(command.machine())
    runs = []
    for threads, processes in workers.prepared("benchmarks.tape", opponents, args):
        nodes = min(100_000, max(lengths))
        held = {name: worker.call("bytes_a_node", length=nodes) for name, worker in processes.items()}
        command.progress("measuring the operations")
        operations = {name: measure(processes, name, lengths[0], rounds) for name in names}
        print(table_of(f"µs, chains of {lengths[0]:,}", operations), end="\n\n")
        growth = {}
        for length in lengths:
            command.progress(f"measuring a chain of {length:,}")
            growth[f"{length:,}"] = measure(processes, OPERATIONS[0], length, min(rounds, 3))
        print(table_of(f"µs, chains of {OPERATIONS[0]}", growth))
        runs.append({"threads": threads, "operations": operations, "growth": growth, "bytes_a_node": held})
        print(f"\nBytes a node of {OPERATIONS[0]}: " + ", ".join(f"{short(b)} ({name})" for name, b in held.items()))
    print("Medians of µs an operation; in brackets the smallest and largest ratio of a round.")
    return {"runs": runs}


def main() -> None:
    parser = command.arguments("The engine's own cost for each operation and node.", "chains to 100,000, 3 rounds")
    parser.add_argument("--lengths", type=command.counts, help="of the chains (default: 1000,10000,100000,1000000)")
    parser.add_argument("--operations", metavar="NAME,…", help=f"of {', '.join(OPERATIONS)} (default: all)")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
