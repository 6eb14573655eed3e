"""The shape of a GPT, how it is trained, and the presets. Every field is an option of examples/train_shakespeare.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError


def option(default: Any, help: str) -> Any:
    """A dataclass field whose help text the command line shows."""
    return field(default=default, metadata={"help": help})


def _check_whole(options: Any, least: Mapping[str, int]) -> None:
    for name, minimum in least.items():
        value = getattr(options, name)
        if not isinstance(value, int) or value < minimum:
            raise ConfigError(f"{name} is {value!r}; wanted a whole number of at least {minimum}")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Raises `ConfigError` if its numbers cannot make one."""

    block_size: int = option(1024, "the longest context, in tokens")
    vocab_size: int = option(50257, "how many different tokens there are")
    n_layer: int = option(12, "blocks")
    n_head: int = option(12, "attention heads in each block; they share the channels evenly")
    n_embd: int = option(768, "channels")
    dropout: float = option(0.0, "probability of dropout")
    bias: bool = option(True, "biases in linear layers and layer norms, as in GPT-2")

    def __post_init__(self) -> None:
        _check_whole(self, {"block_size": 1, "vocab_size": 1, "n_layer": 1, "n_head": 1, "n_embd": 1})
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; wanted a probability from 0 to below 1")


@dataclass(frozen=True)
class TrainConfig:
    """How a GPT is trained; the names and meanings are nanoGPT's. Raises `ConfigError` for values without meaning."""

    max_iters: int = option(5000, "training steps")
    batch_size: int = option(64, "sequences in a batch")
    grad_accum: int = option(1, "batches whose gradients are averaged in one step")
    learning_rate: float = option(1e-3, "the highest learning rate, reached after the warm-up")
    min_lr: float = option(1e-4, "the learning rate at the end of its decay")
    warmup_iters: int = option(100, "steps over which the learning rate rises")
    lr_decay_iters: int = option(5000, "the step at which the learning rate reaches --min-lr")
    weight_decay: float = option(0.1, "decay of the weight matrices")
    beta1: float = option(0.9, "AdamW's beta1")
    beta2: float = option(0.99, "AdamW's beta2")
    grad_clip: float = option(1.0, "the largest global norm of the gradient; 0 for no limit")
    eval_interval: int = option(250, "steps between estimates of the losses, each followed by a checkpoint")
    eval_iters: int = option(200, "batches that a loss is estimated on")
    seed: int = option(3, "seed of everything random")

    def __post_init__(self) -> None:
        least = {"max_iters": 0, "batch_size": 1, "grad_accum": 1, "warmup_iters": 0, "lr_decay_iters": 0}
        _check_whole(self, {**least, "eval_interval": 1, "eval_iters": 1, "seed": 0})
        for name in ("learning_rate", "min_lr", "weight_decay", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number of at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number from 0 to below 1")


# nanoGPT's recipes for Tiny Shakespeare: `baby` for a GPU, `cpu` for a laptop.
PRESETS: dict[str, dict[str, Any]] = {
    "baby": {
        **{"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2, "bias": False},
        **{"batch_size": 64, "max_iters": 5000, "lr_decay_iters": 5000, "eval_iters": 200},
    },
    "cpu": {
        **{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": False},
        **{"batch_size": 12, "max_iters": 2000, "lr_decay_iters": 2000, "eval_iters": 20},
    },
}
