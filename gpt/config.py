"""The shape of a GPT, how it is trained, and the presets.

Every field is an option of examples/train_shakespeare.py, except vocab_size, which follows from the text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError, ConfigError
from .options import check_choices, check_whole, number_or_nan, option


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Raises `ConfigError` if its numbers cannot make one.

    The options after `bias` came after GPT-2; their defaults are GPT-2's architecture.
    """

    block_size: int = option(1024, "the longest context, in tokens")
    vocab_size: int = option(50257, "how many different tokens there are")
    n_layer: int = option(12, "blocks")
    n_head: int = option(12, "attention heads in each block; they divide the channels evenly")
    n_embd: int = option(768, "channels")
    dropout: float = option(0.0, "probability of dropout")
    bias: bool = option(True, "biases in linear layers and layer norms, as in GPT-2")
    position: str = option("learned", "position embedding", ("learned", "rotary"))
    norm: str = option("layer", "layer norm or RMS norm", ("layer", "rms"))
    activation: str = option("gelu", "of the MLP: GELU or squared ReLU", ("gelu", "relu2"))
    qk_norm: bool = option(False, "RMS norm of every query and key, without weights")
    zero_init_residual: bool = option(False, "start the projections into the residual stream at 0")
    tie_weights: bool = option(True, "one matrix for token embeddings and output layer")
    checkpoint: bool = option(False, "recompute each block's activations in the backward pass instead of keeping them")
    logit_softcap: float = option(0.0, "squash the logits into this range with tanh; 0 for no bound")

    def __post_init__(self) -> None:
        check_whole(self, {"block_size": 1, "vocab_size": 1, "n_layer": 1, "n_head": 1, "n_embd": 1})
        check_whole(self, {"block_size": 1}, bits=31)  # the cache of keys and values has this length; no tensor has it
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if not 0 <= number_or_nan(self.dropout) < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; expected a probability from 0 to below 1")
        check_choices(self)
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise ConfigError(f"position 'rotary' needs an even head size, got {self.n_embd // self.n_head}")
        if not 0 <= number_or_nan(self.logit_softcap) < math.inf:
            raise ConfigError(f"logit_softcap is {self.logit_softcap!r}; expected a number of at least 0, not infinity")

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and the shape of each parameter of a GPT, in order. Files are compared with them before one is made.

        They come one by one, so a config with a billion layers costs nothing.
        """
        C = self.n_embd
        block = {
            **norm_shapes("ln_1", self),
            **linear_shapes("attn.c_attn", C, 3 * C, self.bias),
            **linear_shapes("attn.c_proj", C, C, self.bias),
            **norm_shapes("ln_2", self),
            **linear_shapes("mlp.c_fc", C, 4 * C, self.bias),
            **linear_shapes("mlp.c_proj", 4 * C, C, self.bias),
        }
        yield "wte.weight", (self.vocab_size, C)
        if self.position == "learned":
            yield "wpe.weight", (self.block_size, C)
        for i in range(self.n_layer):
            yield from ((f"h.{i}.{name}", shape) for name, shape in block.items())
        yield from norm_shapes("ln_f", self).items()
        if not self.tie_weights:
            yield "lm_head.weight", (self.vocab_size, C)


def linear_shapes(name: str, inputs: int, outputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """The parameters of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm_shapes(name: str, config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of a norm of a GPT."""
    biased = config.bias and config.norm == "layer"
    return {f"{name}.{part}": (config.n_embd,) for part in ("weight", *(["bias"] if biased else []))}


MOST_PROBLEMS = 5  # that an error lists


def check_tensors(expected: Iterable[tuple[str, tuple[int, ...]]], tensors: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the tensors have the expected names and shapes, and floating dtypes.

    It lists the first few problems and then stops, so that a config with a billion layers costs nothing.
    """
    problems, known = [], set()
    for name, shape in expected:
        tensor = tensors.get(name)
        if tensor is None:
            problems.append(f"missing {name}")
        elif tensor.shape != shape:
            problems.append(f"{name} has shape {tensor.shape}, expected {shape}")
        elif tensor.dtype.kind != "f":
            problems.append(f"{name} is {tensor.dtype}, expected floating numbers")
        known.add(name)
        if len(problems) == MOST_PROBLEMS:
            raise CheckpointError(f"{'; '.join(problems)}; …")
    problems += [f"unexpected {name!r:.100}" for name in itertools.islice(tensors.keys() - known, MOST_PROBLEMS)]
    if problems:
        raise CheckpointError("; ".join(problems))


DTYPES = ("auto", "float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainConfig:
    """How a GPT is trained. Options that nanoGPT has too mean the same. Raises `ConfigError` for bad values."""

    max_iters: int = option(5000, "training steps")
    batch_size: int = option(64, "sequences in a batch")
    grad_accum: int = option(1, "batches whose gradients are averaged in one step")
    learning_rate: float = option(1e-3, "the peak learning rate, reached after the warm-up")
    min_lr: float = option(1e-4, "the learning rate at the end of its decay")
    warmup_iters: int = option(100, "steps over which the learning rate rises")
    lr_hold_iters: int = option(0, "steps at the peak learning rate before it decays; for --schedule linear")
    lr_decay_iters: int = option(5000, "the step at which the learning rate reaches --min-lr")
    schedule: str = option("cosine", "how the learning rate decays", ("cosine", "linear"))
    optimizer: str = option("adamw", "for the weight matrices of the blocks; all else uses AdamW", ("adamw", "muon"))
    muon_learning_rate: float = option(0.02, "Muon's peak learning rate; it follows the same schedule")
    weight_decay: float = option(0.1, "weight decay of the matrices")
    beta1: float = option(0.9, "AdamW's beta1")
    beta2: float = option(0.99, "AdamW's beta2")
    grad_clip: float = option(1.0, "the largest global norm of the gradient; 0 for no limit")
    eval_interval: int = option(250, "steps between estimates of the losses, each followed by a checkpoint")
    eval_iters: int = option(200, "batches in each estimate of a loss")
    save_interval: int = option(0, "steps between further checkpoints, besides those after estimates; 0 for none")
    save_minutes: float = option(0.0, "save at least this often, in minutes; 0 for no such limit")
    keep: int = option(1, "checkpoints to resume from: the last, and the ones before it as last-STEP.safetensors")
    on_divergence: str = option(
        "stop",
        "if the loss or the gradient is not finite: stop; skip the step; or roll back to the last checkpoint and halve "
        "the learning rate",
        ("stop", "skip", "rollback"),
    )
    seed: int = option(3, "random seed")
    processes: int = option(
        0, "processes that share each batch, on the CPU; 0: one for each core, up to 8, or 1 for a large model"
    )
    local_steps: int = option(
        1,
        "with several ranks: steps that each takes alone before they average their changes (DiLoCo); 1: every step is "
        "shared",
    )
    shard_optimizer: bool = option(False, "with several ranks: each keeps a part of the optimizer's state (ZeRO-1)")
    dtype: str = option("auto", "precision; auto: bfloat16 on a GPU that has the kernels for it, else float32", DTYPES)

    def __post_init__(self) -> None:
        least = {"max_iters": 0, "batch_size": 1, "grad_accum": 1, "warmup_iters": 0, "lr_decay_iters": 0}
        check_whole(self, {**least, "lr_hold_iters": 0, "eval_interval": 1, "eval_iters": 1, "seed": 0, "processes": 0})
        check_whole(self, {"save_interval": 0, "keep": 1, "local_steps": 1})
        check_choices(self)
        for name in ("learning_rate", "min_lr", "weight_decay", "muon_learning_rate", "save_minutes"):
            if not 0 <= number_or_nan(getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a number of at least 0, not infinity")
        if not number_or_nan(self.grad_clip) >= 0:
            raise ConfigError(f"grad_clip is {self.grad_clip!r}; expected a number of at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= number_or_nan(getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a number from 0 to below 1")
        if self.lr_hold_iters and self.schedule != "linear":
            raise ConfigError(f"lr_hold_iters {self.lr_hold_iters} is for the schedule 'linear', not {self.schedule!r}")
        if self.optimizer == "muon" and not self.learning_rate:
            raise ConfigError("learning_rate is 0; expected more: Muon's learning rate is scaled in proportion to it")
        if self.local_steps > 1:
            self.check_local_steps()

    def check_local_steps(self) -> None:
        """Raise `ConfigError` for options that DiLoCo cannot follow: between its outer steps the ranks do not meet."""
        for name in ("max_iters", "eval_interval", "save_interval"):
            if getattr(self, name) % self.local_steps:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a multiple of local_steps {self.local_steps}, after "
                    "which the ranks have the same weights"
                )
        if self.on_divergence == "rollback":
            raise ConfigError("on_divergence is 'rollback'; expected 'stop' or 'skip' with local_steps above 1")
        if self.shard_optimizer:
            raise ConfigError("shard_optimizer is True; expected False with local_steps above 1: no state is shared")


# GPT-2 from scratch, at any size: nanoGPT's recipe, but with biases. A step has 0.5M tokens.
GPT2: dict[str, Any] = {
    **{"block_size": 1024, "dropout": 0.0, "bias": True, "batch_size": 12, "grad_accum": 40, "beta2": 0.95},
    **{"max_iters": 600_000, "lr_decay_iters": 600_000, "warmup_iters": 2000, "eval_interval": 1000},
}

# `baby` (for a GPU) and `cpu` (for a laptop) are nanoGPT's recipes for Tiny Shakespeare. `speedrun` reaches the loss of
# `cpu` in less time. GPT-2's four sizes are for token files, with the learning rates of GPT-3's paper.
PRESETS: dict[str, dict[str, Any]] = {
    "baby": {
        **{"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2, "bias": False},
        **{"batch_size": 64, "max_iters": 5000, "lr_decay_iters": 5000, "eval_iters": 200},
    },
    "cpu": {
        **{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": False},
        **{"batch_size": 12, "max_iters": 2000, "lr_decay_iters": 2000, "eval_iters": 20},
    },
    "speedrun": {
        **{"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": False},
        **{"position": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "zero_init_residual": True},
        **{"tie_weights": False, "logit_softcap": 15.0, "optimizer": "muon", "schedule": "linear"},
        **{"batch_size": 16, "max_iters": 260, "lr_decay_iters": 260, "warmup_iters": 20},
        **{"learning_rate": 6e-3, "min_lr": 0.0, "muon_learning_rate": 0.02, "beta2": 0.95, "weight_decay": 0.1},
        **{"eval_interval": 130, "eval_iters": 20},
    },
    "gpt2": {**GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768, "learning_rate": 6e-4, "min_lr": 6e-5},
    "gpt2-medium": {**GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024, "learning_rate": 3e-4, "min_lr": 3e-5},
    "gpt2-large": {**GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280, "learning_rate": 2.5e-4, "min_lr": 2.5e-5},
    "gpt2-xl": {**GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600, "learning_rate": 2e-4, "min_lr": 2e-5},
}
