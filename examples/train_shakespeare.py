"""Train a GPT on Tiny Shakespeare, or on any text file.

    python examples/train_shakespeare.py                       # preset "baby" if there is a GPU, else "cpu"
    python examples/train_shakespeare.py --data my.txt --out out-mine --n-layer 6
    python examples/train_shakespeare.py --data tokens         # a folder made by examples/prepare_data.py
    python examples/train_shakespeare.py --resume              # continue the last run in --out where it stopped
    python examples/train_shakespeare.py --ops examples/exercises --max-iters 100      # with your own operations
    mpirun -n 4 python examples/train_shakespeare.py                        # on four processes, of one machine or more

Options that are not given come from the preset. Options that the preset does not set have the defaults shown by --help.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS, TrainConfig
from gpt.course.own_training import OwnOperations, train_engine
from gpt.errors import DataError, printable, run_program
from gpt.figures import attempt
from gpt.options import (
    Parser,
    add_device_option,
    add_graph_option,
    add_options,
    add_run_options,
    describe,
    fields_of,
    folder,
    given,
    pick,
    restore,
)
from gpt.ranks import connect
from gpt.run import (
    BEST,
    METRICS,
    check_unchanged,
    exit_interrupted,
    keep_previous_run,
    lasting_screen,
    run_folder,
)
from gpt.sample import stream
from gpt.text.data import Dataset, Tokens, load_data
from gpt.text.tokenizer import StreamDecoder, first_ids
from gpt.trainer import Trainer
from minigrad.distributed import communicator, is_first
from playground import live
from playground.address import PORT

MODEL_OPTIONS = fields_of(GPTConfig, without=("vocab_size",))
TRAIN_OPTIONS = fields_of(TrainConfig)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Train a GPT on Tiny Shakespeare, or on any text file.")
    add_device_option(parser, default=None, about="cuda if there is a GPU, else cpu")
    parser.add_argument("--preset", choices=PRESETS, help="a recipe (default: baby on a GPU, cpu on the CPU)")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="a text file, or a folder of token files (default: Tiny Shakespeare, downloaded once)",
    )
    add_graph_option(parser)
    add_run_options(parser, out="out")
    parser.add_argument(
        "--live",
        metavar="PORT",
        nargs="?",
        type=int,
        const=PORT,
        help="show the run on a local web page while it trains (default port: %(const)s; needs the extra playground)",
    )
    parser.add_argument(
        "--ops",
        metavar="FOLDER",
        type=folder,
        help="train with the operations in the Python files in FOLDER in place of the engine's, then with the "
        "engine's, and compare the two loss curves (see examples/exercises)",
    )
    add_options(parser.add_argument_group("model"), MODEL_OPTIONS, PRESETS)
    add_options(parser.add_argument_group("training"), TRAIN_OPTIONS, PRESETS)
    args = parser.parse_args()
    args.device = args.device or ("cuda" if mg.cuda_is_available() else "cpu")
    args.live = args.live if is_first() else None
    live.check(args.live)
    return args


def main() -> None:
    args = parse_arguments()
    if args.ops:
        train_with_own_operations(args)
        return
    run = set_up(args)
    with run_folder(args.out), lasting_screen():
        trainer = run.new_trainer(args.out, run.saved)
        announce(run, trainer)
        with live.shown(args.out, args.live):
            finished = trainer.train()
        if trainer.ranks.writes:
            report(run, trainer, finished)


class Run(NamedTuple):
    """The checked options and data of a run."""

    device: str
    tokens: Tokens
    data: Dataset
    config: GPTConfig
    train_config: TrainConfig
    graph: bool
    saved: checkpoint.Checkpoint | None  # the checkpoint to resume from

    def new_trainer(self, out: Path, saved: checkpoint.Checkpoint | None) -> Trainer:
        """A trainer at the start of the run, or resumed from a checkpoint."""
        mg.manual_seed(self.train_config.seed)
        model = GPT(self.config).to(self.device)
        tokenizer, data_id = self.tokens.tokenizer, self.tokens.data_id
        trainer = Trainer(model, self.data, tokenizer, self.train_config, out, data_id, self.graph)
        if saved is not None:
            trainer.resume(saved)
        else:
            keep_previous_run(out)
        return trainer


def set_up(args: argparse.Namespace) -> Run:
    """Read the options, the data, and with --resume the checkpoint."""
    args.device = connect(args.device)
    options = given(args)
    saved = checkpoint.load_last(args.out) if args.resume else None
    if saved is None:
        tokens = load_data(args.data)
        preset = args.preset or ("baby" if args.device.startswith("cuda") else "cpu")
        options = {**PRESETS[preset], **options}
        train_config = TrainConfig(**pick(options, TRAIN_OPTIONS))
        config = GPTConfig(vocab_size=tokens.tokenizer.vocab_size, **pick(options, MODEL_OPTIONS))
    else:
        if "lora_rank" in saved.run["train_config"]:
            raise ConfigError("--resume: expected a run of train_shakespeare.py, got one of finetune.py")
        tokens = load_data(args.data, saved.tokenizer, check=saved.check_same_text)
        before = restore(TrainConfig, saved.run["train_config"])
        check_resumed({**saved.options, **dataclasses.asdict(before)}, options)
        config = dataclasses.replace(saved.config, checkpoint=options.get("checkpoint", saved.config.checkpoint))
        train_config = dataclasses.replace(before, **pick(options, TRAIN_OPTIONS))
    data = Dataset.of_parts(tokens.train, tokens.val, config.block_size, config.vocab_size)
    return Run(args.device, tokens, data, config, train_config, args.graph, saved)


def check_resumed(run: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise `ConfigError` if a resumed run is given another model, another optimizer, or another preset than its own.

    --checkpoint may change, because it computes the same model with less memory.
    """
    check_unchanged(run, options, [name for name in (*pick(run, MODEL_OPTIONS), "optimizer") if name != "checkpoint"])
    for name, value in PRESETS.get(options.get("preset", ""), {}).items():
        if name not in options and value != run[name]:
            raise ConfigError(
                f"--resume: {name} is {value} in the preset {options['preset']}; expected {run[name]}, as in the run; "
                "leave --preset out"
            )


def announce(run: Run, trainer: Trainer) -> None:
    """Print what is about to be trained."""
    print(f"device      {run.device}")
    print(f"data        {run.tokens.about}")
    print(f"model       {trainer.model.num_parameters():,} parameters: {describe(run.config, MODEL_OPTIONS)}")
    print(f"training    {describe(trainer.config, TRAIN_OPTIONS)}")
    print(f"run         {trainer.out}, from step {trainer.iteration}", flush=True)


def report(run: Run, trainer: Trainer, finished: bool) -> None:
    """Plot the losses, and print the results and a sample of the best model."""
    best = trainer.out / BEST
    print(f"loss curve  {attempt(trainer.plot_losses)}")
    print(f"metrics     {trainer.out / METRICS}")
    if not finished:
        exit_interrupted(trainer.iteration, trainer.interrupted)
    elif best.exists():  # with the user's operations, the loss may be NaN from the first step on
        print(f"best        validation loss {trainer.best_val_loss:.4f}, saved in {best}")
        show_sample(checkpoint.load(best), run.device)
        print(f"\nmore samples: {shlex.join(['python', 'examples/sample.py', '--checkpoint', str(trainer.out)])}")


def show_sample(best: checkpoint.Checkpoint, device: str, length: int = 500) -> None:
    try:
        ids = first_ids(best.tokenizer)
    except DataError as error:  # GPT-2's tokens can be trained on without its tokenizer's files
        print(f"sample      none: {error}")
        return
    print("sample\n")
    decoder = StreamDecoder(best.tokenizer)
    options = {"temperature": 0.8, "seed": 1337, "vocab_size": best.tokenizer.vocab_size}
    for token in stream(best.model(device), [ids], length, **options):
        print(printable(decoder.feed(token)), end="", flush=True)
    print(decoder.flush())


def train_with_own_operations(args: argparse.Namespace) -> None:
    """--ops: train with the user's operations, train the same run with the engine's, and compare the loss curves."""
    own = OwnOperations(args.ops)
    run = set_up(args)
    if communicator().size > 1:
        raise ConfigError("--ops: expected one process, got several ranks")
    if run.train_config.dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype is {run.train_config.dtype!r}; expected 'float32' for your own operations")
    run = run._replace(train_config=dataclasses.replace(run.train_config, dtype="float32"), graph=False)
    with run_folder(args.out), lasting_screen():
        print(f"ops         {own.describe(run.config)}")
        trainer = run.new_trainer(args.out, run.saved)
        announce(run, trainer)
        with live.shown(args.out, args.live):
            finished = own.train(trainer)
        report(run, trainer, finished)
        if finished:
            engine, finished = train_engine(trainer, run.new_trainer, args.resume)
            if not finished:
                exit_interrupted(engine.iteration, engine.interrupted)
            own.compare(trainer, engine)


if __name__ == "__main__":
    run_program(main)
