"""Train the rungs of gpt.course.ladder, from a table of character pairs to a Transformer, on one text.

    python examples/ladder.py --rung bigram           # then head, heads, feed-forward, residual, layer-norm
    python examples/ladder.py --all                   # these six, one after the other
    python examples/ladder.py --rung gpt              # the last rung: train_shakespeare.py with the preset "baby"

All small rungs are trained in the same way: batches of 32 times 8 tokens, and AdamW with a learning rate of 0.003. The
validation loss is over the whole validation text, in blocks, with each token predicted once. The folder --out collects
the curves of all rungs in ladder.csv and ladder.png; training a rung again replaces its curve.
"""

from __future__ import annotations

import argparse
import csv
import io
import runpy
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import minigrad as mg
from gpt import ConfigError, DataError, GPTConfig, checkpoint
from gpt.config import PRESETS
from gpt.course.ladder import RUNGS, SMALL
from gpt.errors import printable, run_program
from gpt.evaluate import evaluate
from gpt.figures import NO_FIGURE, new_figure, save_figure
from gpt.options import Parser, check_count, check_device, folder
from gpt.run import BEST, LAST, progress_bar, run_folder
from gpt.text.data import TINY_SHAKESPEARE_SHA256, Dataset, Tokens, load_data
from minigrad import optim
from minigrad.serialization import write_atomically

STEPS, BATCH_SIZE, LEARNING_RATE = 5000, 32, 3e-3
EVAL_INTERVAL = 250  # steps between points of a curve


class Climb(NamedTuple):
    """The result of a rung: the number of parameters, and its curve as (step, validation loss)."""

    parameters: int
    curve: list[tuple[int, float]]


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Train the rungs from a bigram model to a GPT on one text.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--rung", choices=RUNGS, help="the rung to train")
    which.add_argument("--all", action="store_true", help="train all rungs except gpt")
    parser.add_argument("--steps", "--max-iters", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    parser.add_argument("--seed", type=int, default=1337, help="random seed (default: 1337)")
    parser.add_argument("--data", metavar="FILE", help="a text file (default: Tiny Shakespeare, downloaded once)")
    parser.add_argument(
        "--out", metavar="DIR", default="out-ladder", type=folder, help="folder for the curves (default: out-ladder)"
    )
    parser.add_argument(
        "--device", help='"cpu", "cuda" or "cuda:N" (default: cpu; for the rung gpt, cuda if there is a GPU)'
    )
    args = parser.parse_args()
    for name in ("steps", "seed"):
        check_count(name, getattr(args, name), 0)
    if args.device is None:
        args.device = "cuda" if args.rung == "gpt" and mg.cuda_is_available() else "cpu"
    return args


def main() -> None:
    args = parse_arguments()
    check_device(args.device)
    tokens = load_data(args.data)
    with run_folder(args.out):
        climbs = read_climbs(args.out / "ladder.csv", tokens.data_id)
        print(f"device      {args.device}")
        print(f"data        {tokens.about}")
        if args.rung == "gpt":
            climbs["gpt"] = train_gpt(args, tokens)
        else:
            train_small(args, tokens, climbs)
        write_climbs(args.out / "ladder.csv", climbs, tokens.data_id)
        print()
        print_table(climbs, tokens)
        picture = plot(climbs, args.out / "ladder.png")
        print(f"\ncurves  {args.out / 'ladder.csv'}")
        print(f"plot    {picture or NO_FIGURE}")


# The small rungs


def train_small(args: argparse.Namespace, tokens: Tokens, climbs: dict[str, Climb]) -> None:
    """Train one small rung, or all of them, and print a sample of each. Each curve is saved when it is finished."""
    config = GPTConfig(vocab_size=tokens.tokenizer.vocab_size, **SMALL)
    data = Dataset.of_parts(tokens.train, tokens.val, config.block_size, config.vocab_size)
    print(f"training    {args.steps} steps of {BATCH_SIZE} x {config.block_size} tokens, AdamW {LEARNING_RATE}")
    start = time.perf_counter()
    for name in [args.rung] if args.rung else [name for name in RUNGS if name != "gpt"]:
        mg.manual_seed(args.seed)  # so that a rung gives the same result with --rung and with --all
        model = RUNGS[name].model(config).to(args.device)
        print(f"\n{name}: {RUNGS[name].about}; {model.num_parameters():,} parameters", flush=True)
        climbs[name] = Climb(model.num_parameters(), train(model, data, args.steps, args.device))
        write_climbs(args.out / "ladder.csv", climbs, tokens.data_id)
        row = model.generate(tokens.val[None, : config.block_size], 200, seed=args.seed)[0]
        print(f"validation loss {climbs[name].curve[-1][1]:.4f}; a sample that continues the first validation tokens:")
        sample = printable(tokens.tokenizer.decode(row))
        print(textwrap.indent(sample, "    | ", lambda line: True), flush=True)
    print(f"\n{time.perf_counter() - start:.0f} seconds in total")


def train(model: Any, data: Dataset, steps: int, device: str) -> list[tuple[int, float]]:
    """The training loop: a batch, its loss, the gradients, a step. Returns the curve of (step, validation loss)."""
    optimizer = optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    curve = []
    with progress_bar(total=steps) as bar:
        for step in range(steps + 1):
            if step % EVAL_INTERVAL == 0 or step == steps:
                curve.append((step, validation_loss(model, data.val)))
                bar.set_postfix_str(f"validation loss {curve[-1][1]:.3f}", refresh=False)
            if step == steps:
                break
            ids, targets = (
                mg.Tensor(part, device=device).data for part in data.batch("train", BATCH_SIZE, mg.random.generator())
            )
            _, loss = model(ids, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
    return curve


def validation_loss(model: Any, ids: Any) -> float:
    """The mean loss over a whole text, in consecutive blocks."""
    block_size = model.config.block_size
    batch_size = max(1, 16384 // block_size)  # blocks at a time; limits memory
    return evaluate(model, ids, n_bytes=len(ids), stride=block_size, batch_size=batch_size).loss


# The last rung


def train_gpt(args: argparse.Namespace, tokens: Tokens) -> Climb:
    """Run examples/train_shakespeare.py with the preset "baby" in the subfolder gpt, and evaluate its best model.

    A stopped run in that folder is resumed.
    """
    program, out = Path(__file__).with_name("train_shakespeare.py"), args.out / "gpt"
    options = ["--preset", "baby", "--device", args.device, "--out", out, "--seed", args.seed]
    options += ["--max-iters", args.steps, "--lr-decay-iters", args.steps]
    options += ["--data", args.data] if args.data else []
    options += ["--resume"] if is_unfinished(out / LAST, args, tokens) else []
    before, sys.argv = sys.argv, [str(program), *map(str, options)]
    print(f"running     python {' '.join(sys.argv)}\n", flush=True)
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, int):  # a signal stopped it; after an error, this is the message
            print("\nThe same command of this program resumes it, too.")
        raise
    finally:
        sys.argv = before
    best, last = checkpoint.load(out / BEST), checkpoint.load(out / LAST)
    model = best.model(args.device)
    curve = [(row["iteration"], row["val_loss"]) for row in last.rows() if "val_loss" in row]
    return Climb(model.num_parameters(), [*curve[:-1], (args.steps, validation_loss(model, tokens.val))])


def is_unfinished(last: Path, args: argparse.Namespace, tokens: Tokens) -> bool:
    """Whether this checkpoint is from a stopped run with the same options and text."""
    if not last.exists():
        return False
    saved = checkpoint.load(last)
    now = {**PRESETS["baby"], "seed": args.seed, "max_iters": args.steps, "lr_decay_iters": args.steps}
    same = all(saved.options.get(name) == value for name, value in now.items())
    return same and saved.run["data_id"] == tokens.data_id and saved.run["iteration"] < args.steps


# Results


def read_climbs(path: Path, data_id: str) -> dict[str, Climb]:
    """Read the curves of earlier runs. Raises `ConfigError` for curves of another text, which cannot be compared."""
    climbs: dict[str, Climb] = {}
    if not path.exists():
        return climbs
    try:
        rows = [
            (row["data"], row["rung"], int(row["parameters"]), int(row["step"]), float(row["val_loss"]))
            for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: not written by this program; move it away, or name another folder with --out"
        ) from error
    for data, name, parameters, step, loss in rows:
        if data != data_id:
            raise ConfigError(f"{path} has curves of another text; name another folder with --out")
        climbs.setdefault(name, Climb(parameters, [])).curve.append((step, loss))
    return climbs


def write_climbs(path: Path, climbs: dict[str, Climb], data_id: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rung", "parameters", "step", "val_loss", "data"])
    for name in ordered(climbs):
        for step, loss in climbs[name].curve:
            writer.writerow([name, climbs[name].parameters, step, f"{loss:.6f}", data_id])
    write_atomically(path, text.getvalue().encode())


def ordered(climbs: dict[str, Climb]) -> list[str]:
    return [name for name in RUNGS if name in climbs]


def print_table(climbs: dict[str, Climb], tokens: Tokens) -> None:
    print(f"{'rung':<14}{'parameters':>12}{'steps':>8}{'validation loss':>18}{'lecture':>10}")
    for name in ordered(climbs):
        parameters, curve = climbs[name]
        step, loss = curve[-1]
        print(f"{name:<14}{parameters:>12,}{step:>8,}{loss:>18.4f}{RUNGS[name].lecture:>10.2f}")
    if tokens.data_id != TINY_SHAKESPEARE_SHA256:
        print("The lecture's values are for Tiny Shakespeare, not for this text.")


def plot(climbs: dict[str, Climb], path: Path) -> Path | None:
    """Draw all curves, each with the lecture's value as a dotted line. Returns the path, or None without matplotlib."""
    figure = new_figure()
    if figure is None:
        return None
    axes = figure.add_subplot(xlabel="step", ylabel="validation loss (nats per token)")
    for name in ordered(climbs):
        steps, losses = zip(*climbs[name].curve, strict=True)
        (line,) = axes.plot(steps, losses, marker="o", markersize=3, label=f"{name} {losses[-1]:.2f}")
        axes.axhline(RUNGS[name].lecture, color=line.get_color(), linestyle=":", linewidth=1)
    ends = [climbs[name].curve[-1][1] for name in climbs]
    axes.set_ylim(min(ends) - 0.1, max(ends) + 0.6)  # cuts off the first steps, which begin at ln(V) or above
    axes.grid(alpha=0.3)
    axes.legend(title="dotted: the lecture's values")
    return save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
