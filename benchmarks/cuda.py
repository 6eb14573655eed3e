"""On an NVIDIA card: whole training steps against PyTorch, and every kernel by itself.

    python benchmarks/cuda.py                                   # training steps, then kernels; some minutes
    python benchmarks/cuda.py --quick                           # fewer steps, and without float32
    python benchmarks/cuda.py --against none                    # without PyTorch
    python benchmarks/cuda.py --rows baby,124m --tables steps
    python benchmarks/cuda.py --tables profile --rows 124m      # where the time of a step goes
    python benchmarks/cuda.py --no-graph                        # minigrad's kernels launched one by one
    python benchmarks/cuda.py --kernels reference --rows baby-float32    # minigrad on plain CuPy, which knows no other

A step is what a training loop repeats: draw a batch, send it to the card, forward, backward, clip the gradients to norm
1, AdamW. minigrad's is `gpt.trainer.Trainer.step`, what users run. PyTorch is the GPT of torch_gpt.py with fused
attention (SDPA), fused AdamW and, for bfloat16, autocast: eager, and through torch.compile. All read their batches from
the same tokens, and have to begin at the same loss.

Everyone has a process of its own on the one card, and they take turns. A step's time is that between two CUDA events,
one after each step, so it includes the card's waiting for the host. Model FLOPs utilisation is the floating-point
operations that a step needs at least,

    6 tokens (12 layers C^2 + V C)      2 for each weight of a product and each token, and twice that backward
  + 6 tokens layers T C                 attention's two products, half of them masked, and twice that backward

by the time, as a share of the rate of matrix products in this precision, measured on the card at the start. Measured
then is a copy too, with whose bytes a second the kernels that are bound by memory are compared.
"""

# ruff: noqa: E402  (what is imported depends on the path, which is set before)

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "cuda":  # NVIDIA's package is called so too; PyTorch looks for it, and finds this file beside a script
    raise ImportError("this is a benchmark of minigrad, not NVIDIA's package `cuda`")
ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of this file's folder: CuPy needs NVIDIA's package

import numpy as np

from benchmarks.common import (
    CONTESTANTS,
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
)

MODES = {"PyTorch eager": "eager", "torch.compile": "compile", "torch.compile, graphs": "graphs"}
TABLES = ["steps", "kernels", "profile"]
WARM_UP = 10  # steps before any is timed: compiling, choosing algorithms, capturing a graph
LEAD_IN = 3  # steps at the start of a turn, in which the card comes up to speed
PROFILED = 5  # steps of a profile
LEARNING_RATE = 3e-4
SAME = 0.05  # by how much the losses of contestants may differ; dropout and weights are drawn by each
ALLOWED_ERRORS = 8  # roundings: an error that is larger is pointed out


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a model, its batch, and how much faster than PyTorch it is meant to be."""

    title: str
    model: dict[str, Any]  # options of GPTConfig and of TorchGPT
    batch: int
    dtype: str  # "bfloat16", "float32", or "tf32": float32 with rounded products
    goals: dict[str, float]  # at least so many times as fast as each
    memory_goal: bool = False  # no more memory than torch.compile
    in_quick: bool = True
    steps: int = 20  # in a turn
    rounds: int = 5

    @property
    def tokens(self) -> int:
        return self.batch * int(self.model["block_size"])

    @property
    def flops(self) -> float:
        """Of one step; see above."""
        m = self.model
        weights = 12 * m["n_layer"] * m["n_embd"] ** 2 + m["vocab_size"] * m["n_embd"]
        return 6.0 * self.tokens * (weights + m["n_layer"] * m["block_size"] * m["n_embd"])


def shape(n_layer: int, n_head: int, n_embd: int, block_size: int, vocab_size: int, **more: Any) -> dict[str, Any]:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    return {**sizes, "vocab_size": vocab_size, "bias": False, "dropout": 0.0, **more}


BABY = shape(6, 6, 384, 256, 65, dropout=0.2)
GPT2 = shape(12, 12, 768, 1024, 50304, bias=True)  # the vocabulary padded to a multiple of 128
TINY = shape(1, 2, 32, 8, 65, dropout=0.1)
ROWS = {
    "baby": Row("baby, bfloat16, batch 64 × 256, dropout 0.2", BABY, 64, "bfloat16", {"torch.compile": 1.3}),
    "124m": Row(
        "GPT-2 124M, bfloat16, batch 32 × 1024",
        GPT2,
        32,
        "bfloat16",
        {"torch.compile": 1.0, "PyTorch eager": 1.3},
        memory_goal=True,
    ),
    "124m-tf32": Row(
        "GPT-2 124M, float32 (tf32), batch 32 × 1024", GPT2, 32, "tf32", {"torch.compile": 1.0}, in_quick=False
    ),
}
OTHER_ROWS = {  # only on request; the tiny ones are to try the benchmark itself
    "baby-float32": Row("baby, float32, batch 64 × 256, dropout 0.2", BABY, 64, "float32", {}),
    "tiny": Row("tiny, bfloat16", TINY, 2, "bfloat16", {"torch.compile": 1.0}, True, steps=2, rounds=2),
    "tiny-tf32": Row("tiny, float32", TINY, 2, "tf32", {}, steps=2, rounds=2),
}
ALL_ROWS = {**ROWS, **OTHER_ROWS}


def tokens_to_learn(vocab_size: int) -> np.ndarray:
    """Token ids (N,), the small ones more often: a model soon learns how often."""
    return (vocab_size * np.random.default_rng(0).random(1 << 20) ** 3).astype(np.int64)


# Contestants


class Guarded:
    """A contestant whose calls answer with {"failed": why} instead of raising: the others go on."""

    def __init__(self, contestant: Any) -> None:
        self.contestant = contestant

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            try:
                return getattr(self.contestant, method)(**arguments)
            except Exception as error:
                traceback.print_exc()
                return {"failed": why(error)}

        return call


def why(error: Exception) -> str:
    """One line about an error: out of memory is what a smaller card will meet."""
    from minigrad.memory import describe_out_of_memory

    if isinstance(error, MemoryError):
        with contextlib.suppress(Exception):
            return describe_out_of_memory(error)
    lines = str(error).strip().splitlines()
    text = "out of memory" if "OutOfMemory" in type(error).__name__ else f"{type(error).__name__}"
    return f"{text}: {lines[0]}" if lines else text


class Steps:
    """What contestants share: steps that are timed by events. Each gives `step`, `events`, `free_bytes` and `read`."""

    step: Callable[[], Any]
    events: Any

    def warm_up(self) -> float:
        """The first loss, after it a few steps more."""
        first = self.read(self.step())
        for _ in range(WARM_UP):
            self.step()
        self.events.wait()
        return first

    def turn(self, steps: int) -> dict[str, Any]:
        """Milliseconds of each step, of a step by the host's clock, and the last loss."""
        begun = time.perf_counter()
        for _ in range(LEAD_IN):
            self.step()
        marks, loss = [self.events.record()], None
        for _ in range(steps):
            loss = self.step()
            marks.append(self.events.record())
        self.events.wait()
        wall = (time.perf_counter() - begun) / (steps + LEAD_IN)
        ms = [self.events.ms(start, end) for start, end in zip(marks, marks[1:], strict=False)]
        return {"ms": ms, "wall_ms": 1e3 * wall, "loss": self.read(loss)}

    def read(self, loss: Any) -> float:
        return float(loss.item())


class Minigrad(Steps):
    """minigrad's trainer, on the card."""

    def prepare(self, threads: int | None) -> dict[str, Any]:
        import minigrad as mg

        try:
            mg.Tensor(0.0, device="cuda")
        except mg.DeviceError as error:
            return {"missing": str(error)}
        self.cupy = importlib.import_module("cupy")
        runtime = self.cupy.cuda.runtime
        versions = {
            "card": runtime.getDeviceProperties(0)["name"].decode(),
            "driver's CUDA": cuda_version(runtime.driverGetVersion()),
            "CUDA": cuda_version(runtime.runtimeGetVersion()),
            "CuPy": self.cupy.__version__,
        }
        kernels = os.environ.get("MINIGRAD_KERNELS") or "default"
        about = f"{prepare('minigrad', threads)}, CuPy {versions['CuPy']}, kernels: {kernels}"
        return {"about": about, "versions": versions}

    def build(self, row: str, graph: bool, mode: str = "") -> dict[str, Any]:
        from benchmarks.cuda_kernels import Events

        before, hook = self.free_bytes(), self.new_hook()
        self.events = Events()
        with hook:
            self.trainer = new_trainer(ALL_ROWS[row], graph)
            first = self.warm_up()
        held, captured = before - self.free_bytes(), self.trainer.graph
        return {
            "first": first,
            "peak_mb": hook.peak / 1e6,
            "held_mb": held / 1e6,
            "graph": captured is not None and captured.recording is not None,
        }

    def step(self) -> Any:
        from minigrad.kernels.cuda.products import rounding_to_tf32

        with rounding_to_tf32(self.trainer.config.dtype == "tf32"):  # as Trainer.train does
            loss, _ = self.trainer.step(LEARNING_RATE)
        return loss

    def free_bytes(self) -> int:
        return int(self.cupy.cuda.Device().mem_info[0])

    def new_hook(self) -> Any:
        """Counts the bytes of all arrays while it is entered; `peak` is the most there were at a time."""

        class Bytes(self.cupy.cuda.MemoryHook):  # type: ignore[name-defined]
            name = "Bytes"
            used = peak = 0

            def malloc_postprocess(self, **about: Any) -> None:
                self.used += about["mem_size"] if about["mem_ptr"] else 0
                self.peak = max(self.peak, self.used)

            def free_postprocess(self, **about: Any) -> None:
                self.used -= about["mem_size"]

        return Bytes()

    # Kernels by themselves

    def rates(self, trial: bool) -> dict[str, float]:
        from benchmarks import cuda_kernels

        watch = self.stopwatch(trial)
        return cuda_kernels.rates(watch, 64, 1 << 12, 2) if trial else cuda_kernels.rates(watch)

    def stopwatch(self, trial: bool) -> Any:
        from benchmarks import cuda_kernels

        return cuda_kernels.Stopwatch(1 << 10) if trial else cuda_kernels.Stopwatch()

    def kernel(self, name: str, dtype: str, trial: bool, repeats: int) -> dict[str, Any]:
        """The median time of a kernel in µs, and its largest error on a part of the batch."""
        from benchmarks import cuda_kernels

        full, part = (cuda_kernels.TRIAL,) * 2 if trial else (cuda_kernels.GPT2, cuda_kernels.PART)
        error = cuda_kernels.largest_error(cuda_kernels.cases(part, dtype)[name].make())
        case = cuda_kernels.cases(full, dtype, with_reference=False)[name]
        times = self.stopwatch(trial).times(case.make().run, repeats, case.fills)
        return {"us": [1e3 * ms for ms in times], "error": error}

    # Where the time of a step goes

    def profile(self, row: str, graph: bool) -> dict[str, Any]:
        """Milliseconds a step by kernel, and of the whole step; by PyTorch's profiler where it is installed."""
        built = self.build(row, graph)
        ms = statistics.median(self.turn(2 * PROFILED)["ms"])
        found = by_profiler(self.step, self.events.wait, PROFILED)
        how = "PyTorch's profiler, which sees all kernels"
        if not found:
            if built["graph"]:  # whose kernels cannot be told apart by events
                self.build(row, False)
            found = by_events(self.step, self.events, PROFILED)
            how = (
                "CUDA events around minigrad's own, launched one by one: some µs too much each, and CuPy's are missing"
            )
        return {"ms": ms, "how": how, "graph": built["graph"], "kernels": found}


def new_trainer(row: Row, graph: bool) -> Any:
    """The trainer of a run with this row's options, as examples/train_shakespeare.py makes it."""
    import minigrad as mg
    from gpt import GPT, GPTConfig
    from gpt.config import TrainConfig
    from gpt.text.data import Dataset
    from gpt.trainer import Trainer

    config = TrainConfig(batch_size=row.batch, learning_rate=LEARNING_RATE, beta2=0.95, seed=1, dtype=row.dtype)
    mg.manual_seed(config.seed)
    model = GPT(GPTConfig(**row.model))
    model.to("cuda")
    data = Dataset(tokens_to_learn(row.model["vocab_size"]), row.model["block_size"])
    tokenizer: Any = None  # only checkpoints need one
    trainer = Trainer(model, data, tokenizer, config, Path(tempfile.gettempdir()), graph=graph)
    trainer.model.train()
    return trainer


class PyTorch(Steps):
    """A training loop as nanoGPT's users know it."""

    def prepare(self, threads: int | None) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            return {"missing": f"PyTorch {torch.__version__} finds no GPU (CUDA: {torch.version.cuda})"}
        about = f"{prepare('torch', threads)}, CUDA {torch.version.cuda}"
        return {"about": about, "versions": {"PyTorch": torch.__version__, "PyTorch's CUDA": torch.version.cuda}}

    def build(self, row: str, mode: str, graph: bool = False) -> dict[str, Any]:
        import torch

        before = self.free_bytes()
        self.events = TorchEvents()
        self.step = torch_step(ALL_ROWS[row], mode, "cuda")
        first = self.warm_up()
        torch.cuda.reset_peak_memory_stats()  # what compiling took does not count
        for _ in range(LEAD_IN):
            self.step()
        self.events.wait()
        peak, held = torch.cuda.max_memory_allocated(), before - self.free_bytes()
        return {"first": first, "peak_mb": peak / 1e6, "held_mb": held / 1e6, "graph": mode == "graphs"}

    def free_bytes(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info()[0])


def torch_step(row: Row, mode: str, device: str) -> Callable[[], Any]:
    """One step of PyTorch's training; its loss."""
    import torch

    from benchmarks.torch_gpt import TorchGPT

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("highest" if row.dtype == "float32" else "high")  # "high" is TF32
    model = TorchGPT(**row.model).to(device)
    optimizer = model.configure_optimizer(lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    forward: Any = model
    if mode != "eager":
        forward = torch.compile(model, mode="reduce-overhead" if mode == "graphs" else None)
    parameters = list(model.parameters())
    ids, length = tokens_to_learn(row.model["vocab_size"]), row.model["block_size"]
    ids = ids[: int(0.9 * len(ids))]
    windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)
    rng = np.random.default_rng(1)
    model.train()

    def send(part: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(part))
        return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor

    def step() -> Any:
        blocks = windows[rng.integers(len(windows) - 1, size=row.batch)]
        x, y = send(blocks[:, :-1]), send(blocks[:, 1:])
        with torch.autocast(device, torch.bfloat16, enabled=row.dtype == "bfloat16"):
            _, loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


class TorchEvents:
    """As cuda_kernels.Events."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def record(self) -> Any:
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))


def cuda_version(number: int) -> str:
    """12040 is CUDA 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


# Profiles


def by_profiler(step: Callable[[], Any], wait: Callable[[], Any], steps: int) -> dict[str, list[float]]:
    """Calls and milliseconds a step of every kernel on the card, by name; nothing if PyTorch cannot tell."""
    try:
        import torch

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(steps):
                step()
            wait()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return kernels_of_trace(json.loads(path.read_text("utf-8")), steps)
    except Exception as error:  # whatever a profiler dislikes, there is another way
        print(f"no profile by PyTorch: {why(error)}", file=sys.stderr)
        return {}


def kernels_of_trace(trace: dict[str, Any], steps: int) -> dict[str, list[float]]:
    """Calls and milliseconds a step, by name, of what ran on the card."""
    found: dict[str, list[float]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            total = found.setdefault(event["name"], [0.0, 0.0])
            total[0] += 1 / steps
            total[1] += event["dur"] / 1e3 / steps
    return found


def by_events(step: Callable[[], Any], events: Any, steps: int) -> dict[str, list[float]]:
    """The same for minigrad's kernels and products alone, by events before and after each."""
    from minigrad.kernels.cuda import cublaslt
    from minigrad.kernels.cuda.launch import Kernel

    marks: list[tuple[str, Any, Any]] = []

    def timed(function: Any, name: Callable[[Any], str]) -> Any:
        def call(self: Any, *given: Any, **named: Any) -> Any:
            start = events.record()
            result = function(self, *given, **named)
            marks.append((name(self), start, events.record()))
            return result

        return call

    before = Kernel.__call__, cublaslt.Plan.run
    try:
        Kernel.__call__ = timed(before[0], lambda kernel: kernel.name)  # type: ignore[method-assign]
        cublaslt.Plan.run = timed(before[1], lambda plan: "cuBLASLt")  # type: ignore[method-assign]
        for _ in range(steps):
            step()
    finally:
        Kernel.__call__, cublaslt.Plan.run = before  # type: ignore[method-assign]
    events.wait()
    found: dict[str, list[float]] = {}
    for name, start, end in marks:
        total = found.setdefault(name, [0.0, 0.0])
        total[0] += 1 / steps
        total[1] += events.ms(start, end) / steps
    return found


# Measuring


class Figures:
    """All that was measured; the file of --json is written as it grows, so that a run that is stopped leaves it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.all: dict[str, Any] = {"about": [], "versions": {}, "rates": {}, "rows": {}, "kernels": {}, "profile": {}}

    def introduce(self, answer: dict[str, Any]) -> None:
        if answer["about"] not in self.all["about"]:
            self.all["about"].append(answer["about"])
        self.all["versions"].update(answer["versions"])

    def write(self) -> None:
        if self.path is not None:
            from minigrad.serialization import write_atomically

            write_atomically(self.path, json.dumps({"machine": machine(), **self.all}, indent=1).encode())


def ask(worker: Any, method: str, **arguments: Any) -> dict[str, Any]:
    """A contestant's answer; {"failed": why} if its process has ended."""
    try:
        return worker.call(method, **arguments)
    except BenchmarkError as error:
        return {"failed": str(error)}


@contextlib.contextmanager
def prepared(names: list[str], args: Any, figures: Figures) -> Iterator[dict[str, Any]]:
    """The processes of those that have what they need. Without a card for minigrad there is nothing to measure."""
    with workers(str(Path(__file__).resolve()), names) as processes:
        ready: dict[str, Any] = {}
        for name, worker in processes.items():
            answer = ask(worker, "prepare", threads=args.threads[0])
            lacks = answer.get("missing", answer.get("failed"))
            if lacks is None:
                figures.introduce(answer)
                ready[name] = worker
            elif name == "minigrad":
                raise BenchmarkError(lacks)
            else:
                print(f"{name} is left out: {lacks}", file=sys.stderr, flush=True)
        yield ready


def measure_row(name: str, who: list[str], args: Any, figures: Figures) -> dict[str, Any]:
    """What contestants answered, and the milliseconds of every step, by contestant and round."""
    row, failed, built = ALL_ROWS[name], {}, {}
    with prepared(who, args, figures) as processes:

        def attempt(who: str, method: str, **arguments: Any) -> dict[str, Any]:
            if who in failed:
                return {}
            answer = ask(processes[who], method, **arguments)
            if "failed" in answer:
                failed[who] = answer["failed"]
                processes[who].close()  # gives its memory back
                print(f"{who}: {answer['failed']}", file=sys.stderr, flush=True)
            return answer

        for contestant in processes:
            print(f"{name}: {contestant} warms up …", file=sys.stderr, flush=True)
            built[contestant] = attempt(contestant, "build", row=name, mode=MODES.get(contestant, ""), graph=args.graph)
        rounds = args.rounds or (max(2, row.rounds // 2) if args.quick else row.rounds)
        print(f"{name}: {rounds} rounds of {row.steps} steps …", file=sys.stderr, flush=True)
        turns = take_turns(list(processes), rounds, lambda who: attempt(who, "turn", steps=row.steps), warm_up=False)
    done = [contestant for contestant in turns if contestant not in failed]
    return {
        "built": {contestant: built[contestant] for contestant in done},
        "ms": {contestant: [turn["ms"] for turn in turns[contestant]] for contestant in done},
        "wall_ms": {contestant: [turn["wall_ms"] for turn in turns[contestant]] for contestant in done},
        "loss": {contestant: turns[contestant][-1]["loss"] for contestant in done},
        "failed": failed,
    }


def measure_kernels(args: Any, figures: Figures) -> None:
    """Each kernel; after one that fails, the next gets a new process, since an error can stay with the old one."""
    from benchmarks import cuda_kernels

    dtypes = ["bfloat16"] if args.quick else ["bfloat16", "float32"]
    size = cuda_kernels.TRIAL if args.trial else cuda_kernels.GPT2
    left = [(dtype, name) for dtype in dtypes for name in cuda_kernels.cases(size, dtype)]
    while left:
        with prepared(["minigrad"], args, figures) as processes:
            while left:
                dtype, name = left.pop(0)
                repeats = args.rounds or (10 if args.quick else 20)
                answer = ask(processes["minigrad"], "kernel", name=name, dtype=dtype, trial=args.trial, repeats=repeats)
                figures.all["kernels"].setdefault(dtype, {})[name] = answer
                figures.write()
                if "failed" in answer:
                    print(f"{name}, {dtype}: {answer['failed']}", file=sys.stderr, flush=True)
                    break


def contestants(args: Any) -> list[str]:
    opponents(args.against)  # says if PyTorch is not installed
    modes = [name for name in MODES if args.torch_graphs or MODES[name] != "graphs"]
    return ["minigrad", *(modes if args.against == "torch" else [])]


def measure(args: Any, figures: Figures) -> None:
    with prepared(["minigrad"], args, figures) as processes:
        print("rates of the card …", file=sys.stderr, flush=True)
        figures.all["rates"] = ask(processes["minigrad"], "rates", trial=args.trial)
    rows = choose("row", ALL_ROWS, args.rows) if args.rows else list(ROWS)
    if "steps" in args.tables:
        for name in rows:
            if args.rows or not args.quick or ALL_ROWS[name].in_quick:
                figures.all["rows"][name] = measure_row(name, contestants(args), args, figures)
                figures.write()
    if "kernels" in args.tables:
        print("kernels …", file=sys.stderr, flush=True)
        measure_kernels(args, figures)
    if "profile" in args.tables:
        for name in rows if args.rows else ["baby"]:
            print(f"profile of {name} …", file=sys.stderr, flush=True)
            with prepared(["minigrad"], args, figures) as processes:
                figures.all["profile"][name] = ask(processes["minigrad"], "profile", row=name, graph=args.graph)
            figures.write()


# Reporting


def typical(ms: list[list[float]]) -> float:
    """The median of all steps."""
    return statistics.median(step for turn in ms for step in turn)


def by_round(ms: list[list[float]]) -> list[float]:
    return [statistics.median(turn) for turn in ms]


def step_lines(rows: dict[str, Any], rates: dict[str, Any], who: list[str]) -> list[list[str]]:
    """A line for each row: minigrad's figures, the others' times, the ratios, and what they are meant to be."""
    lines = []
    for name, figure in rows.items():
        row, ms, others = ALL_ROWS[name], figure["ms"], [other for other in who if other != "minigrad"]
        if "minigrad" in ms:
            ours = typical(ms["minigrad"])
            rate = rates.get(row.dtype)
            share = f"{row.flops / (ours / 1e3) / rate:.1%}" if rate else "–"
            line = [row.title, short(ours), f"{1e3 * row.tokens / ours:,.0f}", share]
        else:
            line = [row.title, "failed", "–", "–"]
        ratios = {o: ratio(by_round(ms[o]), by_round(ms["minigrad"])) for o in others if {o, "minigrad"} <= set(ms)}
        line += [short(typical(ms[o])) if o in ms else "failed" if o in figure["failed"] else "–" for o in others]
        line += [str(ratios[o]) if o in ratios else "–" for o in others]
        reached = [
            f"{goal} × {o}: {'yes' if ratios[o].median >= goal else 'no'}"
            for o, goal in row.goals.items()
            if o in ratios
        ]
        lines.append([*line, "; ".join(reached) or "–"])
    return lines


def memory_lines(rows: dict[str, Any], who: list[str]) -> list[list[str]]:
    lines = []
    for name, figure in rows.items():
        row, built = ALL_ROWS[name], figure["built"]
        line = [row.title]
        for key in ("peak_mb", "held_mb"):
            line += [short(built[o][key]) if o in built else "–" for o in who]
        both = {"minigrad", "torch.compile"} <= set(built)
        if row.memory_goal and both:
            line.append("yes" if built["minigrad"]["peak_mb"] <= built["torch.compile"]["peak_mb"] else "no")
        else:
            line.append("–")
        lines.append(line)
    return lines


def loss_notes(rows: dict[str, Any]) -> list[str]:
    """First and last losses, and a warning where they are too far apart to be the same work."""
    notes = []
    for name, figure in rows.items():
        first = {who: built["first"] for who, built in figure["built"].items()}
        last = figure["loss"]
        losses = "; ".join(f"{who} {first[who]:.3f} to {last[who]:.3f}" for who in first)
        apart = [
            who
            for who in first
            for loss in (first, last)
            if "minigrad" in first and not abs(loss[who] - loss["minigrad"]) <= SAME * abs(loss["minigrad"])
        ]
        warning = f" — NOT THE SAME WORK: {', '.join(dict.fromkeys(apart))}" if apart else ""
        notes.append(f"{ALL_ROWS[name].title}: loss {losses}{warning}")
        notes += [f"{ALL_ROWS[name].title}: {who} failed: {reason}" for who, reason in figure["failed"].items()]
    return notes


def kernel_lines(kernels: dict[str, Any], rates: dict[str, Any], trial: bool) -> list[list[str]]:
    from benchmarks import cuda_kernels

    size = cuda_kernels.TRIAL if trial else cuda_kernels.GPT2
    lines = []
    for dtype, figures in kernels.items():
        for name, case in cuda_kernels.cases(size, dtype).items():
            if name not in figures:
                continue
            if "failed" in figures[name]:
                lines.append([f"{name}, {dtype}", "failed", "–", "–", "–"])
                continue
            times = Spread.of(figures[name]["us"])
            rate = case.amount / (times.median / 1e6)
            best = rates.get("copy" if case.unit == "B" else "tf32" if dtype == "float32" else dtype)
            in_words = f"{rate / 1e9:,.0f} GB/s" if case.unit == "B" else f"{rate / 1e12:.1f} TFLOP/s"
            lines.append(
                [
                    f"{name}, {dtype}",
                    short(times.median),
                    in_words,
                    f"{rate / best:.0%}" if best else "–",
                    error_cell(figures[name]["error"], case.precision),
                ]
            )
    return lines


def error_cell(error: float | None, precision: float) -> str:
    if error is None:
        return "–"
    return f"{error:.1e}" + ("" if error <= ALLOWED_ERRORS * precision + 1e-5 else " (!)")


def profile_lines(profile: dict[str, Any]) -> list[list[str]]:
    """The kernels that take most, the rest together, and what remains of the step."""
    found = sorted(profile["kernels"].items(), key=lambda item: -item[1][1])
    whole = profile["ms"]

    def line(name: str, calls: float, ms: float) -> list[str]:
        return [name if len(name) <= 70 else name[:67] + "…", short(calls), f"{1e3 * ms:,.1f}", f"{ms / whole:.1%}"]

    lines = [line(name, *values) for name, values in found[:40]]
    if len(found) > 40:
        lines.append(line(f"{len(found) - 40} others", *(sum(v[i] for _, v in found[40:]) for i in range(2))))
    return [*lines, ["not in these, or waiting", "–", f"{1e3 * (whole - sum(v[1] for _, v in found)):,.1f}", ""]]


def report(args: Any, figures: dict[str, Any]) -> None:
    """Print the tables of what was measured."""
    rates = {} if "failed" in figures["rates"] else figures["rates"]
    print("\n".join(["", *figures["about"], ", ".join(f"{k} {v}" for k, v in figures["versions"].items())]))
    if rates:
        products = ", ".join(f"{name} {rate / 1e12:,.0f}" for name, rate in rates.items() if name != "copy")
        print(f"the card itself: copy {rates['copy'] / 1e12:.2f} TB/s; products in TFLOP/s: {products}")
    elif figures["rates"]:
        print(f"the card's rates could not be measured: {figures['rates']['failed']}")
    if figures["rows"]:
        who = list(dict.fromkeys(who for row in figures["rows"].values() for who in (*row["ms"], *row["failed"])))
        who.sort(key=["minigrad", *MODES].index)
        others = [name for name in who if name != "minigrad"]
        times = [f"{name} ms" for name in others]
        header = ["step", "minigrad ms", "tokens/s", "FLOPs used", *times, *(f"× {o}" for o in others), "goals"]
        print("\n" + table(header, step_lines(figures["rows"], rates, who)))
        peaks = [f"{what}: {name}" for what in ("arrays", "held") for name in who]
        header = ["memory of the card, MB", *peaks, "no more than torch.compile"]
        print("\n" + table(header, memory_lines(figures["rows"], who)))
        print("\n" + "\n".join(loss_notes(figures["rows"])))
        print(
            "Medians of all steps; in brackets the smallest and largest ratio of a round's medians. Arrays: the most "
            "that\narrays took at a time; held: what a process took from the card, without its context."
        )
    if figures["kernels"]:
        header = ["kernel", "µs", "rate", "of the card's", "largest error"]
        print("\n" + table(header, kernel_lines(figures["kernels"], rates, args.trial)))
        print(
            "\nMedians with a cold L2 cache. Errors are from the reference in float64, as a share of its largest one;"
            f"\n(!) marks more than {ALLOWED_ERRORS} roundings."
        )
    for name, profile in figures["profile"].items():
        if "failed" in profile:
            print(f"\nno profile of {ALL_ROWS[name].title}: {profile['failed']}")
            continue
        graph = "with" if profile["graph"] else "without"
        print(f"\n{ALL_ROWS[name].title}: {profile['ms']:.2f} ms a step {graph} a CUDA graph; by {profile['how']}\n")
        print(table(["kernel", "calls a step", "µs a step", "of the step"], profile_lines(profile)))


def main() -> None:
    parser = arguments("Training steps and kernels on an NVIDIA card.", quick="fewer steps, and no rows of float32")
    parser.add_argument("--rows", metavar="NAME,…", help=f"of {', '.join(ROWS)} (default: all; profile: baby)")
    parser.add_argument("--tables", default="steps,kernels", metavar="NAME,…", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--kernels", default="cuda", metavar="SETTING", help="MINIGRAD_KERNELS (default: cuda)")
    parser.add_argument("--graph", action="store_true", default=True, help="capture a step as a CUDA graph (default)")
    parser.add_argument("--no-graph", dest="graph", action="store_false")
    parser.add_argument("--torch-graphs", action="store_true", help="also torch.compile with reduce-overhead")
    parser.add_argument("--trial", action="store_true", help="tiny kernels, to try the benchmark itself")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script may have switched off
    if args.worker:
        serve(Guarded({"minigrad": Minigrad, "torch": PyTorch}[args.worker]()))
        return
    if len(args.threads) > 1:
        raise BenchmarkError("--threads: the card does the work here; wanted one number, of the host's threads")
    args.tables = choose("table", TABLES, args.tables)
    CONTESTANTS["minigrad"] = "minigrad", {"MINIGRAD_KERNELS": args.kernels}
    CONTESTANTS.update(dict.fromkeys(MODES, ("torch", {})))
    choose("row", ALL_ROWS, args.rows)
    contestants(args)
    print(machine())
    figures, stopped = Figures(args.json), None
    try:
        measure(args, figures)
    except (KeyboardInterrupt, BenchmarkError) as error:
        if not figures.all["rates"]:
            raise
        print("\nstopped; measured so far:", file=sys.stderr)
        stopped = error
    report(args, figures.all)
    figures.write()
    if args.json:
        print(f"\nAll figures are in {args.json}")
    if stopped is not None:
        raise stopped


if __name__ == "__main__":
    run_benchmark(main)
