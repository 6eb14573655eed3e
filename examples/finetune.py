"""Fine-tune GPT-2, or a model of your own, on a text file.

    python examples/finetune.py --model gpt2 --data my.txt --block-size 256 --out out-mine
    python examples/finetune.py --model gpt2 --data my.txt --lora-rank 8      # train small adapters, not the model
    python examples/finetune.py --resume --data my.txt --out out-mine         # continue exactly where the run stopped

A run's folder holds the same files as one of train_shakespeare.py. With --lora-rank, the checkpoints hold only
adapters, and adapters.safetensors holds the adapters with the lowest validation loss. --save-pretrained writes the
complete best model in Hugging Face's layout, so that other tools can open it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import textwrap
from pathlib import Path
from typing import Any

from tqdm import tqdm

import minigrad as mg
from gpt import ConfigError, checkpoint, lora, precision
from gpt.config import TrainConfig
from gpt.errors import run_program
from gpt.figures import attempt
from gpt.loading import check_can_save_pretrained, load_model, save_pretrained
from gpt.options import (
    MODEL_SOURCES,
    Parser,
    add_device_option,
    add_graph_option,
    add_options,
    add_run_options,
    check_whole,
    describe,
    fields_of,
    folder,
    option,
    pick,
    restore,
)
from gpt.options import given as given_options
from gpt.ranks import connect
from gpt.run import (
    ADAPTERS,
    BEST,
    check_unchanged,
    exit_interrupted,
    keep_previous_run,
    lasting_screen,
    print_above,
    run_folder,
)
from gpt.text.data import Dataset, load_text
from gpt.text.tokenizer import END_OF_TEXT
from gpt.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """How a model is fine-tuned: the options of training, the model to start from, adapters, and samples."""

    model: str = option("", MODEL_SOURCES)
    block_size: int = option(0, "tokens in each sequence; 0 for the model's block size")
    lora_rank: int = option(0, "train adapters of this rank and leave the model unchanged; 0 to train all weights")
    lora_alpha: float = option(16.0, "adapters are scaled by alpha / rank")
    lora_layers: str = option("attn.c_attn", "the linear layers of the blocks that get adapters, separated by commas")
    prompt: str = option("", "the text that samples during training continue; by default, the first validation tokens")
    sample_tokens: int = option(50, "tokens in each of these samples; 0 for none")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, {"block_size": 0, "lora_rank": 0, "sample_tokens": 0})
        if self.lora_rank and self.optimizer == "muon":
            raise ConfigError("optimizer is 'muon', which is for whole matrices; expected 'adamw' for adapters")


OPTIONS = fields_of(FinetuneConfig)
DEFAULTS: dict[str, Any] = {
    **{"max_iters": 200, "batch_size": 4, "grad_accum": 8, "eval_interval": 50, "eval_iters": 20},
    **{"learning_rate": 3e-5, "weight_decay": 0.01, "beta2": 0.999},
}
LORA_DEFAULTS = {"learning_rate": 3e-4, "weight_decay": 0.0}
FOLLOWING = {
    "lr_decay_iters": "--max-iters",
    "warmup_iters": "a tenth of --max-iters",
    "min_lr": "a tenth of --learning-rate",
}


class Finetuner(Trainer):
    """A trainer that prints a sample after each estimate of the losses, and saves the best adapters in a file."""

    config: FinetuneConfig
    less_memory = "or a smaller --block-size"

    def evaluate(self, bar: tqdm) -> None:
        super().evaluate(bar)
        if self.config.sample_tokens and not self.interrupted and self.ranks.writes:
            with self.ranks.communicator.busy("sampling"):
                print_above(bar, textwrap.indent(self.sample(), "    | ", lambda line: True))

    def sample(self) -> str:
        """The prompt, continued by the model. Does not change the training's random numbers."""
        ids = self.tokenizer.encode(self.config.prompt) if self.config.prompt else self.data.val[:12]
        stop = self.tokenizer.special_tokens.get(END_OF_TEXT)
        options = {"temperature": 0.8, "seed": self.config.seed, "vocab_size": self.tokenizer.vocab_size}
        (row,) = self.model.generate([ids], self.config.sample_tokens, stop_tokens=stop, **options)
        return self.tokenizer.decode(row)

    def save(self, name: str) -> None:
        super().save(name)
        if self.config.lora_rank and name == BEST:
            lora.save_adapters(self.model, self.out / ADAPTERS if self.ranks.writes else None, self.optimizer)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Fine-tune GPT-2, or a model of your own, on a text file.")
    add_device_option(parser)
    parser.add_argument("--data", metavar="FILE", required=True, help="a text file")
    add_run_options(parser, out="out-finetune")
    parser.add_argument("--dropout", type=float, help="probability of dropout (default: the model's)")
    add_graph_option(parser)
    parser.add_argument("--save-pretrained", metavar="DIR", type=folder, help="write the best model to DIR at the end")
    add_options(parser, OPTIONS, {"default": {**DEFAULTS, **FOLLOWING}, "with adapters": LORA_DEFAULTS})
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.device = connect(args.device)
    given = pick(given_options(args), OPTIONS)
    saved = checkpoint.load_last(args.out) if args.resume else None
    config = new_config(given) if saved is None else resumed_config(saved, given, args.dropout)
    if config.lora_rank and saved is None:
        keep_the_model(Path(config.model), "--out", args.out)
    if config.lora_rank and args.save_pretrained is not None:
        keep_the_model(Path(config.model), "--save-pretrained", args.save_pretrained)
    if args.save_pretrained is not None and args.save_pretrained.resolve() == args.out.resolve():
        raise ConfigError(f"--save-pretrained {args.save_pretrained} is the run's --out; expected another folder")
    mg.manual_seed(config.seed)
    if saved is not None and not config.lora_rank:
        model, tokenizer = saved.model(args.device), saved.tokenizer
    else:  # checkpoints of adapters do not contain the model
        dropout = args.dropout if saved is None else saved.config.dropout
        model, tokenizer = load_model(config.model, device=args.device, dropout=dropout)
    n_weights = model.num_parameters()
    tokenizer.encode(config.prompt)  # raises an error now if it does not fit the vocabulary
    if args.save_pretrained is not None:
        check_can_save_pretrained(model, args.save_pretrained)
    if config.lora_rank and saved is None:
        lora.add_adapters(model, config.lora_rank, config.lora_alpha, config.lora_layers.split(","))
    elif config.lora_rank:
        lora.load_adapters(model, args.out / ADAPTERS)  # checks the weights; the checkpoint then replaces the adapters
    dtype = precision.choose(config.dtype, model.wte.weight.device)
    if config.lora_rank and dtype in ("bfloat16", "float16"):
        lora.convert(model, dtype)  # the trainer converts the trainable parameters

    text = load_text(args.data)
    block_size = config.block_size or model.config.block_size
    if block_size > model.config.block_size:
        raise ConfigError(f"block_size is {block_size}; expected at most the model's {model.config.block_size}")
    if saved is not None:
        saved.check_same_text(text.data_id)
    data = Dataset(text.encode(tokenizer), block_size)
    with run_folder(args.out), lasting_screen():
        trainer = Finetuner(model, data, tokenizer, config, args.out, text.data_id, args.graph)
        if saved is not None:
            trainer.resume(saved)
        else:
            keep_previous_run(args.out)

        print(f"device      {args.device}")
        characters, tokens = sum(map(len, text.chunks())), len(data.train) + len(data.val)
        print(f"data        {text.name}: {characters:,} characters, {tokens:,} tokens")
        print(f"model       {config.model}: {n_weights:,} parameters; trained: {model.num_parameters():,}")
        print(f"training    {describe(trainer.config, OPTIONS)}")
        print(f"run         {args.out}, from step {trainer.iteration}", flush=True)
        finished = trainer.train()
        if not trainer.ranks.writes:
            return
        print(f"loss curve  {attempt(trainer.plot_losses)}")
        if finished:
            finish(trainer, args.save_pretrained)
        else:
            exit_interrupted(trainer.iteration, trainer.interrupted)


def new_config(given: dict[str, Any]) -> FinetuneConfig:
    """The given options, and the defaults of the others. Some defaults depend on given options."""
    if not given.get("model"):
        raise ConfigError('--model is missing; expected a model to start from, for example "gpt2"')
    options = {**DEFAULTS, **(LORA_DEFAULTS if given.get("lora_rank") else {}), **given}
    for name in ("lora_alpha", "lora_layers"):
        if name in given and not given.get("lora_rank"):
            raise ConfigError(f"{name} is {given[name]}, but there are no adapters; expected lora_rank too")
    options.setdefault("lr_decay_iters", options["max_iters"])
    options.setdefault("warmup_iters", options["max_iters"] // 10)
    options.setdefault("min_lr", options["learning_rate"] / 10)
    return FinetuneConfig(**options)


def keep_the_model(model: Path, option: str, folder: Path) -> None:
    """Raise `ConfigError` if the folder contains the model that the adapters need: a new run would move it away.

    This also rejects a folder with the name of a downloaded model, because it would be loaded instead of that model.
    """
    place = model.resolve()
    if folder.resolve() in (place, *(place.parents if model.exists() else ())):
        raise ConfigError(
            f"{option} {folder} is the place of --model {model}, which the adapters need; expected another folder"
        )


def resumed_config(saved: checkpoint.Checkpoint, given: dict[str, Any], dropout: float | None) -> FinetuneConfig:
    """The options of the resumed run, updated with the given ones. Raises `ConfigError` if they change the model."""
    if "lora_rank" not in saved.run["train_config"]:
        raise ConfigError("--resume: expected a run of finetune.py, got another; start from it with --model")
    before = dataclasses.asdict(restore(FinetuneConfig, saved.run["train_config"]))
    fixed = ["lora_rank", "lora_alpha", "lora_layers", "optimizer"]
    if not before["lora_rank"]:  # the model of adapters is loaded again, and may have been moved
        fixed.append("model")
    check_unchanged(before, given, fixed)
    check_unchanged({"dropout": saved.config.dropout}, {} if dropout is None else {"dropout": dropout}, ["dropout"])
    return FinetuneConfig(**{**before, **given})


def finish(trainer: Finetuner, folder: Path | None) -> None:
    """Print where the best model is, and write it in Hugging Face's layout if a folder is given.

    The model is read from the run's files, which hold it in float32; the trainer's own may have 16 bits.
    """
    config, out = trainer.config, trainer.out
    best = checkpoint.load(out / BEST)
    where = ["--model", str(out)]
    if config.lora_rank:
        where = ["--model", config.model, "--adapters", str(out / ADAPTERS)]
    print(f"best        validation loss {trainer.best_val_loss:.4f} at step {best.run['iteration']}")
    if folder is not None:
        if config.lora_rank:
            model, _ = load_model(config.model, out / ADAPTERS, dropout=best.config.dropout)
        else:
            model = best.model()
        save_pretrained(lora.merge(model), trainer.tokenizer, folder)
        print(f"saved       {folder}, in Hugging Face's layout")
    print(f"\nmore samples: {shlex.join(['python', 'examples/sample.py', *where])}")


if __name__ == "__main__":
    run_program(main)
