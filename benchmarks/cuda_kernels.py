"""On an NVIDIA card: every CUDA kernel by itself, and where the time of a training step goes.

    python -m benchmarks.cuda_kernels                           # time, rate and error of every kernel
    python -m benchmarks.cuda_kernels --quick                   # bfloat16 only
    python -m benchmarks.cuda_kernels --profile cuda-124m       # of a row of train_step.py; needs PyTorch's profiler

`cases(shape, dtype)` lists the operations that have a kernel, as a training step calls them, and the updates. Rates are
compared with those of a copy and of matrix products, which are measured first. tests/cuda/test_cuda_kernels_on_card.py
checks the same cases.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from benchmarks import command, contestants, cuda_steps, operations, workers
from benchmarks.figures import short, table
from benchmarks.operations import Input, Operation, Shape, laid_out, parameter_shapes, upstream
from minigrad import functional as F
from minigrad import kernels, nn, optim
from minigrad.backend import as_dtype, get_array_module
from minigrad.kernels.cuda.cublaslt import product
from minigrad.kernels.cuda.products import rounding_to_tf32

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PRECISION = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}  # half a step between numbers near 1
TF32_PRECISION = 2**-11  # of the factors of a product
DRAWN = (1 << 21) + 3  # random numbers, which larger arrays repeat

GPT2 = Shape(B=32, T=1024, C=768, nh=12, V=50304, n_layer=12, bias=True)
PART = GPT2._replace(B=2, n_layer=1)  # large enough to compare with the reference, which computes in float64
ALLOWED_ERRORS = 8  # roundings: an error that is larger is pointed out
PROFILED = 5  # steps of a profile
TRIAL = Shape(B=2, T=17, C=128, nh=2, V=65, n_layer=1, bias=True)

Results = dict[str, list[Any]]  # by "forward" and "backward"


class Case(NamedTuple):
    """A line of the table for each direction. `amounts` count `unit`s, "B" or "FLOP", for the shape it was made for.

    results(reference) gives what every direction computes, by the kernel or by its reference in float64; timed() what
    to time. precision: of one rounding; the errors of sums of rounded numbers stay within a few of these.
    """

    unit: str
    amounts: dict[str, float]
    results: Callable[[bool], Results]
    timed: Callable[[], dict[str, Callable[[], Any]]]
    precision: float
    comparable: bool = True
    fills: int = 2  # see `Stopwatch`


@functools.cache
def drawn(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2 * n, dtype=np.float32)


def numbers(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Normally distributed numbers on the card, of two million that are drawn once: `seed` says where to begin."""
    start = 1009 * seed % DRAWN
    host = drawn(DRAWN)[start : start + min(DRAWN, math.prod(shape))]
    some = mg.Tensor(host.astype(as_dtype(dtype)), device="cuda").data
    array = get_array_module(some).empty(shape, some.dtype)
    flat, some = (x.reshape(-1).view(f"uint{8 * x.itemsize}") for x in (array, some))  # CuPy copies bits of any dtype
    for start in range(0, flat.size, some.size):
        part = flat[start : start + some.size]
        part[...] = some[: part.size]
    return array


def on_card(x: Input, dtype: str, seed: int) -> Any:
    if x.kind == "ids":  # small ones more often, as in real texts
        ids = (x.high * np.random.default_rng(0).random(x.size) ** 3).astype(np.int64)
        return mg.Tensor(ids, device="cuda").data
    return laid_out(x.kind, x.size, lambda shape: numbers(dtype, *shape, seed=seed))


def wide(x: Any) -> Any:
    """Floating-point arrays as float64; everything else as it is."""
    return x if x.dtype.kind in "biu" else x.astype("float32").astype("float64")  # CuPy converts bfloat16 no further


def cases(s: Shape, dtype: str) -> dict[str, Case]:
    """All kernels by name, for arrays of one dtype, as a training step of this shape calls them."""
    scores = Input("activation", (s.B * s.T, s.T))
    amount = BYTES[dtype] * s.B * s.T * s.T
    more = {"softmax": Operation([scores], lambda F, x: F.softmax(x), None, "B", 2 * amount, 3 * amount)}
    if dtype != "float32" and s.C % 128 == 0:
        more["attention, causal, heads of 128"] = operations.attention(s, s.C // 128, 0.0, 5)
    known = {**operations.operations(s, BYTES[dtype], 5), **more}
    left_out = ("-x of four numbers", "add")  # which have no kernel of their own
    return {
        **{name: of_operation(op, name, dtype) for name, op in known.items() if name not in left_out},
        **{name: of_update(name, s, dtype) for name in ("clip_grad_norm", "AdamW step")},
    }


def of_operation(op: Operation, name: str, dtype: str) -> Case:
    def forward(inputs: list[Any]) -> Any:
        mg.manual_seed(5)  # so that dropout drops the same elements
        with rounding_to_tf32():
            return op.ours(F, *inputs)

    def tensors(reference: bool = False) -> list[Any]:
        arrays = [on_card(x, dtype, seed) for seed, x in enumerate(op.inputs)]
        arrays = [wide(x) for x in arrays] if reference else arrays
        return [x if x.dtype.kind == "i" else mg.Tensor(x, requires_grad=True) for x in arrays]

    def gradient(y: Any) -> Any:
        return upstream(y.shape, lambda shape: numbers(dtype, *shape, seed=99))

    def results(reference: bool) -> Results:
        with kernels.reference() if reference else kernels.using("cpu", "cuda"):
            inputs = tensors(reference)
            y = forward(inputs)
            g = gradient(y)
            with rounding_to_tf32():
                y.backward(wide(g) if reference else g)
        return {"forward": [y.data], "backward": [x.grad for x in inputs if isinstance(x, mg.Tensor)]}

    def timed() -> dict[str, Callable[[], Any]]:
        inputs = [operations.below().apply(x) if isinstance(x, mg.Tensor) else x for x in tensors()]
        y = forward(inputs)
        g = gradient(y)

        def backward() -> None:
            with rounding_to_tf32():
                y.backward(g, retain_graph=True)

        return {"forward": lambda: forward(inputs), "backward": backward}

    precision = TF32_PRECISION if dtype == "float32" and op.unit == "FLOP" else PRECISION[dtype]
    comparable = not (name.startswith("attention") and "dropout" in name)  # the reference draws other masks
    return Case(op.unit, {"forward": op.forward, "backward": op.backward}, results, timed, precision, comparable)


def of_update(name: str, s: Shape, dtype: str) -> Case:
    """Clipping or AdamW over all parameters, as the optimizer calls them, with the tables that they send to the card.

    It takes the host milliseconds to make these, which a training step hides behind other work, or in a CUDA graph.
    Clipping reads gradients twice and writes them once. AdamW reads gradient, moments and weight, and writes the last
    three; a 16-bit parameter has its float32 master beside it.
    """
    shapes = parameter_shapes(s)

    def prepared(reference: bool = False) -> tuple[list[Any], Callable[[], Any]]:
        parameters = []
        for i, shape in enumerate(shapes):
            weight, gradient = numbers(dtype, *shape, seed=i), numbers(dtype, *shape, seed=1000 + i)
            parameters.append(nn.Parameter(mg.Tensor(wide(weight) if reference else weight)))
            parameters[-1].grad = wide(gradient) if reference else gradient
        optimizer = optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
        return parameters, operations.update(
            name, lambda limit: optim.clip_grad_norm(parameters, limit), optimizer.step
        )

    def results(reference: bool) -> Results:
        with kernels.reference() if reference else kernels.using("cpu", "cuda"):
            parameters, run = prepared(reference)
            norm = run()
        return {"forward": [p.data for p in parameters] if norm is None else [norm, *(p.grad for p in parameters)]}

    count = sum(map(math.prod, shapes))
    moved = 3 * BYTES[dtype] if name == "clip_grad_norm" else 7 * 4 if dtype == "float32" else 2 * 2 + 6 * 4
    return Case(
        "B", {"forward": moved * count}, results, lambda: {"forward": prepared()[1]}, PRECISION[dtype], fills=16
    )


def largest_errors(case: Case) -> dict[str, float | None]:
    """How far each direction is from the reference, as a share of the largest number there; None without one."""
    if not case.comparable:
        return dict.fromkeys(case.amounts)
    worst: dict[str, float | None] = {}
    references = case.results(True)
    for direction, results in case.results(False).items():
        errors = []
        for ours, theirs in zip(results, references[direction], strict=True):
            assert ours.shape == theirs.shape, f"shape {ours.shape}, and {theirs.shape} of the reference"
            xp = get_array_module(theirs)
            errors.append(float(xp.abs(wide(ours) - theirs).max() / xp.maximum(xp.abs(theirs).max(), 1e-30)))
        worst[direction] = float(np.max(errors))  # NaN if one is
    return worst


# Times, and rates of the card


class Stopwatch:
    """Milliseconds of single calls, with a cold L2 cache, and without the time that the host takes to start them.

    Before each call a buffer is filled that is larger than any cache, so many times that it takes the card longer than
    the host takes to hand over the call: so the card does not wait between the two events.
    """

    def __init__(self, fill_bytes: int = 1 << 30) -> None:
        self.cupy = importlib.import_module("cupy")
        self.buffer = self.cupy.empty(fill_bytes, "uint8")

    def times(self, run: Callable[[], Any], repeats: int, fills: int = 2) -> list[float]:
        for _ in range(2):  # compiled, and memory at hand
            run()
        marks = []
        stream = self.cupy.cuda.get_current_stream()
        for _ in range(repeats):
            for _ in range(fills):
                self.buffer.fill(0)
            start = stream.record()
            run()
            marks.append((start, stream.record()))
        self.cupy.cuda.Device().synchronize()
        return [float(self.cupy.cuda.get_elapsed_time(*mark)) for mark in marks]


def product_rate(dtype: str, n: int, watch: Stopwatch | None = None) -> float:
    """FLOP/s of matrix products (n, n), the median. Their memory is given back, since what a step takes is measured."""
    watch = watch or Stopwatch(1 << 30 if n > 1000 else 1 << 10)
    tf32 = dtype == "tf32"
    factors: Any = [numbers("float32" if tf32 else dtype, n, n, seed=seed) for seed in range(2)]
    ms = statistics.median(watch.times(lambda: product(*factors, tf32=tf32), 10))
    factors.clear()
    watch.cupy.get_default_memory_pool().free_all_blocks()
    return 2e3 * n**3 / ms


def copy_rate(watch: Stopwatch, size: int) -> float:
    """Bytes read and written a second."""
    source, target = numbers("float32", size // 4), numbers("float32", size // 4)
    return 2e3 * source.nbytes / statistics.median(watch.times(lambda: target.__setitem__(..., source), 10))


class Contestant(contestants.Contestant):
    def prepare(self, threads: int | None) -> str:
        return f"{super().prepare(threads)}, {cuda_steps.about_card('minigrad')}"

    def rates(self, trial: bool) -> dict[str, float]:
        self.watch = Stopwatch(1 << 10 if trial else 1 << 30)
        products = {dtype: product_rate(dtype, 64 if trial else 8192, self.watch) for dtype in ("bfloat16", "tf32")}
        return {"copy": copy_rate(self.watch, 1 << 12 if trial else 1 << 31), **products}

    def kernel(self, name: str, dtype: str, trial: bool, repeats: int) -> dict[str, Any]:
        """The times of a kernel in µs, and its largest error on a part of the batch, for each direction."""
        errors = largest_errors(cases(TRIAL if trial else PART, dtype)[name])
        case = cases(TRIAL if trial else GPT2, dtype)[name]
        return {
            way: {"us": [1e3 * ms for ms in self.watch.times(run, repeats, case.fills)], "error": errors[way]}
            for way, run in case.timed().items()
        }


def measure(args: Any, kernels: dict[str, Any], rates: dict[str, float]) -> None:
    """Each kernel; after one that fails, the next gets a new process, since an error can stay with the old one."""
    left = [(dtype, name) for dtype in ("bfloat16", "float32")[: 2 - args.quick] for name in cases(TRIAL, dtype)]
    while left:
        for _, processes in workers.prepared("benchmarks.cuda_kernels", ["minigrad"], args):
            rates.update(processes["minigrad"].call("rates", trial=args.trial))
            failed = False
            while left and not failed:
                dtype, name = left.pop(0)
                work = {"name": name, "dtype": dtype, "trial": args.trial, "repeats": args.rounds or 20}
                try:
                    kernels[f"{name}, {dtype}"] = processes["minigrad"].call("kernel", **work)
                except workers.BenchmarkError as error:
                    print(f"{name}, {dtype}: {error}", file=sys.stderr, flush=True)
                    kernels[f"{name}, {dtype}"], failed = {"failed": str(error)}, True


def lines(kernels: dict[str, Any], rates: dict[str, float], trial: bool) -> list[list[str]]:
    result = []
    for title, figure in kernels.items():
        name, _, dtype = title.rpartition(", ")
        case = cases(TRIAL if trial else GPT2, dtype)[name]
        if "failed" in figure:
            result.append([title, "failed", "–", "–", "–"])
            continue
        best = rates["copy" if case.unit == "B" else "tf32" if dtype == "float32" else dtype]
        for way, measured in figure.items():
            us = statistics.median(measured["us"])
            rate = case.amounts[way] / (us / 1e6)
            in_words = f"{rate / 1e9:,.0f} GB/s" if case.unit == "B" else f"{rate / 1e12:.1f} TFLOP/s"
            cells = [short(us), in_words, f"{rate / best:.0%}", error_cell(measured["error"], case.precision)]
            result.append([title if len(figure) == 1 else f"{name}: {way}, {dtype}", *cells])
    return result


def error_cell(error: float | None, precision: float) -> str:
    if error is None:
        return "–"
    return f"{error:.1e}" + ("" if error <= ALLOWED_ERRORS * precision + 1e-5 else " (!)")


# Where the time of a step goes, in this process


def profile(name: str, row: Any, graph: bool) -> dict[str, Any]:
    """Milliseconds of a step, and calls and milliseconds a step of every kernel, by PyTorch's profiler."""
    training = cuda_steps.Training("minigrad", row, "", graph)
    ms = statistics.median(Stopwatch(1 << 10).times(training.step, 2 * PROFILED, fills=0))
    found = kernels_of_trace(trace(lambda: training.steps(PROFILED)), PROFILED)
    print(f"\n{row.title}: {ms:.2f} ms a step\n")
    print(table(["kernel", "calls a step", "µs a step", "of the step"], profile_lines(ms, found)))
    return {"ms": ms, "kernels": found}


def trace(run: Callable[[], Any]) -> dict[str, Any]:
    """What ran on the card meanwhile, in the format of chrome://tracing."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        return json.loads(Path(folder, "trace.json").read_text("utf-8"))


def kernels_of_trace(trace: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Calls and milliseconds a step, by name."""
    found: dict[str, list[float]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            calls, ms = found.get(event["name"], (0.0, 0.0))
            found[event["name"]] = [calls + 1 / steps, ms + event["dur"] / 1e3 / steps]
    return found


def profile_lines(whole: float, found: dict[str, list[float]]) -> list[list[str]]:
    """The kernels that take most, the rest together, and what remains of the step."""
    most = sorted(found.items(), key=lambda item: -item[1][1])
    parts = [(name, *values) for name, values in most[:40]]
    parts.append(("all others", *(sum(values[i] for _, values in most[40:]) for i in range(2))))
    parts.append(("not in these, or waiting", 0, whole - sum(ms for _, ms in found.values())))
    return [[name[:70], short(calls), f"{1e3 * ms:,.1f}", f"{ms / whole:.1%}"] for name, calls, ms in parts]


def benchmark(args: Any) -> dict[str, Any]:
    from benchmarks.train_step import ALL_ROWS

    os.environ.setdefault("MINIGRAD_KERNELS", "cuda")
    if args.profile:
        rows = command.choose("row", [name for name, row in ALL_ROWS.items() if row.device == "cuda"], args.profile)
        cuda_steps.about_card("minigrad")
        return {"profile": {name: profile(name, ALL_ROWS[name], args.graph) for name in rows}}
    figures: dict[str, dict[str, Any]] = {"kernels": {}, "rates": {}}
    try:
        measure(args, **figures)
    finally:  # if it is stopped, what was measured until then
        if figures["kernels"]:
            rates = [f"{name} {rate / 1e12:,.2f}" for name, rate in figures["rates"].items()]
            print(f"the card itself: TB/s of a copy, TFLOP/s of products: {', '.join(rates)}\n")
            header = ["kernel", "µs", "rate", "of the card's", "largest error"]
            print(table(header, lines(**figures, trial=args.trial)))
            print("\nMedians with a cold L2 cache. Errors are from the reference in float64, as a share of its largest")
            print(f"number; (!) marks more than {ALLOWED_ERRORS} roundings.")
    return figures


def main() -> None:
    parser = command.arguments("Every CUDA kernel by itself, and the profile of a training step.", "bfloat16 only")
    parser.add_argument("--profile", metavar="ROW,…", help="where the time of these training steps goes, instead")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="no CUDA graph of a step")
    parser.add_argument("--trial", action="store_true", help="tiny kernels, to try the benchmark itself")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
