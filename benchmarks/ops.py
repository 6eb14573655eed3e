"""Operation by operation, forward and backward, at the sizes of three models: time, rate, share of the machine's rate.

    python -m benchmarks.ops                                   # every operation at every size; some minutes
    python -m benchmarks.ops --quick                           # small and baby, fewer rounds
    python -m benchmarks.ops --shapes baby --ops gelu,linear   # operations whose names begin so
    python -m benchmarks.ops --against none

minigrad is measured twice, with its kernels and as written in minigrad/ops ("reference"). operations.py says what is
counted for the rate. The share is of this machine's rates, measured at the start: the best matrix product of any
contestant, and a copy. Arrays that fit into a cache move faster than a copy in memory, so a share can exceed 100%.

Every forward includes recording one operation and every backward starting a walk through one node, which weighs at the
small sizes; the line "-x of four numbers" shows how much that is. tape.py measures long walks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import command, contestants, operations, workers
from benchmarks.figures import median, short, table, times_and_ratios
from benchmarks.operations import UPDATES, Operation, Shape

SHAPES = {
    "small": Shape(B=12, T=64, C=128, nh=4, V=65, n_layer=4, bias=False),
    "baby": Shape(B=8, T=256, C=384, nh=6, V=65, n_layer=6, bias=False),
    "124m": Shape(B=1, T=1024, C=768, nh=12, V=50257, n_layer=12, bias=True),
}
ALL_SHAPES = {**SHAPES, "tiny": Shape(B=2, T=8, C=16, nh=2, V=11, n_layer=1, bias=True)}  # to try the benchmark itself
WHO = ["minigrad", "reference", "PyTorch", "PyTorch tuned"]

Cycle = Callable[[], tuple[float, float]]  # does an operation once: seconds forward, seconds backward


def operation_cycle(library: str, op: Operation) -> Cycle:
    rng = np.random.default_rng(0)
    arrays = [operations.random_array(x, rng) for x in op.inputs]
    gradient: Any = None
    if library == "torch":
        import torch

        given = [torch.from_numpy(x) for x in arrays]
        leaves = [x.requires_grad_() for x in given if x.is_floating_point()]
        tensor: Any = torch.from_numpy
        inputs: Any = lambda: given  # noqa: E731
        forward: Any = lambda inputs: op.theirs(torch.nn.functional, *inputs)  # noqa: E731
        backward: Any = lambda y: torch.autograd.grad(y, leaves, gradient)  # noqa: E731
    else:
        from minigrad import functional as F
        from minigrad import nn

        kinds = [x.kind for x in op.inputs]
        given = [x if kind == "ids" else nn.Parameter(x) for x, kind in zip(arrays, kinds, strict=True)]
        tensor, below = np.asarray, operations.below()
        forward, backward = lambda inputs: op.ours(F, *inputs), lambda y: y.backward(gradient)

        def inputs() -> list[Any]:
            """Parameters accumulate their gradients; those of activations go further down."""
            for x, kind in zip(given, kinds, strict=True):
                if kind == "parameter":
                    x.zero_grad()
            further = [kind in ("activation", "heads") for kind in kinds]
            return [below.apply(x) if down else x for x, down in zip(given, further, strict=True)]

    def cycle() -> tuple[float, float]:
        nonlocal gradient
        xs = inputs()
        start = time.perf_counter()
        y = forward(xs)
        seconds = time.perf_counter() - start
        if gradient is None:
            made = operations.upstream(tuple(y.shape), lambda shape: rng.standard_normal(shape, dtype=np.float32))
            gradient = tensor(np.asarray(made))
        start = time.perf_counter()
        backward(y)
        return seconds, time.perf_counter() - start

    return cycle


def update_cycle(library: str, name: str, s: Shape) -> Cycle:
    """On parameters with gradients, as many as the model has, and of these shapes."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((2, *shape), dtype=np.float32) for shape in operations.parameter_shapes(s)]
    settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    parameters: list[Any]
    if library == "torch":
        import torch

        parameters = [torch.nn.Parameter(torch.from_numpy(weight)) for weight, _ in made]
        optimizer, clip = torch.optim.AdamW(parameters, **settings, fused=True), torch.nn.utils.clip_grad_norm_
    else:
        from minigrad import nn, optim

        parameters = [nn.Parameter(weight) for weight, _ in made]
        optimizer, clip = optim.AdamW(parameters, **settings), optim.clip_grad_norm  # type: ignore[assignment]
    for parameter, (_, gradient) in zip(parameters, made, strict=True):
        parameter.grad = torch.from_numpy(gradient) if library == "torch" else gradient
    work = operations.update(name, lambda limit: clip(parameters, limit), optimizer.step)

    def cycle() -> tuple[float, float]:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start, 0.0

    return cycle


class Contestant(contestants.Contestant):
    built: tuple[tuple[str, str], Cycle] | None = None

    def machine_rates(self) -> dict[str, float]:
        """The best float32 matrix product, in FLOP/s, and the best copy, in bytes read and written a second.

        The copy takes as many threads as the product, for which minigrad's reference is NumPy itself.
        """
        n, columns = 2048, 1 << 24
        if self.library == "torch":
            import torch

            a = torch.ones(n, n)
            return {"FLOP": 2 * n**3 / best(lambda: a @ a), "B": 0.0}
        from concurrent.futures import ThreadPoolExecutor

        import minigrad as mg

        threads = mg.get_num_threads()
        a = np.ones((n, n), np.float32)
        product = best(lambda: mg.functional.matmul(a, a))
        source, target = np.ones((threads, columns), np.float32), np.ones((threads, columns), np.float32)
        with ThreadPoolExecutor(threads) as pool:
            copy = best(lambda: list(pool.map(np.copyto, target, source)))
        return {"FLOP": 2 * n**3 / product, "B": 2 * source.nbytes / copy}

    def turn(self, shape: str, name: str, budget: float) -> list[float]:
        """µs forward and backward: medians of as many cycles as fit into the budget in seconds, at least one."""
        if self.built is None or self.built[0] != (shape, name):
            self.built = None  # frees the last one's arrays first
            s = ALL_SHAPES[shape]
            if name in UPDATES:
                self.built = (shape, name), update_cycle(self.library, name, s)
            else:
                self.built = (shape, name), operation_cycle(self.library, operations.operations(s)[name])
        cycles = []
        until = time.perf_counter() + budget
        while not cycles or time.perf_counter() < until:
            cycles.append(self.built[1]())
        return [1e6 * statistics.median(times) for times in zip(*cycles, strict=True)]


def best(work: Callable[[], Any]) -> float:
    """The shortest of at least three times, in seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def lines(s: Shape, figures: dict[str, dict[str, Any]], rates: dict[str, float]) -> list[list[str]]:
    """A line for each direction of each operation."""
    result = []
    for name, figure in figures.items():
        if name in UPDATES:
            directions = [("forward", name, "B", operations.update_bytes(name, s))]
        else:
            op = operations.operations(s)[name]
            directions = [(way, f"{name}: {way}", op.unit, getattr(op, way)) for way in ("forward", "backward")]
        for way, title, unit, work in directions:
            us = {who: values[way] for who, values in figure.items()}
            others = times_and_ratios(us, WHO[2:])
            rate = 1e6 * work / (median(us["minigrad"]) or 0.0)
            in_words = [f"{short(rate / 1e9)} G{unit}/s", f"{rate / rates[unit]:.0%}"] if work else ["–", "–"]
            result.append([title, *(short(median(us[who])) for who in WHO[:2]), *others, *in_words])
    return result


def benchmark(args: Any) -> dict[str, Any]:
    default = list(SHAPES)[: 2 if args.quick else None]
    shapes = command.choose("shape", ALL_SHAPES, args.shapes) if args.shapes else default
    known = [*operations.operations(ALL_SHAPES[shapes[0]]), *UPDATES]
    names = [name for name in known if not args.ops or name.startswith(tuple(args.ops.split(",")))]
    if not names:
        raise workers.BenchmarkError(f"no operation begins with {args.ops}; there are {'; '.join(known)}")
    rounds, budget = (args.rounds or 2, 0.02) if args.quick else (args.rounds or 5, 0.05)
    who = ["reference", *command.opponents(args.against)]
    print(command.machine())
    runs = []
    for threads, processes in workers.prepared("benchmarks.ops", who, args):
        measured = [worker.call("machine_rates") for worker in processes.values()]
        rates = {unit: max(rates[unit] for rates in measured) for unit in ("FLOP", "B")}
        print(f"matrix product {short(rates['FLOP'] / 1e9)} GFLOP/s, copy {short(rates['B'] / 1e9)} GB/s")
        figures: dict[str, dict[str, Any]] = {shape: {} for shape in shapes}
        for shape, s in ((shape, ALL_SHAPES[shape]) for shape in shapes):
            for name in names:
                command.progress(f"measuring {shape}: {name}")
                work = {"shape": shape, "name": name, "budget": budget}
                turns = workers.take_turns(who, rounds, lambda who: processes[who].call("turn", **work))  # noqa: B023
                figures[shape][name] = workers.by_direction(turns)
            title = f"{shape}: B {s.B}, T {s.T}, C {s.C}, {s.nh} heads, V {s.V}; µs"
            header = [title, "minigrad", "reference", "PyTorch", "tuned", "× PyTorch", "× tuned", "rate", "share"]
            print("\n" + table(header, lines(s, figures[shape], rates)), flush=True)
        runs.append({"threads": threads, "rates": rates, "us": figures})
    print("\nMedians; in brackets the smallest and largest ratio of a round. Rate and share are minigrad's.")
    return {"runs": runs}


def main() -> None:
    about = "Operation by operation, forward and backward, against PyTorch."
    parser = command.arguments(about, "small and baby only, fewer rounds")
    parser.add_argument("--shapes", metavar="NAME,…", help=f"of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--ops", metavar="START,…", help="only operations whose names begin so")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
