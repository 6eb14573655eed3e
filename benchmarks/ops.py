"""Operation by operation, forward and backward, at the sizes of three models: time, rate, share of the machine's rate.

    python benchmarks/ops.py                                   # every operation at every size; some minutes
    python benchmarks/ops.py --quick                           # small and baby, fewer rounds
    python benchmarks/ops.py --shapes baby --ops gelu,linear   # operations whose names begin so
    python benchmarks/ops.py --against none

minigrad is measured twice, with its kernels and as written in minigrad/ops ("reference"). Rates count floating-point
operations for matrix products (a causal triangle as half of the square), and else the bytes of inputs and outputs once:
what a perfect implementation would have to move. The share is of this machine's rates, measured at the start: the best
matrix product of any contestant, and a copy. Arrays that fit into a cache move faster than a copy in memory, so a share
can exceed 100%.

Every forward includes recording one operation and every backward starting a walk through one node, which weighs at the
small sizes; the line "-x of four numbers" shows how much that is. tape.py measures long walks.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import (
    BenchmarkError,
    Spread,
    arguments,
    choose,
    machine,
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


@dataclass(frozen=True)
class Shape:
    """A model and its batch, by the letters of the shapes below."""

    B: int  # sequences
    T: int  # tokens in each
    C: int  # channels
    nh: int  # heads
    V: int  # vocabulary
    n_layer: int
    bias: bool


SHAPES = {
    "small": Shape(B=12, T=64, C=128, nh=4, V=65, n_layer=4, bias=False),
    "baby": Shape(B=8, T=256, C=384, nh=6, V=65, n_layer=6, bias=False),
    "124m": Shape(B=1, T=1024, C=768, nh=12, V=50257, n_layer=12, bias=True),
}
TRIAL_SHAPES = {"tiny": Shape(B=2, T=8, C=16, nh=2, V=11, n_layer=1, bias=True)}  # to try the benchmark itself
ALL_SHAPES = {**SHAPES, **TRIAL_SHAPES}
DROPOUT = 0.2


# What is measured. Each operation stands here once, as a call of minigrad beside the same call of PyTorch.


@dataclass(frozen=True)
class Input:
    """An array to make: an activation, the heads of an activation, a parameter, or integers below `high`."""

    kind: str
    size: tuple[int, ...]
    high: int = 0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        if self.kind == "ids":
            return rng.integers(self.high, size=self.size)
        if self.kind == "heads":  # (B, nh, T, hs), a view of q, k or v in the product (B, T, 3 C) that makes all three
            B, nh, T, hs = self.size
            packed = rng.standard_normal((B, T, 3, nh, hs), dtype=np.float32)
            return packed[:, :, 0].transpose(0, 2, 1, 3)
        return rng.standard_normal(self.size, dtype=np.float32)


@dataclass(frozen=True)
class Operation:
    """ours(F, *inputs) and theirs(TF, *inputs) compute the same; `work` and `backward_work` count it in `unit`."""

    inputs: list[Input]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    unit: str  # "FLOP" or "B"
    work: float
    backward_work: float


def operations(s: Shape) -> dict[str, Operation]:
    """All operations that have a backward, by name."""
    B, T, C, V, rows = s.B, s.T, s.C, s.V, s.B * s.T
    heads = Input("heads", (B, s.nh, T, C // s.nh))
    activation, wide = Input("activation", (B, T, C)), Input("activation", (B, T, 4 * C))
    number = 4  # bytes of a float32

    def linear(wide_in: int, wide_out: int, bias: bool) -> Operation:
        sizes = [(wide_out, wide_in)] + [(wide_out,)] * bias
        flops = 2 * rows * wide_in * wide_out
        return Operation(
            [Input("activation", (B, T, wide_in)), *(Input("parameter", size) for size in sizes)],
            lambda F, *inputs: F.linear(*inputs),
            lambda TF, *inputs: TF.linear(*inputs),
            "FLOP",
            flops,
            2 * flops,  # one product for the input's gradient and one for the weight's
        )

    def attention(p: float) -> Operation:
        flops = 2 * (2 * B * T * T * C) / 2  # two products of (T, hs) and (hs, T) for each head, half of them masked
        return Operation(
            [heads] * 3,
            lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, causal=True, dropout_p=p),
            lambda TF, q, k, v: TF.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p),
            "FLOP",
            flops,
            2 * flops,
        )

    def moving(inputs: list[Input], ours: Any, theirs: Any, forward: float, backward: float) -> Operation:
        """An operation that is counted by the numbers it reads and writes."""
        return Operation(inputs, ours, theirs, "B", number * forward, number * backward)

    return {
        "-x of four numbers": moving([Input("activation", (4,))], lambda F, x: -x, lambda TF, x: -x, 0, 0),
        "linear, C to 3 C": linear(C, 3 * C, s.bias),
        "linear, C to C": linear(C, C, s.bias),
        "linear, C to 4 C": linear(C, 4 * C, s.bias),
        "linear, 4 C to C": linear(4 * C, C, s.bias),
        "linear, C to V": linear(C, V, False),
        "attention, causal": attention(0.0),
        f"attention, causal, dropout {DROPOUT}": attention(DROPOUT),
        "layer_norm": moving(
            [activation] + [Input("parameter", (C,))] * (1 + s.bias),
            lambda F, x, *parameters: F.layer_norm(x, *parameters),
            lambda TF, x, *parameters: TF.layer_norm(x, (C,), *parameters),
            2 * rows * C,
            3 * rows * C,
        ),
        "gelu": moving(
            [wide],
            lambda F, x: F.gelu(x),
            lambda TF, x: TF.gelu(x, approximate="tanh"),
            2 * rows * 4 * C,
            3 * rows * 4 * C,
        ),
        f"dropout {DROPOUT}": moving(
            [activation],
            lambda F, x: F.dropout(x, DROPOUT),
            lambda TF, x: TF.dropout(x, DROPOUT),
            2 * rows * C,
            2 * rows * C,
        ),
        "add": moving([activation] * 2, lambda F, a, b: a + b, lambda TF, a, b: a + b, 3 * rows * C, 0),
        "embedding": moving(
            [Input("ids", (B, T), V), Input("parameter", (V, C))],
            lambda F, ids, weight: F.embedding(ids, weight),
            lambda TF, ids, weight: TF.embedding(ids, weight),
            2 * rows * C,
            rows * C + V * C,
        ),
        "cross_entropy": moving(
            [Input("activation", (B, T, V)), Input("ids", (B, T), V)],
            lambda F, logits, targets: F.cross_entropy(logits, targets),
            lambda TF, logits, targets: TF.cross_entropy(logits.flatten(0, 1), targets.flatten()),
            rows * V,
            2 * rows * V,
        ),
    }


UPDATES = ["clip_grad_norm", "AdamW step"]  # measured on a whole model; they have no backward


def update_bytes(name: str, numbers: int) -> float:
    """Clipping reads and writes gradients; AdamW reads weights, gradients and two moments, and writes three of them."""
    return 4.0 * numbers * {"clip_grad_norm": 2, "AdamW step": 7}[name]


# Timing. A `Cycle` does an operation once: seconds forward, seconds backward, and the value.

Cycle = Callable[[], tuple[float, float]]


def upstream(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A gradient as it arrives from above; that of attention's heads is a view of (B, T, C)."""
    if len(shape) != 4:
        return np.asarray(rng.standard_normal(shape, dtype=np.float32))
    B, nh, T, hs = shape
    return rng.standard_normal((B, T, nh, hs), dtype=np.float32).transpose(0, 2, 1, 3)


def minigrad_operation(operation: Operation) -> Cycle:
    import minigrad as mg
    from minigrad import functional as F

    class Inside(mg.Function):
        """Stands for the network below an activation: takes its gradient and drops it. A leaf would accumulate it."""

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> None:
            return None

    rng = np.random.default_rng(0)
    arrays = [x.array(rng) for x in operation.inputs]
    leaves = [a if a.dtype.kind == "i" else mg.nn.Parameter(a) for a in arrays]
    gradient = None

    def cycle() -> tuple[float, float]:
        nonlocal gradient
        inputs = []
        for x, leaf in zip(operation.inputs, leaves, strict=True):
            if x.kind == "parameter":
                leaf.zero_grad()
            inputs.append(Inside.apply(leaf) if x.kind in ("activation", "heads") else leaf)
        start = time.perf_counter()
        y = operation.ours(F, *inputs)
        middle = time.perf_counter()
        if gradient is None:
            gradient = upstream(y.shape, rng)
            middle = time.perf_counter()
        y.backward(gradient)
        return middle - start, time.perf_counter() - middle

    return cycle


def torch_operation(operation: Operation) -> Cycle:
    import torch
    from torch.nn import functional as TF

    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(x.array(rng)) for x in operation.inputs]
    wanted = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    gradient = None

    def cycle() -> tuple[float, float]:
        nonlocal gradient
        start = time.perf_counter()
        y = operation.theirs(TF, *inputs)
        middle = time.perf_counter()
        if gradient is None:
            gradient = torch.from_numpy(upstream(tuple(y.shape), rng))
            middle = time.perf_counter()
        torch.autograd.grad(y, wanted, gradient)
        return middle - start, time.perf_counter() - middle

    return cycle


def minigrad_update(name: str, s: Shape) -> Cycle:
    """On a GPT with the gradients that a backward pass left, as in training."""
    from gpt import GPT, GPTConfig
    from minigrad import optim

    model = GPT(GPTConfig(block_size=s.T, vocab_size=s.V, n_layer=s.n_layer, n_head=s.nh, n_embd=s.C, bias=s.bias))
    optimizer = model.configure_optimizer(lr=1e-4)
    ids = np.random.default_rng(0).integers(s.V, size=(1, 8))
    _, loss = model(ids, ids)
    loss.backward()
    return update_cycle(name, lambda limit: optim.clip_grad_norm(optimizer.params, limit), optimizer.step)


def torch_update(name: str, s: Shape) -> Cycle:
    import torch
    from torch_gpt import TorchGPT

    model = TorchGPT(block_size=s.T, vocab_size=s.V, n_layer=s.n_layer, n_head=s.nh, n_embd=s.C, bias=s.bias)
    optimizer = model.configure_optimizer(lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(s.V, size=(1, 8)))
    _, loss = model(ids, ids)
    loss.backward()
    parameters = list(model.parameters())
    return update_cycle(name, lambda limit: torch.nn.utils.clip_grad_norm_(parameters, limit), optimizer.step)


def update_cycle(name: str, clip: Callable[[float], Any], step: Callable[[], Any]) -> Cycle:
    norm = float(clip(math.inf))

    def cycle() -> tuple[float, float]:
        nonlocal norm
        start = time.perf_counter()
        if name == "AdamW step":
            step()
        else:  # a limit a little below the norm, so that every call has to scale
            norm = min(norm, float(clip(0.999 * norm)))
        return time.perf_counter() - start, 0.0

    return cycle


class Contestant:
    """What runs in a contestant's process."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.built: tuple[tuple[str, str], Cycle] | None = None

    def prepare(self, threads: int | None) -> str:
        return prepare(self.library, threads)

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
            self.built = (shape, name), self.build(ALL_SHAPES[shape], name)
        cycles = []
        until = time.perf_counter() + budget
        while not cycles or time.perf_counter() < until:
            cycles.append(self.built[1]())
        return [1e6 * statistics.median(times) for times in zip(*cycles, strict=True)]

    def build(self, shape: Shape, name: str) -> Cycle:
        if name in UPDATES:
            return (minigrad_update if self.library == "minigrad" else torch_update)(name, shape)
        operation = operations(shape)[name]
        return (minigrad_operation if self.library == "minigrad" else torch_operation)(operation)


def best(work: Callable[[], Any]) -> float:
    """The shortest of at least three times, in seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


# Measuring and reporting


def measure(processes: dict[str, Any], shape: str, name: str, rounds: int, budget: float) -> dict[str, Any]:
    """µs of every round, by contestant and direction."""

    def turn(who: str) -> list[float]:
        return processes[who].call("turn", shape=shape, name=name, budget=budget)

    results = take_turns(list(processes), rounds, turn)
    return {
        who: {"forward": [forward for forward, _ in turns], "backward": [backward for _, backward in turns]}
        for who, turns in results.items()
    }


def lines(shape: Shape, figures: dict[str, dict[str, Any]], rates: dict[str, float]) -> list[list[str]]:
    """A line for each direction of each operation."""
    known = operations(shape)
    result = []
    for name, figure in figures.items():
        if name in UPDATES:
            numbers = parameter_count(shape)
            directions = {"forward": ("B", update_bytes(name, numbers), name)}
        else:
            operation = known[name]
            directions = {
                "forward": (operation.unit, operation.work, f"{name}: forward"),
                "backward": (operation.unit, operation.backward_work, f"{name}: backward"),
            }
        for direction, (unit, work, title) in directions.items():
            us = {who: values[direction] for who, values in figure.items()}
            typical = {who: Spread.of(values).median for who, values in us.items()}
            line = [title, *(short(typical.get(who)) for who in ("minigrad", "reference", "PyTorch", "PyTorch tuned"))]
            for other in ("PyTorch", "PyTorch tuned"):
                line.append(str(ratio(us[other], us["minigrad"])) if other in us else "–")
            if work:
                rate = 1e6 * work / typical["minigrad"]
                line += [f"{short(rate / 1e9)} G{unit}/s", f"{rate / rates[unit]:.0%}"]
            else:
                line += ["–", "–"]
            result.append(line)
    return result


def parameter_count(s: Shape) -> int:
    """How many numbers the model learns: embeddings, the matrices of the blocks, biases, layer norms."""
    block = 12 * s.C * s.C + 2 * s.C + s.bias * (9 * s.C + 2 * s.C)
    return s.V * s.C + s.T * s.C + s.n_layer * block + s.C + s.bias * s.C


def main() -> None:
    parser = arguments(
        "Operation by operation, forward and backward, against PyTorch.", quick="small and baby only, fewer rounds"
    )
    parser.add_argument("--shapes", metavar="NAME,…", help=f"of {', '.join(SHAPES)} (default: all)")
    parser.add_argument("--ops", metavar="START,…", help="only operations whose names begin so")
    args = parser.parse_args()
    if args.worker:
        serve(Contestant(args.worker))
        return
    shapes = choose("shape", ALL_SHAPES, args.shapes) if args.shapes else list(SHAPES)[: 2 if args.quick else None]
    known = [*operations(ALL_SHAPES[shapes[0]]), *UPDATES]
    names = [name for name in known if not args.ops or name.startswith(tuple(args.ops.split(",")))]
    if not names:
        raise BenchmarkError(f"no operation begins with {args.ops}; there are {'; '.join(known)}")
    rounds, budget = (args.rounds or 2, 0.02) if args.quick else (args.rounds or 5, 0.05)

    print(machine())
    runs = []
    for threads in args.threads:
        with workers(__file__, ["reference", *opponents(args.against)]) as processes:
            about = dict.fromkeys(worker.call("prepare", threads=threads) for worker in processes.values())
            measured = [worker.call("machine_rates") for worker in processes.values()]
            rates = {unit: max(rates[unit] for rates in measured) for unit in ("FLOP", "B")}
            print("\n" + "\n".join(about))
            print(f"matrix product {short(rates['FLOP'] / 1e9)} GFLOP/s, copy {short(rates['B'] / 1e9)} GB/s")
            figures: dict[str, dict[str, Any]] = {}
            for shape in shapes:
                figures[shape] = {}
                for name in names:
                    print(f"measuring {shape}: {name} …", file=sys.stderr, flush=True)
                    figures[shape][name] = measure(processes, shape, name, rounds, budget)
                s = ALL_SHAPES[shape]
                title = f"{shape}: B {s.B}, T {s.T}, C {s.C}, {s.nh} heads, V {s.V}; µs"
                header = [title, "minigrad", "reference", "PyTorch", "tuned", "× PyTorch", "× tuned", "rate", "share"]
                print("\n" + table(header, lines(s, figures[shape], rates)), flush=True)
        runs.append({"threads": threads, "rates": rates, "us": figures})
    print("\nMedians; in brackets the smallest and largest ratio of a round. Rate and share are minigrad's.")
    write_json(args.json, {"runs": runs})


if __name__ == "__main__":
    run_benchmark(main)
