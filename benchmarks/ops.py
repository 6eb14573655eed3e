"""Operation by operation, forward and backward, at the sizes of three models: time, rate, share of the machine's rate.

    python -m benchmarks.ops                                   # every operation at every size; some minutes
    python -m benchmarks.ops --quick                           # small and baby, fewer rounds
    python -m benchmarks.ops --shapes baby --ops gelu,linear   # operations whose names begin so
    python -m benchmarks.ops --against none
    python -m benchmarks.ops --device cuda --dtype bfloat16    # every CUDA kernel, at GPT-2's size

minigrad is measured twice, with its kernels and as written in minigrad/ops ("reference"). operations.py says what is
counted for the rate. The share is of this machine's rates, measured at the start: the best matrix product of any
contestant, and a copy. Arrays that fit into a cache move faster than a copy in memory, so a share can exceed 100%.

Every forward includes recording one operation and every backward starting a walk through one node, which weighs at the
small sizes; the line "-x of four numbers" shows how much that is. tape.py measures long walks.
"""

import importlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks import command, contestants, cuda_steps, operations, workers
from benchmarks.figures import median, short, table, times_and_ratios
from benchmarks.operations import UPDATES, Operation, Shape

SHAPES = {
    "small": Shape(B=12, T=64, C=128, nh=4, V=65, n_layer=4, bias=False),
    "baby": Shape(B=8, T=256, C=384, nh=6, V=65, n_layer=6, bias=False),
    "124m": Shape(B=1, T=1024, C=768, nh=12, V=50257, n_layer=12, bias=True),
}
CUDA_SHAPES = {"124m-batch": Shape(B=32, T=1024, C=768, nh=12, V=50304, n_layer=12, bias=True)}
TRIAL_SHAPES = {
    "tiny": Shape(B=2, T=8, C=16, nh=2, V=11, n_layer=1, bias=True, images=2)
}  # to try the benchmark itself
ALL_SHAPES = {**SHAPES, **CUDA_SHAPES, **TRIAL_SHAPES}
WHO = ["minigrad", "reference", "PyTorch", "PyTorch tuned"]

Cycle = Callable[[], tuple[float, float]]  # does an operation once: seconds forward, seconds backward


class Clock:
    """Seconds between two marks."""

    mark = staticmethod(time.perf_counter)

    def start(self, fills: int = 0) -> Any:
        return self.mark()

    def seconds(self, start: Any, end: Any) -> float:
        return end - start


class CupyClock(Clock):
    """The same on a card, by events: with a cold L2 cache, and without the time that the host takes to start the work.

    Before that a buffer is filled that is larger than any cache, so many times that it takes the card longer than the
    host takes to hand over the work: so the card does not wait between the two marks.
    """

    def __init__(self, fill_bytes: int = 1 << 30) -> None:
        self.cupy = importlib.import_module("cupy")
        self.buffer = self.cupy.empty(fill_bytes, "uint8")

    def start(self, fills: int = 2) -> Any:
        for _ in range(fills):
            self.buffer[...] = 0
        return self.mark()

    def mark(self) -> Any:  # type: ignore[override]
        return self.cupy.cuda.get_current_stream().record()

    def seconds(self, start: Any, end: Any) -> float:
        self.cupy.cuda.Device().synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / 1e3


class TorchClock(CupyClock):
    def __init__(self, fill_bytes: int = 1 << 30) -> None:
        self.torch = importlib.import_module("torch")
        self.buffer = self.torch.empty(fill_bytes, dtype=self.torch.uint8, device="cuda")

    def mark(self) -> Any:  # type: ignore[override]
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def arrays(library: str, device: str, dtype: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Functions that make an array of random numbers, and that bring one of NumPy's to where the work is done."""
    rng, seeds = np.random.default_rng(0), itertools.count()
    if library == "torch":
        import torch

        if device == "cuda":
            of_type = {"dtype": getattr(torch, dtype), "device": "cuda"}
            return lambda shape: torch.randn(shape, **of_type), lambda array: torch.from_numpy(array).cuda()
        return lambda shape: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)), torch.from_numpy
    if device == "cpu":
        return lambda shape: rng.standard_normal(shape, dtype=np.float32), lambda array: array
    import minigrad as mg

    make = lambda shape: operations.numbers(dtype, *shape, seed=next(seeds))  # noqa: E731
    return make, lambda array: mg.Tensor(array, device="cuda").data


def operation_cycle(library: str, op: Operation, device: str, dtype: str, clock: Clock) -> Cycle:
    make, send = arrays(library, device, dtype)
    given = [operations.random_input(x, make, send) for x in op.inputs]
    kinds, gradient = [x.kind for x in op.inputs], None
    if library == "torch":
        import torch

        leaves = [x.requires_grad_() for x in given if x.is_floating_point()]
        inputs: Any = lambda: given  # noqa: E731
        forward: Any = lambda inputs: op.theirs(torch.nn.functional, *inputs)  # noqa: E731
        backward: Any = lambda y: torch.autograd.grad(y, leaves, gradient)  # noqa: E731
    else:
        import minigrad as mg

        below, further = operations.below(), [kind in ("activation", "heads") for kind in kinds]
        given = [x if kind == "ids" else mg.nn.Parameter(mg.Tensor(x)) for x, kind in zip(given, kinds, strict=True)]
        forward, backward = lambda inputs: op.ours(mg.functional, *inputs), lambda y: y.backward(gradient)

        def inputs() -> list[Any]:
            """Parameters accumulate their gradients; those of activations go further down."""
            for x, kind in zip(given, kinds, strict=True):
                if kind == "parameter":
                    x.zero_grad()
            return [below.apply(x) if down else x for x, down in zip(given, further, strict=True)]

    def cycle() -> tuple[float, float]:
        nonlocal gradient
        xs = inputs()
        start = clock.start()
        y = forward(xs)
        middle = clock.mark()
        if gradient is None:
            gradient = operations.upstream(tuple(y.shape), make, "heads" in kinds)
        again = clock.start()
        backward(y)
        end = clock.mark()
        return clock.seconds(start, middle), clock.seconds(again, end)

    return cycle


def update_cycle(library: str, name: str, s: Shape, device: str, dtype: str, clock: Clock) -> Cycle:
    """On parameters with gradients, as many as the model has, and of these shapes.

    PyTorch's are float32, as under autocast. On a card it takes the host milliseconds to hand AdamW over.
    """
    make, _ = arrays(library, device, "float32" if library == "torch" else dtype)
    settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    weights, gradients = ([make(shape) for shape in operations.parameter_shapes(s)] for _ in range(2))
    if library == "torch":
        import torch

        parameters = [torch.nn.Parameter(weight) for weight in weights]
        optimizer, clip = torch.optim.AdamW(parameters, **settings, fused=True), torch.nn.utils.clip_grad_norm_
    else:
        import minigrad as mg

        parameters = [mg.nn.Parameter(mg.Tensor(weight)) for weight in weights]
        optimizer, clip = mg.optim.AdamW(parameters, **settings), mg.optim.clip_grad_norm  # type: ignore[assignment]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    work = operations.update(name, lambda limit: clip(parameters, limit), optimizer.step)

    def cycle() -> tuple[float, float]:
        start = clock.start(fills=16)
        work()
        return clock.seconds(start, clock.mark()), 0.0

    return cycle


class Contestant(contestants.Contestant):
    built: tuple[tuple[str, str], Cycle] | None = None

    def prepare(self, threads: int | None, device: str = "cpu", dtype: str = "float32") -> str:
        about, self.device, self.dtype, self.clock = super().prepare(threads), device, dtype, Clock()
        if device == "cpu":
            return about
        about += f", {cuda_steps.about_card(self.library)}"
        if self.library == "torch":
            importlib.import_module("torch").set_float32_matmul_precision("high")  # TF32
        else:
            importlib.import_module("minigrad.kernels.cuda.products").rounding_to_tf32().__enter__()
        self.clock = (TorchClock if self.library == "torch" else CupyClock)()
        return about

    def machine_rates(self) -> dict[str, float]:
        """The best matrix product, in FLOP/s, and the best copy, in bytes read and written a second.

        On a CPU the copy takes as many threads as the product, for which minigrad's reference is NumPy itself.
        """
        make, _ = arrays(self.library, self.device, self.dtype)
        n, columns = 2048 if self.device == "cpu" else 8192, 1 << 24
        a = make((n, n))
        if self.library == "torch":
            return {"FLOP": 2 * n**3 / best(self.clock, lambda: a @ a), "B": 0.0}
        import minigrad as mg

        product = best(self.clock, lambda: mg.functional.matmul(a, a))
        threads = mg.get_num_threads() if self.device == "cpu" else 16
        source, target = make((threads, columns)), make((threads, columns))
        with ThreadPoolExecutor(threads) as pool:
            rows = lambda: list(pool.map(np.copyto, target, source))  # noqa: E731
            whole = lambda: target.__setitem__(..., source)  # noqa: E731
            copy = best(self.clock, rows if self.device == "cpu" else whole)
        return {"FLOP": 2 * n**3 / product, "B": 2 * source.nbytes / copy}

    def turn(self, shape: str, name: str, budget: float) -> list[float]:
        """µs forward and backward: medians of as many cycles as fit into the budget in seconds, at least one."""
        if self.built is None or self.built[0] != (shape, name):
            self.built = None  # frees the last one's arrays first
            s, where = ALL_SHAPES[shape], (self.device, self.dtype, self.clock)
            if name in UPDATES:
                self.built = (shape, name), update_cycle(self.library, name, s, *where)
            else:
                op = known(s, self.device, self.dtype)[name]
                self.built = (shape, name), operation_cycle(self.library, op, *where)
        cycles = []
        until = time.perf_counter() + budget
        while not cycles or time.perf_counter() < until:
            cycles.append(self.built[1]())
        return [1e6 * statistics.median(times) for times in zip(*cycles, strict=True)]


def best(clock: Clock, work: Callable[[], Any]) -> float:
    """The shortest of at least three times, in seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.5 and len(times) < 100:
        start = clock.start()
        work()
        times.append(clock.seconds(start, clock.mark()))
    return min(times)


def known(s: Shape, device: str, dtype: str) -> dict[str, Operation]:
    return operations.operations(s) if device == "cpu" else operations.on_card_too(s, dtype)


def lines(s: Shape, figures: dict[str, Any], rates: dict[str, float], device: str, dtype: str) -> list[list[str]]:
    """A line for each direction of each operation."""
    result = []
    for name, figure in figures.items():
        if name in UPDATES:
            directions = [("forward", name, "B", operations.update_bytes(name, s, dtype))]
        else:
            op = known(s, device, dtype)[name]
            directions = [(way, f"{name}: {way}", op.unit, getattr(op, way)) for way in ("forward", "backward")]
        for way, title, unit, work in directions:
            us = {who: values[way] for who, values in figure.items()}
            cells = ["failed", *["–"] * 7]
            if us:
                rate = 1e6 * work / median(us["minigrad"])
                cells = [*(short(median(us.get(who))) for who in WHO[:2]), *times_and_ratios(us, WHO[2:])]
                cells += [f"{short(rate / 1e9)} G{unit}/s", f"{rate / rates[unit]:.0%}"] if work else ["–", "–"]
            result.append([title, *cells])
    return result


def benchmark(args: Any) -> dict[str, Any]:
    on_card = args.device == "cuda"
    default = list(CUDA_SHAPES) if on_card else list(SHAPES)[: 2 if args.quick else None]
    shapes = command.choose("shape", ALL_SHAPES, args.shapes) if args.shapes else default
    there = [*known(ALL_SHAPES[shapes[0]], args.device, args.dtype), *UPDATES]
    names = [name for name in there if not args.ops or name.startswith(tuple(args.ops.split(",")))]
    if not names:
        raise workers.BenchmarkError(f"no operation begins with {args.ops}; there are {'; '.join(there)}")
    rounds, budget = (args.rounds or 2, 0.02) if args.quick else (args.rounds or 5, 0.05)
    opponents = command.opponents(args.against, {"torch": ["PyTorch"]} if on_card else None)
    if on_card:
        os.environ.setdefault("MINIGRAD_KERNELS", "cuda")
    print(command.machine())
    runs = []
    where = {"device": args.device, "dtype": args.dtype}
    wanted = opponents if on_card else ["reference", *opponents]
    for threads, processes in workers.prepared("benchmarks.ops", wanted, args, **where):
        measured = [worker.call("machine_rates") for worker in processes.values()]
        rates = {unit: max(rates[unit] for rates in measured) for unit in ("FLOP", "B")}
        print(f"matrix product {short(rates['FLOP'] / 1e9)} GFLOP/s, copy {short(rates['B'] / 1e9)} GB/s")
        figures: dict[str, dict[str, Any]] = {shape: {} for shape in shapes}
        runs.append({"threads": threads, "rates": rates, "us": figures})
        for shape, s in ((shape, ALL_SHAPES[shape]) for shape in shapes):
            title = f"{shape}: B {s.B}, T {s.T}, C {s.C}, {s.nh} heads, V {s.V}; µs"
            header = [title, "minigrad", "reference", "PyTorch", "tuned", "× PyTorch", "× tuned", "rate", "share"]
            try:
                for name in names:
                    command.progress(f"measuring {shape}: {name}")
                    figures[shape][name] = measure(processes, rounds, {"shape": shape, "name": name, "budget": budget})
            finally:  # if it is stopped, what was measured until then
                print("\n" + table(header, lines(s, figures[shape], rates, **where)), flush=True)
    print("\nMedians; in brackets the smallest and largest ratio of a round. Rate and share are minigrad's.")
    return {**where, "runs": runs}


def measure(processes: dict[str, Any], rounds: int, work: dict[str, Any]) -> dict[str, Any]:
    """µs by contestant and direction; nothing of what failed on a card, whose errors stay with a process."""
    try:
        turns = workers.take_turns(list(processes), rounds, lambda who: processes[who].call("turn", **work))
        return workers.by_direction(turns)
    except workers.BenchmarkError as error:
        if "reference" in processes:
            raise
        print(f"{work['name']}: {error}", file=sys.stderr, flush=True)
        for worker in processes.values():
            worker.restart()
        return {}


def main() -> None:
    about = "Operation by operation, forward and backward, against PyTorch."
    parser = command.arguments(about, "small and baby only, fewer rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="on a card")
    parser.add_argument("--shapes", metavar="NAME,…", help=f"of {', '.join([*SHAPES, *CUDA_SHAPES])}")
    parser.add_argument("--ops", metavar="START,…", help="only operations whose names begin so")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
