"""Train a GPT on Tiny Shakespeare, or on any text file.

    python examples/train_shakespeare.py                       # a GPU and the preset "baby", else the CPU and "cpu"
    python examples/train_shakespeare.py --data my.txt --out out-mine --n-layer 6
    python examples/train_shakespeare.py --data tokens         # a folder that examples/prepare_data.py made
    python examples/train_shakespeare.py --resume              # go on where the last run in --out stopped
    python examples/train_shakespeare.py --ops examples/exercises --max-iters 100      # with operations of your own

Options that are not given come from the preset, and those that it does not set from the defaults shown by --help.
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
from gpt.errors import DataError, run_program
from gpt.options import (
    add_device_option,
    add_graph_option,
    add_options,
    add_run_options,
    describe,
    fields_of,
    given,
    pick,
)
from gpt.run import BEST, LAST, METRICS, keep_previous_run, resume_command, run_folder
from gpt.sample import stream
from gpt.text.data import Dataset, Tokens, load_data
from gpt.text.tokenizer import StreamDecoder, first_ids
from gpt.trainer import Trainer

MODEL_OPTIONS = fields_of(GPTConfig, without=("vocab_size",))
TRAIN_OPTIONS = fields_of(TrainConfig)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GPT on Tiny Shakespeare, or on any text file.")
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
        "--ops",
        metavar="FOLDER",
        type=Path,
        help="train with your own operations, from the Python files in FOLDER, in place of the engine's, and compare "
        "the two loss curves (see examples/exercises)",
    )
    add_options(parser.add_argument_group("model"), MODEL_OPTIONS, PRESETS)
    add_options(parser.add_argument_group("training"), TRAIN_OPTIONS, PRESETS)
    args = parser.parse_args()
    args.device = args.device or ("cuda" if mg.cuda_is_available() else "cpu")
    return args


def main() -> None:
    args = parse_arguments()
    if args.ops:
        train_with_own_operations(args)
        return
    run = set_up(args)
    with run_folder(args.out):
        trainer = run.new_trainer(args.out, run.saved)
        announce(run, trainer)
        report(run, trainer, finished=trainer.train())


class Run(NamedTuple):
    """What a run is made of, all of it checked."""

    device: str
    tokens: Tokens
    data: Dataset
    config: GPTConfig
    train_config: TrainConfig
    graph: bool
    saved: checkpoint.Checkpoint | None  # what is resumed from

    def new_trainer(self, out: Path, saved: checkpoint.Checkpoint | None) -> Trainer:
        """A trainer at the start of the run, or where it was saved."""
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
    mg.Tensor(0.0, device=args.device)  # says what is missing, before anything else is done
    options = given(args)
    saved = checkpoint.load(args.out / LAST) if args.resume else None
    if saved is None:
        tokens = load_data(args.data)
        preset = args.preset or ("baby" if args.device.startswith("cuda") else "cpu")
        options = {**PRESETS[preset], **options}
        train_config = TrainConfig(**pick(options, TRAIN_OPTIONS))
        config = GPTConfig(vocab_size=tokens.tokenizer.vocab_size, **pick(options, MODEL_OPTIONS))
    else:
        if "lora_rank" in saved.run["train_config"]:
            raise ConfigError("--resume: the run is not one of train_shakespeare.py, but of finetune.py")
        tokens = load_data(args.data, saved.tokenizer, check=saved.check_same_text)
        before = TrainConfig(**saved.run["train_config"])
        check_resumed({**saved.options, **dataclasses.asdict(before)}, options)
        config = dataclasses.replace(saved.config, checkpoint=options.get("checkpoint", saved.config.checkpoint))
        train_config = dataclasses.replace(before, **pick(options, TRAIN_OPTIONS))
    data = Dataset.of_parts(tokens.train, tokens.val, config.block_size, config.vocab_size)
    return Run(args.device, tokens, data, config, train_config, args.graph, saved)


def check_resumed(run: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse to resume a run as another model, with another optimizer, or with a preset that is not its own.

    --checkpoint may change: it computes the same model with less memory.
    """
    for name in (*pick(run, MODEL_OPTIONS), "optimizer"):
        if name != "checkpoint" and options.get(name, run[name]) != run[name]:
            raise ConfigError(f"--resume with {name} {options[name]}, but the run has {name} {run[name]}")
    for name, value in PRESETS.get(options.get("preset", ""), {}).items():
        if name not in options and value != run[name]:
            raise ConfigError(
                f"--resume with preset {options['preset']}, which has {name} {value}, but the run has {name} "
                f"{run[name]}; leave --preset out"
            )


def announce(run: Run, trainer: Trainer) -> None:
    """Say what is about to be trained."""
    print(f"device      {run.device}")
    print(f"data        {run.tokens.about}")
    print(f"model       {trainer.model.num_parameters():,} parameters: {describe(run.config, MODEL_OPTIONS)}")
    print(f"training    {describe(trainer.config, TRAIN_OPTIONS)}")
    print(f"run         {trainer.out}, from step {trainer.iteration}", flush=True)


def report(run: Run, trainer: Trainer, finished: bool) -> None:
    """Say what came of it: the curves, and a sample of the best model."""
    picture, best = trainer.plot_losses(), trainer.out / BEST
    print(f"loss curve  {picture or 'not drawn: matplotlib is not installed (pip install matplotlib)'}")
    print(f"metrics     {trainer.out / METRICS}")
    if not finished:
        print(f"interrupted at step {trainer.iteration}, and saved; go on with:\n  {resume_command()}")
    elif best.exists():  # with operations of one's own the loss can be NaN from the first step on
        print(f"best        validation loss {trainer.best_val_loss:.4f}, kept in {best}")
        show_sample(checkpoint.load(best), run.device)
        print(f"\nmore of it: {shlex.join(['python', 'examples/sample.py', '--checkpoint', str(trainer.out)])}")


def show_sample(best: checkpoint.Checkpoint, device: str, length: int = 500) -> None:
    try:
        ids = first_ids(best.tokenizer)
    except DataError as error:  # GPT-2's tokens can be trained on where its byte pairs are not at hand
        print(f"sample      none: {error}")
        return
    print("sample\n")
    decoder = StreamDecoder(best.tokenizer)
    options = {"temperature": 0.8, "seed": 1337, "vocab_size": best.tokenizer.vocab_size}
    for token in stream(best.model(device), [ids], length, **options):
        print(decoder.feed(token), end="", flush=True)
    print(decoder.flush())


def train_with_own_operations(args: argparse.Namespace) -> None:
    """--ops: the run with the user's operations, the same run with the engine's, and the two loss curves compared."""
    own = OwnOperations(args.ops)
    run = set_up(args)
    if run.train_config.dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype is {run.train_config.dtype!r}, but operations of your own train in 'float32'")
    run = run._replace(train_config=dataclasses.replace(run.train_config, dtype="float32"), graph=False)
    with run_folder(args.out):
        print(f"ops         {own.describe(run.config)}")
        trainer = run.new_trainer(args.out, run.saved)
        announce(run, trainer)
        finished = own.train(trainer)
        report(run, trainer, finished)
        if finished:
            engine, finished = train_engine(trainer, run.new_trainer, args.resume)
            if not finished:
                print(f"interrupted at step {engine.iteration}, and saved; go on with:\n  {resume_command()}")
                return
            own.compare(trainer, engine)


if __name__ == "__main__":
    run_program(main)
