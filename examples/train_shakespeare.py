"""Train a GPT on Tiny Shakespeare, or on any text file.

    python examples/train_shakespeare.py                       # a GPU and the preset "baby", else the CPU and "cpu"
    python examples/train_shakespeare.py --data my.txt --out out-mine --n-layer 6
    python examples/train_shakespeare.py --data tokens         # a folder that examples/prepare_data.py made
    python examples/train_shakespeare.py --resume              # go on where the last run in --out stopped

Options that are not given come from the preset, and those that it does not set from the defaults shown by --help.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import minigrad as mg
from gpt import GPT, ConfigError, GPTConfig, checkpoint
from gpt.config import PRESETS, TrainConfig
from gpt.data import Dataset, load_data
from gpt.errors import DataError, TokenError, run_program
from gpt.sample import stream
from gpt.tokenizer import StreamDecoder
from gpt.trainer import Trainer, keep_previous_run

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
    parser.add_argument("--out", metavar="DIR", default="out", type=Path, help="folder of the run (default: out)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
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

    tokens = load_data(args.data, saved and saved.tokenizer)
    tokenizer = tokens.tokenizer
    if saved is None:
        preset = args.preset or ("baby" if device.startswith("cuda") else "cpu")
        options = {**PRESETS[preset], **given}
        train_config = TrainConfig(**pick(options, TRAIN_OPTIONS))
        mg.manual_seed(train_config.seed)
        config = GPTConfig(vocab_size=tokenizer.vocab_size, **pick(options, MODEL_OPTIONS))
    else:
        config = saved.config
        for name, value in pick(given, MODEL_OPTIONS).items():
            if value != getattr(config, name):
                raise ConfigError(f"--resume with {name} {value}, but the run has {name} {getattr(config, name)}")
        train_config = TrainConfig(**{**saved.run["train_config"], **pick(given, TRAIN_OPTIONS)})

    data = Dataset.of_parts(tokens.train, tokens.val, config.block_size, config.vocab_size)
    model = GPT(config)
    model.to(device)
    trainer = Trainer(model, data, tokenizer, train_config, args.out, tokens.data_id)
    if saved is not None:
        trainer.resume(saved)
    elif (aside := keep_previous_run(args.out)) is not None:
        print(f"an earlier run was in {args.out}; its files are now in {aside}")

    print(f"device      {device}")
    print(f"data        {tokens.about}")
    print(f"model       {model.num_parameters():,} parameters: {describe(config, MODEL_OPTIONS)}")
    print(f"training    {describe(train_config, TRAIN_OPTIONS)}")
    print(f"run         {args.out}, from step {trainer.iteration}", flush=True)

    finished = trainer.train()
    picture = trainer.plot_losses()
    print(f"loss curve  {picture or 'not drawn: matplotlib is not installed (pip install matplotlib)'}")
    print(f"metrics     {args.out / 'metrics.csv'}")
    if not finished:
        print(f"interrupted at step {trainer.iteration}, and saved; go on with:\n  {resume_command()}")
        return
    print(f"best        validation loss {trainer.best_val_loss:.4f}, kept in {args.out / checkpoint.BEST}")
    show_sample(checkpoint.load(args.out / checkpoint.BEST), device)
    print(f"\nmore of it: python examples/sample.py --checkpoint {args.out}")


def pick(options: dict[str, Any], fields: list[dataclasses.Field]) -> dict[str, Any]:
    """The options that are fields of a config."""
    return {field.name: options[field.name] for field in fields if field.name in options}


def describe(config: Any, fields: list[dataclasses.Field]) -> str:
    return ", ".join(f"{field.name} {getattr(config, field.name)}" for field in fields)


def resume_command() -> str:
    """The command line of this run, with --resume."""
    return " ".join(["python", *sys.argv] + ([] if "--resume" in sys.argv else ["--resume"]))


def show_sample(best: checkpoint.Checkpoint, device: str, length: int = 500) -> None:
    try:
        ids = best.tokenizer.encode("\n").tolist()
    except TokenError:  # no line break among its characters
        ids = [0]
    except DataError as error:  # GPT-2's tokens can be trained on where its byte pairs are not at hand
        print(f"sample      none: {error}")
        return
    print("sample\n")
    decoder = StreamDecoder(best.tokenizer)
    for token in stream(best.model(device), [ids], length, temperature=0.8, seed=1337):
        print(decoder.feed(token), end="", flush=True)
    print(decoder.flush())


if __name__ == "__main__":
    run_program(main)
