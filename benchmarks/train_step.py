"""Whole training steps, and generating, against PyTorch: time, tokens a second, and the largest memory in use.

    python -m benchmarks.train_step                             # every row; some minutes
    python -m benchmarks.train_step --quick                     # less than two minutes; says what it leaves out
    python -m benchmarks.train_step --against none              # without PyTorch
    python -m benchmarks.train_step --rows small,baby --threads 1,2    # and how it scales from 1 thread to 2
    python -m benchmarks.train_step --device cuda               # on an NVIDIA card, against PyTorch eager and compiled

A step is what a training loop repeats: zero the gradients, forward, backward, clip their norm at 1, AdamW. All
contestants start from the same weights. On a CPU they have the same batch too, and the first loss has to be the same.
PyTorch is the GPT of torch_gpt.py: fused attention, fused AdamW; "tuned" keeps freed memory and uses huge pages
(contestants.py). minigrad trains as examples/train_shakespeare.py does, with a process for each core if the batch has a
sequence for each; "1 process" shares the cores among threads instead. The row 124m holds four such models, with their
activations, in memory at once: about 16 GB.

On a card minigrad's step is `gpt.trainer.Trainer.step`, with its CUDA kernels and as a CUDA graph (--no-graph: launched
one by one); MINIGRAD_KERNELS=reference is minigrad on plain CuPy. PyTorch has autocast for bfloat16. Model FLOPs
utilization is the number of floating-point operations that a step needs at least,

    6 tokens (12 layers C^2 + V C)      2 for each weight of a product and each token, and twice that backward
  + 6 tokens layers T C                 attention's two products, half of them masked, and twice that backward

by the time, as a share of the rate of matrix products in this precision, which is measured first.
"""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command, contestants, cuda_steps, workers
from benchmarks.contestants import BABY, GPT2, SMALL, TINY, Model
from benchmarks.figures import median, ratio, reached, short, table, times_and_ratios

SAME, SAME_WITH_DROPOUT = 1e-4, 0.05  # by how much the losses of contestants may differ
Goals = dict[str, tuple[float, float]]  # by contestant: what must be reached, and the goal


class Row(NamedTuple):
    """A line of the table: some work, how often it is done, and how much faster than PyTorch it is meant to be."""

    title: str
    kind: str  # "step": a training step; "prompt": read a prompt; "token": generate one more token
    model: Model
    batch: int = 1
    repeats: int = 1  # how often in a turn
    rounds: int = 7
    goals: Goals = {}  # how many times as fast as each
    memory_goals: Goals = {}  # our peak as a share of each one's
    checkpointed: bool = False  # measure activation checkpointing too
    in_quick: bool = True
    dtype: str = "float32"  # on a card also "bfloat16", or "tf32": float32 with rounded products
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """How many tokens are worked on in one repeat."""
        return {"step": self.batch * self.model.block_size, "prompt": self.prompt, "token": 1}[self.kind]

    @property
    def prompt(self) -> int:
        """The length of the prompt that is read, or continued."""
        return min(128, self.model.block_size // 2)

    @property
    def flops(self) -> float:
        """Of one training step; see above."""
        m = self.model
        weights = 12 * m.n_layer * m.n_embd**2 + m.vocab_size * m.n_embd
        return 6.0 * self.tokens * (weights + m.n_layer * m.block_size * m.n_embd)

    def ids(self, length: int) -> np.ndarray:
        """Token ids (B, length)."""
        return np.random.default_rng(0).integers(self.model.vocab_size, size=(self.batch, length))


def on_card(title: str, model: Model, batch: int, dtype: str, repeats: int = 20, rounds: int = 5, **more: Any) -> Row:
    return Row(f"{title}, {dtype}", "step", model, batch, repeats, rounds, dtype=dtype, device="cuda", **more)


DROPOUT = BABY._replace(dropout=0.2)
PADDED = GPT2._replace(vocab_size=50304)  # to a multiple of 128
COMPILED = {"torch.compile": (1.0, 1.0)}
BOTH = {**COMPILED, "PyTorch eager": (1.3, 1.3)}
# Neighbors with one model share their processes, except that each training row has its own: its peak memory is shown.
ROWS = {
    "small": Row("small: 4 layers, 128, batch 12 × 64", "step", SMALL, 12, 10, 11, {"PyTorch": (1.0, 1.3)}),
    "baby": Row("baby: 6 layers, 384, batch 8 × 256", "step", BABY, 8, goals={"PyTorch": (1.08, 1.25)}),
    "baby-dropout": Row(
        "baby, dropout 0.2", "step", DROPOUT, 8, 1, 7, {"PyTorch": (1.35, 1.6)}, {"PyTorch": (0.65, 0.5)}, True
    ),
    "124m": Row(
        "GPT-2 124M, batch 1 × 1024", "step", GPT2, 1, 1, 5, {"PyTorch tuned": (1.05, 1.2)}, {}, True, in_quick=False
    ),
    "124m-token": Row("124M, one token with a cache", "token", GPT2, 1, 16, goals={"PyTorch": (1.5, 2.0)}),
    "124m-prompt": Row("124M, a prompt of 128 tokens", "prompt", GPT2, goals={"PyTorch": (1.0, 1.2)}),
}
CUDA_ROWS = {
    "cuda-baby": on_card("baby, 64 × 256, dropout 0.2", DROPOUT, 64, "bfloat16", goals={"torch.compile": (1.3, 1.3)}),
    "cuda-124m": on_card("GPT-2 124M, 32 × 1024", PADDED, 32, "bfloat16", goals=BOTH, memory_goals=COMPILED),
    "cuda-124m-tf32": on_card("GPT-2 124M, 32 × 1024", PADDED, 32, "tf32", goals=COMPILED, in_quick=False),
}
OTHER_ROWS = {  # only on request; the tiny ones are to try the benchmark itself
    "cuda-baby-float32": on_card("baby, 64 × 256, dropout 0.2", DROPOUT, 64, "float32"),
    "cuda-layer": on_card("one layer, 2 × 64, dropout 0.1", Model(1, 2, 128, 64, 65, dropout=0.1), 2, "bfloat16"),
    "cuda-tiny": on_card("tiny", Model(1, 2, 32, 8, 65, dropout=0.1), 2, "bfloat16", 2, 2, goals=COMPILED),
    "tiny": Row("tiny", "step", TINY, 2, 2, 3, checkpointed=True),
    "tiny-token": Row("tiny, one token with a cache", "token", TINY, repeats=4),
    "tiny-prompt": Row("tiny, a prompt", "prompt", TINY),
}
ALL_ROWS = {**ROWS, **CUDA_ROWS, **OTHER_ROWS}
OPTIONS: dict[str, Any] = {"minigrad, checkpointed": {"checkpoint": True}, "minigrad, 1 process": {"processes": 1}}
OPTIONS |= {"PyTorch eager": {"mode": "eager"}, "torch.compile": {"mode": "compile"}}
OPPONENTS = {"cpu": ["PyTorch", "PyTorch tuned"], "cuda": ["PyTorch eager", "torch.compile"]}


# The work. Each function returns two functions without arguments: one is called before each turn, the other is what is
# timed. The latter returns a number that shows whether all contestants compute the same.

Job = tuple[Callable[[], Any], Callable[[], float]]


def training(library: str, row: Row, model: Any, processes: int | None) -> Job:
    blocks = row.ids(row.model.block_size + 1)
    ids, targets = np.ascontiguousarray(blocks[:, :-1]), np.ascontiguousarray(blocks[:, 1:])
    settings = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    model.train()
    if library == "torch":
        import torch

        optimizer = model.configure_optimizer(**settings, fused=True)
        parameters = list(model.parameters())
        x, y = torch.from_numpy(ids), torch.from_numpy(targets)

        def torch_step() -> float:
            clip = torch.nn.utils.clip_grad_norm_
            return contestants.train_step(optimizer, lambda: model(x, y)[1], lambda: clip(parameters, 1.0)).item()

        return lambda: None, torch_step
    from gpt.config import TrainConfig
    from gpt.processes import choose_processes
    from minigrad import optim
    from minigrad.distributed import DataParallel

    optimizer = model.configure_optimizer(**settings)
    processes = processes or choose_processes(TrainConfig(batch_size=row.batch), model)
    mean_loss = DataParallel(model, lambda ids, targets: model(ids, targets)[1], processes)

    def step() -> float:
        clip = optim.clip_grad_norm
        loss = contestants.train_step(optimizer, lambda: mean_loss(ids, targets), lambda: clip(optimizer.params, 1.0))
        return loss.item()

    return lambda: None, step


def generating(library: str, row: Row, model: Any) -> Job:
    """All logits of a prompt, which goes into a cache; or the likeliest token after it, and after that …"""
    prompt: Any = row.ids(row.prompt)
    if library == "torch":
        import torch

        prompt, inference = torch.from_numpy(prompt), torch.inference_mode
    else:
        import minigrad as mg

        inference = mg.no_grad
    cache = last = None
    model.eval()

    def read(ids: Any) -> float:
        nonlocal last
        with inference():
            logits = model(ids, cache=cache)[0]
            logits = logits if library == "torch" else logits.data
            last = logits[:, -1:].argmax(axis=-1)  # (B, 1)
            return float(logits[0, -1, last[0, 0]])

    def read_prompt() -> float:
        nonlocal cache
        cache = model.new_cache()
        return read(prompt)

    return (read_prompt, lambda: read(last)) if row.kind == "token" else (lambda: None, read_prompt)


class Contestant(contestants.Contestant):
    built: tuple[Any, ...] | None = None

    def prepare(self, threads: int | None, device: str = "cpu") -> str:
        about = super().prepare(threads)
        return about if device == "cpu" else f"{about}, {cuda_steps.about_card(self.library)}"

    def build(self, row: str, graph: bool, processes: int | None = None, mode: str = "", **options: Any) -> float:
        """Get a row's work ready and do it once. The number that it returns."""
        work = ALL_ROWS[row]
        if work.device == "cuda":
            steps = cuda_steps.Training(self.library, work, mode, graph)
            self.begin, self.work, self.held_mb = lambda: steps.steps(cuda_steps.LEAD_IN), steps.step, steps.held_mb
            return steps.first
        if self.built is None or self.built[:2] != (work.model, options):
            self.built = work.model, options, contestants.MODELS[self.library](work.model, **options)
        job = self.library, work, self.built[2]
        self.begin, self.work = training(*job, processes) if work.kind == "step" else generating(*job)
        self.begin()
        return self.work()

    def product_rate(self, dtype: str) -> float:
        """The card's own, in FLOP/s. Its memory is given back, since what a step takes is measured."""
        import minigrad as mg
        from benchmarks.ops import CupyClock, arrays, best
        from minigrad.kernels.cuda.products import rounding_to_tf32

        clock, n, tf32 = CupyClock(), 8192, dtype == "tf32"
        factors = [arrays("minigrad", "cuda", "float32" if tf32 else dtype)[0]((n, n))] * 2
        with rounding_to_tf32(tf32):
            seconds = best(clock, lambda: mg.functional.matmul(*factors))
        del factors[:], clock.buffer
        clock.cupy.get_default_memory_pool().free_all_blocks()
        return 2 * n**3 / seconds

    def turn(self, repeats: int) -> list[float]:
        """Do the work so many times: seconds for each, and the last number that it returned."""
        self.begin()
        start = time.perf_counter()
        for _ in range(repeats):
            value = self.work()
        value = float(value.item() if hasattr(value, "item") else value)  # on a card this waits for the last step
        return [(time.perf_counter() - start) / repeats, value]

    def peak_memory(self, device: str) -> float:
        """Of this process so far, or what it has taken from the card, in MB."""
        return self.held_mb if device == "cuda" else contestants.memory()


# Measuring


def measure_all(names: list[str], args: Any, threads: int | None, figures: dict[str, dict[str, Any]]) -> None:
    """For each row the milliseconds of every round and the peak memory, by contestant."""
    for _, group in itertools.groupby(
        names, lambda name: name if ALL_ROWS[name].kind == "step" else ALL_ROWS[name].model
    ):
        rows = list(group)
        row = ALL_ROWS[rows[0]]
        who = command.opponents(args.against, {"torch": OPPONENTS[row.device]})
        if row.checkpointed:
            who.insert(1, "minigrad, checkpointed")
        if row.device == "cpu" and row.kind == "step" and row.batch > 1 and threads != 1:
            who.insert(1, "minigrad, 1 process")
        with workers.start("benchmarks.train_step", who) as processes:
            where = {"threads": threads, "device": row.device}
            about = workers.ask_all(processes, lambda worker: worker.prepare(**where))  # noqa: B023
            if not figures:
                print("\n".join(dict.fromkeys(about.values())), flush=True)
            for name in rows:
                command.progress(f"measuring {name}")
                figures[name] = measure(name, processes, args)


def measure(name: str, processes: dict[str, Any], args: Any) -> dict[str, Any]:
    """On a card all draw batches and masks, so losses only have to be close, but at the beginning and at the end."""
    row, figure = ALL_ROWS[name], {}
    if row.device == "cuda":
        figure["rate"] = processes["minigrad"].call("product_rate", dtype=row.dtype)
    given = {"row": name, "graph": args.graph}
    figure["first"] = workers.ask_all(processes, lambda w: w.call("build", **given, **OPTIONS.get(w.name, {})))
    check_same_work(row, figure["first"], SAME_WITH_DROPOUT if row.model.dropout or row.device == "cuda" else SAME)
    rounds = args.rounds or (max(1, row.rounds // 3) if args.quick else row.rounds)
    turns = workers.take_turns(list(processes), rounds, lambda who: processes[who].call("turn", repeats=row.repeats))
    if row.device == "cuda":
        figure["last"] = {who: values[-1][1] for who, values in turns.items()}
        check_same_work(row, figure["last"], SAME_WITH_DROPOUT)
    peaks = {who: worker.call("peak_memory", device=row.device) for who, worker in processes.items()}
    ms = {who: [1000 * seconds for seconds, _ in values] for who, values in turns.items()}
    return {**figure, "ms": ms, "peak_mb": peaks}


def check_same_work(row: Row, values: dict[str, float], tolerance: float) -> None:
    """Refuse to compare contestants whose loss (or largest logit) differs."""
    ours = values["minigrad"]
    for who, value in values.items():
        if not abs(value - ours) <= tolerance * abs(ours):
            raise workers.BenchmarkError(f"{row.title}: {who} computed {value}, minigrad {ours}: not the same work")


# Reporting

OURS = ["minigrad", "minigrad, 1 process", "minigrad, checkpointed"]


def others_in(figures: dict[str, dict[str, Any]]) -> list[str]:
    devices = dict.fromkeys(ALL_ROWS[name].device for name in figures)
    return [other for device in devices for other in OPPONENTS[device]]


def speed_lines(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = []
    for name, figure in figures.items():
        row, ms = ALL_ROWS[name], figure["ms"]
        for who in [who for who in OURS if who in ms]:
            line = [row.title + who.removeprefix("minigrad"), short(median(ms[who]))]
            line += [f"{1000 * row.tokens / median(ms[who]):,.0f}", *times_and_ratios(ms, others_in(figures), who)]
            faster = {over: ratio(ms[over], ms[who]).median for over in row.goals if over in ms}
            lines.append(line + reached(faster, row.goals if who == "minigrad" else {}))
    return lines


def memory_lines(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = []
    for name, figure in figures.items():
        row, peak = ALL_ROWS[name], figure["peak_mb"]
        if row.kind == "step":
            others = others_in(figures)
            share = {other: peak["minigrad"] / peak[other] for other in others if other in peak}
            cells = [*map(peak.get, [*OURS, *others]), *map(share.get, others)]
            lines.append([row.title, *map(short, cells), *reached(share, row.memory_goals, -1)])
    return lines


def scaling_lines(runs: dict[Any, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """How many times as fast each contestant is with each number of threads as with the first."""
    (_, base), *others = runs.items()
    lines = []
    for name, figure in base.items():
        for who in [who for who in figure["ms"] if all(who in run[name]["ms"] for _, run in others)]:
            ours = median(figure["ms"][who])
            speedups = [f"{ours / median(run[name]['ms'][who]):.2f}" for _, run in others]
            lines.append([ALL_ROWS[name].title, who, short(ours), *speedups])
    return lines


def report(figures: dict[str, dict[str, Any]]) -> None:
    others = [other.replace("PyTorch tuned", "tuned") for other in others_in(figures)]
    goals = ["must reach", "goal", "reached"]
    header = ["work", "minigrad ms", "tokens/s", *(f"{o} ms" for o in others), *(f"× {o}" for o in others), *goals]
    print("\n" + table(header, speed_lines(figures)))
    if lines := memory_lines(figures):
        columns = ["minigrad", "1 process", "checkpointed", *others, *(f"of {other}'s" for other in others)]
        print("\n" + table(["peak memory of whole processes, or of the card, MB", *columns, *goals], lines))
    for row, figure in [(ALL_ROWS[name], figure) for name, figure in figures.items() if "rate" in figure]:
        used = row.flops / (median(figure["ms"]["minigrad"]) / 1000) / figure["rate"]
        losses = [f"{who} {first:.3f} to {figure['last'][who]:.3f}" for who, first in figure["first"].items()]
        rate = f"{figure['rate'] / 1e12:,.0f} TFLOP/s"
        print(f"\n{row.title}: {used:.1%} of the card's {rate}; losses: {'; '.join(losses)}")


def benchmark(args: Any) -> dict[str, Any]:
    default = ROWS if args.device == "cpu" else CUDA_ROWS
    names = command.choose("row", ALL_ROWS, args.rows) if args.rows else list(default)
    left_out = [name for name in names if args.quick and not args.rows and not ALL_ROWS[name].in_quick]
    names = [name for name in names if name not in left_out]
    if any(ALL_ROWS[name].device == "cuda" for name in names):
        os.environ.setdefault("MINIGRAD_KERNELS", "cuda")
    print(command.machine() + "\n")
    runs: dict[Any, dict[str, Any]] = {}
    for threads in args.threads:
        runs[threads] = {}
        try:
            measure_all(names, args, threads, runs[threads])
        finally:  # if it is stopped, what was measured until then
            if runs[threads]:
                report(runs[threads])
    if len(runs) > 1:
        first, *others = runs
        header = ["threads", "who", f"ms with {first}", *(f"× as fast with {threads}" for threads in others)]
        print("\n" + table(header, scaling_lines(runs)))
    print("\nMedians; in brackets the smallest and largest ratio of a round. Tokens/s are minigrad's.")
    for name in left_out:
        print(f"Left out by --quick: {ALL_ROWS[name].title} (--rows {name})")
    return {"runs": [{"threads": threads, "rows": figures} for threads, figures in runs.items()]}


def main() -> None:
    quick = "a third of the rounds, and without the longest training step"
    parser = command.arguments("Whole training steps, and generating, against PyTorch.", quick)
    parser.add_argument("--device", choices=OPPONENTS, default="cpu", help="whose rows to measure (default: cpu)")
    parser.add_argument("--rows", metavar="NAME,…", help=f"of {', '.join([*ROWS, *CUDA_ROWS])} (default: the device's)")
    parser.add_argument("--no-graph", dest="graph", action="store_false", help="no CUDA graph of a step")
    command.run(parser, Contestant, benchmark)


if __name__ == "__main__":
    main()
