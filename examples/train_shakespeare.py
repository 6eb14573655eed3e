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
import functools
import shlex
from pathlib import Path
from typing import Any

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS, TrainConfig, add_graph_option
from gpt.course.own_ops import NOT_WRITTEN, WRONG, Comparison, OwnOperation, check, load_operations, operations_of
from gpt.errors import DataError, run_program
from gpt.sample import stream
from gpt.text.data import Dataset, load_data
from gpt.text.tokenizer import StreamDecoder, first_ids
from gpt.trainer import ENGINE, DivergedError, Trainer, check_same_text, keep_previous_run, resume_command, run_folder
from minigrad import kernels

MODEL_OPTIONS = [field for field in dataclasses.fields(GPTConfig) if field.name != "vocab_size"]
TRAIN_OPTIONS = list(dataclasses.fields(TrainConfig))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GPT on Tiny Shakespeare, or on any text file.")
    parser.add_argument("--device", help='"cpu", "cuda" or "cuda:N" (default: cuda if there is a GPU, else cpu)')
    parser.add_argument("--preset", choices=PRESETS, help="a recipe (default: baby on a GPU, cpu on the CPU)")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="a text file, or a folder of token files (default: Tiny Shakespeare, downloaded once)",
    )
    add_graph_option(parser)
    parser.add_argument("--out", metavar="DIR", default="out", type=Path, help="folder of the run (default: out)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    parser.add_argument(
        "--ops",
        metavar="FOLDER",
        type=Path,
        help="train with your own operations, from the Python files in FOLDER, in place of the engine's, and compare "
        "the two loss curves (see examples/exercises)",
    )
    types = {"int": int, "float": float, "str": str}
    for title, options in (("model", MODEL_OPTIONS), ("training", TRAIN_OPTIONS)):
        group = parser.add_argument_group(title)
        for option in options:
            flag = "--" + option.name.replace("_", "-")
            values = {preset: given[option.name] for preset, given in PRESETS.items() if option.name in given}
            if len(values) < len(PRESETS):
                values["default"] = option.default
            about = f"{option.metadata['help']} ({', '.join(f'{name}: {value}' for name, value in values.items())})"
            if option.type == "bool":
                group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=about)
            else:
                choices = option.metadata["choices"]
                group.add_argument(flag, type=types[str(option.type)], choices=choices, help=about)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = args.device or ("cuda" if mg.cuda_is_available() else "cpu")
    mg.Tensor(0.0, device=device)  # says what is missing, before anything else is done
    given = {name: value for name, value in vars(args).items() if value is not None}
    saved = checkpoint.load(args.out / checkpoint.LAST) if args.resume else None
    if saved is not None and "lora_rank" in saved.run["train_config"]:
        raise ConfigError("--resume: the run is not one of train_shakespeare.py, but of finetune.py")
    own = check_operations(args.ops) if args.ops else {}

    tokens = load_data(args.data, saved and saved.tokenizer, check=functools.partial(check_same_text, saved))
    tokenizer = tokens.tokenizer
    if saved is None:
        preset = args.preset or ("baby" if device.startswith("cuda") else "cpu")
        options = {**PRESETS[preset], **given}
        train_config = TrainConfig(**pick(options, TRAIN_OPTIONS))
        config = GPTConfig(vocab_size=tokenizer.vocab_size, **pick(options, MODEL_OPTIONS))
    else:
        before = TrainConfig(**saved.run["train_config"])
        check_resumed({**dataclasses.asdict(saved.config), **dataclasses.asdict(before)}, given)
        config = dataclasses.replace(saved.config, checkpoint=given.get("checkpoint", saved.config.checkpoint))
        train_config = dataclasses.replace(before, **pick(given, TRAIN_OPTIONS))

    if own and train_config.dtype not in ("auto", "float32"):
        raise ConfigError(f"dtype is {train_config.dtype!r}, but operations of your own train in 'float32'")
    if own:
        train_config = dataclasses.replace(train_config, dtype="float32")
    data = Dataset.of_parts(tokens.train, tokens.val, config.block_size, config.vocab_size)

    def new_trainer(out: Path, saved: checkpoint.Checkpoint | None) -> Trainer:
        mg.manual_seed(train_config.seed)
        model = GPT(config)
        model.to(device)
        trainer = Trainer(model, data, tokenizer, train_config, out, tokens.data_id, args.graph and not own)
        if saved is not None:
            trainer.resume(saved)
        elif (aside := keep_previous_run(out)) is not None:
            print(f"an earlier run was in {out}; its files are now in {aside}")
        return trainer

    with run_folder(args.out):
        if own:
            describe_operations(own, config, args.ops)
        trainer = new_trainer(args.out, saved)
        print(f"device      {device}")
        print(f"data        {tokens.about}")
        print(f"model       {trainer.model.num_parameters():,} parameters: {describe(config, MODEL_OPTIONS)}")
        print(f"training    {describe(trainer.config, TRAIN_OPTIONS)}")
        print(f"run         {args.out}, from step {trainer.iteration}", flush=True)

        finished = train(trainer, own)
        picture = trainer.plot_losses()
        print(f"loss curve  {picture or 'not drawn: matplotlib is not installed (pip install matplotlib)'}")
        print(f"metrics     {args.out / 'metrics.csv'}")
        if not finished:
            print(f"interrupted at step {trainer.iteration}, and saved; go on with:\n  {resume_command()}")
            return
        if (args.out / checkpoint.BEST).exists():  # operations of one's own can give no number from the first step on
            print(f"best        validation loss {trainer.best_val_loss:.4f}, kept in {args.out / checkpoint.BEST}")
            show_sample(checkpoint.load(args.out / checkpoint.BEST), device)
            print(f"\nmore of it: {shlex.join(['python', 'examples/sample.py', '--checkpoint', str(args.out)])}")
        if own:
            engine = new_trainer(args.out / ENGINE, engine_run(trainer) if args.resume else None)
            print(f"\nnow the same run with the engine's operations alone, in {engine.out}", flush=True)
            with kernels.reference():
                if not engine.train():
                    print(f"interrupted at step {engine.iteration}, and saved; go on with:\n  {resume_command()}")
                    return
            compare(Comparison.of(trainer.rows, engine.rows), own, args.out)


def check_resumed(run: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse to resume a run as another model, with another optimizer, or with a preset that is not its own.

    --checkpoint makes no other model: memory may have become short.
    """
    for name in (*pick(run, MODEL_OPTIONS), "optimizer"):
        if name != "checkpoint" and given.get(name, run[name]) != run[name]:
            raise ConfigError(f"--resume with {name} {given[name]}, but the run has {name} {run[name]}")
    for name, value in PRESETS.get(given.get("preset", ""), {}).items():
        if name not in given and value != run[name]:
            raise ConfigError(
                f"--resume with preset {given['preset']}, which has {name} {value}, but the run has {name} "
                f"{run[name]}; leave --preset out"
            )


def check_operations(folder: Path) -> dict[OwnOperation, str]:
    """The operations in a folder and whether they are right; says what cannot train before anything else is done."""
    own = {operation: check(operation) for operation in load_operations(folder)}
    if set(own.values()) == {NOT_WRITTEN}:
        raise ConfigError(f"{folder}: none of its {len(own)} backward passes is written yet")
    return own


def describe_operations(own: dict[OwnOperation, str], config: GPTConfig, folder: Path) -> None:
    """Say which of the operations that the model is made of are the user's, and which of these are wrong."""
    used = operations_of(config)
    written = {operation.name for operation, state in own.items() if state != NOT_WRITTEN}
    print(f"ops         {folder}: of the {len(used)} operations of this model {len(used & written)} are yours")
    for what, names in (
        ("yours", used & written),
        ("the engine's", used - written),
        ("yours, but not used by this model", written - used),
        ("not written yet", {operation.name for operation, state in own.items() if state == NOT_WRITTEN}),
        ("wrong by finite differences", {operation.name for operation, state in own.items() if state == WRONG}),
    ):
        if names:
            print(f"  {what}: {', '.join(sorted(names))}")


def train(trainer: Trainer, own: dict[OwnOperation, str]) -> bool:
    """Train, with the user's operations if there are any. True if the end was reached.

    With them all others run as they are written in minigrad/ops, without kernels, and so they do in the run that they
    are compared with: nothing but the user's operations makes the difference.
    """
    if not own:
        return trainer.train()
    written = {operation.engine: operation.own for operation, state in own.items() if state != NOT_WRITTEN}
    with kernels.reference(), kernels.replacing(written):
        try:
            return trainer.train()
        except DivergedError as error:
            print(f"diverged    {error}")
            return True


def engine_run(trainer: Trainer) -> checkpoint.Checkpoint | None:
    """The engine's run that was begun beside the user's. None if there is none, or if it is that of another run."""
    last = trainer.out / ENGINE / checkpoint.LAST
    if not last.exists():
        return None
    saved = checkpoint.load(last)
    before, now = (
        {**options, "max_iters": None, "processes": None, "checkpoint": None}  # which may change on resuming
        for options in (
            {**dataclasses.asdict(saved.config), **saved.run["train_config"]},
            {**dataclasses.asdict(trainer.model.config), **dataclasses.asdict(trainer.config)},
        )
    )
    return saved if (before, saved.run["data_id"]) == (now, trainer.data_id) else None


def compare(comparison: Comparison, own: dict[OwnOperation, str], out: Path) -> None:
    """Show how far the loss curve is from the engine's, and what may be the reason."""
    print(f"\n{comparison.table()}\n{comparison.verdict()}")
    wrong = [f"{operation.name} ({operation.file})" for operation, state in own.items() if state == WRONG]
    if wrong:
        print(f"wrong by finite differences: {', '.join(wrong)}")
        if comparison.parted_at is None:
            print("a gradient that is a little wrong may train as well as the right one: do not trust the curve alone")
    elif comparison.parted_at is not None:
        print("your gradients agree with finite differences: so a forward is not the engine's, or rounding has grown")
    print(f"both curves are in {' and '.join(map(str, comparison.save(out)))}")


def pick(options: dict[str, Any], fields: list[dataclasses.Field]) -> dict[str, Any]:
    """The options that are fields of a config."""
    return {field.name: options[field.name] for field in fields if field.name in options}


def describe(config: Any, fields: list[dataclasses.Field]) -> str:
    return ", ".join(f"{field.name} {getattr(config, field.name)}" for field in fields)


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


if __name__ == "__main__":
    run_program(main)
