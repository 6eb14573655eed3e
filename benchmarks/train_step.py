"""Whole training steps, and generating, against PyTorch: time, tokens a second, and the largest memory in use.

    python benchmarks/train_step.py                             # every row; some minutes
    python benchmarks/train_step.py --quick                     # less than two minutes; says what it leaves out
    python benchmarks/train_step.py --against none              # without PyTorch
    python benchmarks/train_step.py --rows small,baby --threads 1,2    # and how it scales from 1 thread to 2

A step is what a training loop repeats: forget the gradients, forward, backward, clip their norm at 1, AdamW. Everyone
starts from the same weights and the same batch, and the first loss has to be the same. PyTorch is the GPT of
torch_gpt.py: fused attention, fused AdamW; "tuned" keeps freed memory and asks for huge pages (common.py). minigrad
trains as examples/train_shakespeare.py does, with a process for each core if the batch has a sequence for each; "1
process" shares the cores among threads instead. The row 124m holds four such models, with their activations, in memory
at once: about 16 GB.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from common import (
    BenchmarkError,
    Spread,
    arguments,
    choose,
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


@dataclass(frozen=True)
class Model:
    """The shape of a GPT; the names are those of GPTConfig and of TorchGPT."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool = False
    dropout: float = 0.0


SMALL = Model(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65)
BABY = Model(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65)
BABY_DROPOUT = Model(n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, dropout=0.2)
GPT2 = Model(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257, bias=True)
TINY = Model(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=65)


@dataclass(frozen=True)
class Row:
    """A line of the table: some work, how often it is done, and how much faster than PyTorch it is meant to be."""

    title: str
    kind: str  # "step": a training step; "prompt": read a prompt; "token": generate one more token
    model: Model
    batch: int = 1
    repeats: int = 1  # how often in a turn
    rounds: int = 7
    must_reach: float | None = None
    goal: float | None = None
    over: str = "PyTorch"  # whom these two are about
    memory_must_reach: float | None = None  # our peak as a share of PyTorch's
    memory_goal: float | None = None
    checkpointed: bool = False  # measure activation checkpointing too
    in_quick: bool = True

    @property
    def tokens(self) -> int:
        """How many tokens are worked on in one repeat."""
        return {"step": self.batch * self.model.block_size, "prompt": self.prompt, "token": 1}[self.kind]

    @property
    def prompt(self) -> int:
        """The length of the prompt that is read, or continued."""
        return min(128, self.model.block_size // 2)


# Neighbours with one model share their processes, except that each training row has its own: its peak memory is shown.
ROWS = {
    "small": Row("small: 4 layers, 128, batch 12 × 64", "step", SMALL, 12, 10, 11, must_reach=1.0, goal=1.3),
    "baby": Row("baby: 6 layers, 384, batch 8 × 256", "step", BABY, 8, must_reach=1.08, goal=1.25),
    "baby-dropout": Row(
        "baby, dropout 0.2",
        "step",
        BABY_DROPOUT,
        8,
        must_reach=1.35,
        goal=1.6,
        memory_must_reach=0.65,
        memory_goal=0.5,
        checkpointed=True,
    ),
    "124m": Row(
        "GPT-2 124M, batch 1 × 1024",
        "step",
        GPT2,
        rounds=5,
        must_reach=1.05,
        goal=1.2,
        over="PyTorch tuned",
        checkpointed=True,
        in_quick=False,
    ),
    "124m-token": Row("124M, one token with a cache", "token", GPT2, repeats=16, must_reach=1.5, goal=2.0),
    "124m-prompt": Row("124M, a prompt of 128 tokens", "prompt", GPT2, must_reach=1.0, goal=1.2),
}
TRIAL_ROWS = {  # to try the benchmark itself; only on request
    "tiny": Row("tiny", "step", TINY, 2, 2, 3, checkpointed=True),
    "tiny-token": Row("tiny, one token with a cache", "token", TINY, repeats=4),
    "tiny-prompt": Row("tiny, a prompt", "prompt", TINY),
}
ALL_ROWS = {**ROWS, **TRIAL_ROWS}


# The same start for everyone


def initial_weight(name: str, shape: Sequence[int], n_layer: int) -> np.ndarray:
    """GPT-2's initial weights for the parameter of this name, the same in every process."""
    if len(shape) < 2:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def random_ids(row: Row, length: int) -> np.ndarray:
    """Token ids (B, length)."""
    return np.random.default_rng(0).integers(row.model.vocab_size, size=(row.batch, length))


# The work. Each function builds what it needs and returns two functions without arguments: one is called before each
# turn, the other is what is timed. The latter returns a number that shows whether everyone computes the same.

Job = tuple[Callable[[], Any], Callable[[], float]]


@functools.cache
def minigrad_model(shape: Model, checkpoint: bool) -> Any:
    import minigrad as mg
    from gpt import GPT, GPTConfig

    options = {"checkpoint": True} if checkpoint else {}
    model = GPT(GPTConfig(**asdict(shape), **options))
    with mg.no_grad():
        for name, parameter in model.named_parameters():
            parameter[...] = initial_weight(name, parameter.shape, shape.n_layer)
    return model


@functools.cache
def torch_model(shape: Model, checkpoint: bool) -> Any:
    import torch
    from torch_gpt import TorchGPT

    model = TorchGPT(**asdict(shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(initial_weight(name, parameter.shape, shape.n_layer)))
    return model


def minigrad_step(row: Row, model: Any, processes: int | None) -> Job:
    from gpt.config import TrainConfig
    from gpt.trainer import choose_processes
    from minigrad import optim
    from minigrad.distributed import DataParallel

    optimizer = model.configure_optimizer(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99))
    blocks = random_ids(row, row.model.block_size + 1)
    ids, targets = np.ascontiguousarray(blocks[:, :-1]), np.ascontiguousarray(blocks[:, 1:])
    model.train()
    processes = processes or choose_processes(TrainConfig(batch_size=row.batch), model)
    mean_loss = DataParallel(model, lambda ids, targets: model(ids, targets)[1], processes)

    def step() -> float:
        optimizer.zero_grad()
        loss = mean_loss(ids, targets)
        loss.backward()
        optim.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        return loss.item()

    return lambda: None, step


def torch_step(row: Row, model: Any, processes: None) -> Job:
    import torch

    optimizer = model.configure_optimizer(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99), fused=True)
    blocks = torch.from_numpy(random_ids(row, row.model.block_size + 1))
    ids, targets = blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()
    parameters = list(model.parameters())
    model.train()

    def step() -> float:
        optimizer.zero_grad()
        _, loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return lambda: None, step


def minigrad_prompt(row: Row, model: Any, processes: None) -> Job:
    """The logits of all tokens of a prompt, whose keys and values go into a cache."""
    import minigrad as mg

    prompt = random_ids(row, row.prompt)
    model.eval()

    @mg.no_grad()
    def read() -> float:
        logits, _ = model(prompt, cache=model.new_cache())
        return float(logits.data[0, -1].max())

    return lambda: None, read


def torch_prompt(row: Row, model: Any, processes: None) -> Job:
    import torch

    prompt = torch.from_numpy(random_ids(row, row.prompt))
    model.eval()

    @torch.inference_mode()
    def read() -> float:
        logits, _ = model(prompt, cache=model.new_cache())
        return logits[0, -1].max().item()

    return lambda: None, read


def minigrad_token(row: Row, model: Any, processes: None) -> Job:
    """The likeliest token after a prompt, and the likeliest after that …; the prompt is not timed."""
    import minigrad as mg

    prompt = random_ids(row, row.prompt)
    cache, last = None, None
    model.eval()

    @mg.no_grad()
    def read_prompt() -> None:
        nonlocal cache, last
        cache = model.new_cache()
        logits, _ = model(prompt, cache=cache)
        last = logits.data[:, -1:].argmax(axis=-1)  # (B, 1)

    @mg.no_grad()
    def next_token() -> float:
        nonlocal last
        logits, _ = model(last, cache=cache)
        last = logits.data[:, -1:].argmax(axis=-1)
        return float(logits.data[0, -1, last[0, 0]])

    return read_prompt, next_token


def torch_token(row: Row, model: Any, processes: None) -> Job:
    import torch

    prompt = torch.from_numpy(random_ids(row, row.prompt))
    cache, last = None, None
    model.eval()

    @torch.inference_mode()
    def read_prompt() -> None:
        nonlocal cache, last
        cache = model.new_cache()
        logits, _ = model(prompt, cache=cache)
        last = logits[:, -1:].argmax(dim=-1)  # (B, 1)

    @torch.inference_mode()
    def next_token() -> float:
        nonlocal last
        logits, _ = model(last, cache=cache)
        last = logits[:, -1:].argmax(dim=-1)
        return logits[0, -1, last[0, 0]].item()

    return read_prompt, next_token


MODELS = {"minigrad": minigrad_model, "torch": torch_model}
JOBS = {
    ("minigrad", "step"): minigrad_step,
    ("torch", "step"): torch_step,
    ("minigrad", "prompt"): minigrad_prompt,
    ("torch", "prompt"): torch_prompt,
    ("minigrad", "token"): minigrad_token,
    ("torch", "token"): torch_token,
}


class Contestant:
    """What runs in a contestant's process."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.libraries_mb = 0.0  # resident before any model was built

    def prepare(self, threads: int | None) -> str:
        return prepare(self.library, threads)

    def build(self, row: str, checkpoint: bool = False, processes: int | None = None) -> float:
        """Get a row's work ready and do it once. The number that it returns."""
        self.libraries_mb = self.libraries_mb or memory("VmRSS")
        shape = ALL_ROWS[row].model
        model = MODELS[self.library](shape, checkpoint)
        self.begin, self.work = JOBS[self.library, ALL_ROWS[row].kind](ALL_ROWS[row], model, processes)
        self.begin()
        return self.work()

    def turn(self, repeats: int) -> float:
        """Do the work so many times: seconds for each."""
        self.begin()
        start = time.perf_counter()
        for _ in range(repeats):
            self.work()
        return (time.perf_counter() - start) / repeats

    def peak_memory(self) -> list[float]:
        """The peak so far, and what of it the libraries had taken before any model was built, in MB."""
        return [memory(), self.libraries_mb]


# Measuring

OPTIONS: dict[str, dict[str, Any]] = {
    "minigrad, checkpointed": {"checkpoint": True},
    "minigrad, 1 process": {"processes": 1},
}


def measure_all(names: list[str], args: Any, threads: int | None) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Who took part, and for each row the milliseconds of every round and the peak memory, by contestant."""
    contestants = opponents(args.against)
    about: list[str] = []
    figures: dict[str, dict[str, Any]] = {}
    for _, group in itertools.groupby(names, key=lambda name: sharing_key(name)):
        rows = list(group)
        who = list(contestants)
        if ALL_ROWS[rows[0]].checkpointed:
            who.insert(1, "minigrad, checkpointed")
        if ALL_ROWS[rows[0]].kind == "step" and ALL_ROWS[rows[0]].batch > 1 and threads != 1:
            who.insert(1, "minigrad, 1 process")
        with workers(__file__, who) as processes:
            about = [worker.call("prepare", threads=threads) for worker in processes.values()]
            for name in rows:
                print(f"measuring {name} …", file=sys.stderr, flush=True)
                figures[name] = measure(name, processes, args)
    return list(dict.fromkeys(about)), figures


def sharing_key(name: str) -> Any:
    """Equal for rows that share their processes."""
    row = ALL_ROWS[name]
    return name if row.kind == "step" else row.model


def measure(name: str, processes: dict[str, Any], args: Any) -> dict[str, Any]:
    row = ALL_ROWS[name]
    first = {who: worker.call("build", row=name, **OPTIONS.get(who, {})) for who, worker in processes.items()}
    check_same_work(row, first)
    rounds = args.rounds or (row.rounds // 3 if args.quick else row.rounds)
    seconds = take_turns(list(processes), rounds, lambda who: processes[who].call("turn", repeats=row.repeats))
    peaks = {who: worker.call("peak_memory") for who, worker in processes.items()}
    return {
        "ms": {who: [1000 * value for value in values] for who, values in seconds.items()},
        "first": first,
        "peak_mb": {who: peak for who, (peak, _) in peaks.items()},
        "libraries_mb": {who: libraries for who, (_, libraries) in peaks.items()},
    }


def check_same_work(row: Row, first: dict[str, float]) -> None:
    """Refuse to compare contestants whose first loss (or largest logit) differs. Dropout draws its own masks."""
    tolerance = 0.05 if row.model.dropout else 1e-4
    for who, value in first.items():
        if not abs(value - first["minigrad"]) <= tolerance * abs(first["minigrad"]):
            raise BenchmarkError(
                f"{row.title}: {who} computed {value}, minigrad {first['minigrad']}: not the same work"
            )


# Reporting


def speed_lines(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = []
    for name, figure in figures.items():
        row, ms = ALL_ROWS[name], figure["ms"]
        for who in ("minigrad", *OPTIONS):
            if who in ms:
                line = [row.title + who.removeprefix("minigrad"), *time_cells(row, ms[who])]
                line += [short(median(ms.get(other))) for other in ("PyTorch", "PyTorch tuned")]
                line += [
                    str(ratio(ms[other], ms[who])) if other in ms else "–" for other in ("PyTorch", "PyTorch tuned")
                ]
                lines.append(line + (verdict_cells(row, ms) if who == "minigrad" else ["–"] * 3))
    return lines


def time_cells(row: Row, ms: list[float]) -> list[str]:
    typical = Spread.of(ms).median
    return [short(typical), f"{1000 * row.tokens / typical:,.0f}"]


def verdict_cells(row: Row, ms: dict[str, list[float]]) -> list[str]:
    """What must be reached, the goal, and which of them is."""
    if row.must_reach is None or row.goal is None:
        return ["–"] * 3
    over = " (tuned)" if row.over == "PyTorch tuned" else ""
    reached = "–"
    if row.over in ms:
        faster = ratio(ms[row.over], ms["minigrad"]).median
        reached = "goal" if faster >= row.goal else "yes" if faster >= row.must_reach else "no"
    return [f"{row.must_reach}{over}", f"{row.goal}{over}", reached]


MEMORY_COLUMNS = ["minigrad", "minigrad, 1 process", "minigrad, checkpointed", "PyTorch", "PyTorch tuned"]


def memory_lines(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = []
    for name, figure in figures.items():
        row, peak = ALL_ROWS[name], figure["peak_mb"]
        if row.kind != "step":
            continue
        line = [row.title]
        line += [short(peak.get(who)) for who in MEMORY_COLUMNS]
        share = peak["minigrad"] / peak["PyTorch"] if "PyTorch" in peak else None
        line.append(short(share))
        if row.memory_must_reach is None or row.memory_goal is None:
            line += ["–"] * 3
        else:
            reached = "–"
            if share is not None:
                reached = "goal" if share <= row.memory_goal else "yes" if share <= row.memory_must_reach else "no"
            line += [str(row.memory_must_reach), str(row.memory_goal), reached]
        lines.append(line)
    return lines


def scaling_lines(runs: dict[Any, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """How many times as fast each contestant is with each number of threads as with the first."""
    (first, base), *others = runs.items()
    lines = []
    for name in base:
        for who in base[name]["ms"]:
            typical = Spread.of(base[name]["ms"][who]).median
            speedups = [typical / Spread.of(run[name]["ms"][who]).median for _, run in others]
            lines.append([ALL_ROWS[name].title, who, short(typical), *(f"{speedup:.2f}" for speedup in speedups)])
    return lines


def median(values: list[float] | None) -> float | None:
    return None if values is None else Spread.of(values).median


def main() -> None:
    parser = arguments(
        "Whole training steps, and generating, against PyTorch.",
        quick="a third of the rounds, and without the training step of GPT-2 124M",
    )
    parser.add_argument("--rows", metavar="NAME,…", help=f"of {', '.join(ROWS)} (default: all)")
    args = parser.parse_args()
    if args.worker:
        serve(Contestant(args.worker))
        return
    names = choose("row", ALL_ROWS, args.rows) if args.rows else list(ROWS)
    left_out = [name for name in names if args.quick and not args.rows and not ALL_ROWS[name].in_quick]
    names = [name for name in names if name not in left_out]

    print(machine())
    runs = {}
    for threads in args.threads:
        about, runs[threads] = measure_all(names, args, threads)
        print("\n".join(["", *about, ""]))
        header = ["work", "minigrad ms", "tokens/s", "PyTorch ms", "tuned ms", "× PyTorch", "× tuned"]
        print(table([*header, "must reach", "goal", "reached"], speed_lines(runs[threads])))
        memory_table = memory_lines(runs[threads])
        if memory_table:
            header = ["peak memory, MB", "minigrad", "1 process", "checkpointed", "PyTorch", "tuned", "of PyTorch's"]
            print("\n" + table([*header, "must reach", "goal", "reached"], memory_table))
            of_libraries = next(iter(runs[threads].values()))["libraries_mb"]
            print(
                "\nOf whole processes; before a model was built they held "
                + ", ".join(f"{short(of_libraries[who])} ({who})" for who in opponents(args.against))
            )
    if len(args.threads) > 1:
        first, *others = args.threads
        header = ["threads", "who", f"ms with {first}", *(f"× as fast with {threads}" for threads in others)]
        print("\n" + table(header, scaling_lines(runs)))
    print("\nMedians; in brackets the smallest and largest ratio of a round. Tokens/s are minigrad's.")
    for name in left_out:
        print(f"Left out by --quick: {ALL_ROWS[name].title} (--rows {name})")
    write_json(args.json, {"runs": [{"threads": threads, "rows": figures} for threads, figures in runs.items()]})


if __name__ == "__main__":
    run_benchmark(main)
