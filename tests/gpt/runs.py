"""Small training runs that many tests make, and what two runs are compared by."""

from __future__ import annotations

from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPT, CharTokenizer, GPTConfig
from gpt.config import TrainConfig
from gpt.text.data import Dataset
from gpt.trainer import Trainer
from minigrad import optim

WORDS = ["amber", "birch", "cedar", "dunes", "ember", "flint", "grove", "heath"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 3000))
SHORT_TEXT = " ".join(np.random.default_rng(0).choice(WORDS[:5], 400))


def new_trainer(
    out: Any, text: str = TEXT, dropout: float = 0.1, n_embd: int = 16, float64: bool = False, **options: Any
) -> Trainer:
    """A small run on a small text; everything random starts from the seed."""
    settings = {"max_iters": 20, "batch_size": 4, "warmup_iters": 5, "lr_decay_iters": 40, "eval_interval": 10}
    shape = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": n_embd, "dropout": dropout}
    return trainer_for(out, text, shape, {**settings, "eval_iters": 2, **options}, float64=float64)


def new_gpu_trainer(out: Any, device: str = "cuda", shape: Any = None, graph: bool = True, **options: Any) -> Trainer:
    """A run that is smaller still, since the emulator takes long, on a GPU unless `device` says otherwise."""
    settings = {"max_iters": 6, "batch_size": 2, "warmup_iters": 3, "lr_decay_iters": 8, "eval_interval": 5}
    settings |= {"learning_rate": 1e-2, "eval_iters": 1}
    small = {"block_size": 12, "n_layer": 1, "n_head": 2, "n_embd": 32, "dropout": 0.1, **(shape or {})}
    return trainer_for(out, SHORT_TEXT, small, {**settings, **options}, device, graph)


def trainer_for(
    out: Any, text: str, shape: Any, settings: Any, device: str = "cpu", graph: bool = True, float64: bool = False
) -> Trainer:
    """The run of a model of this shape on a text of characters, with these settings."""
    config = TrainConfig(**settings)
    mg.manual_seed(config.seed)
    tokenizer = CharTokenizer.from_text(text)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    model.to(device, "float64" if float64 else None)
    data = Dataset(tokenizer.encode(text), shape["block_size"])
    return Trainer(model, data, tokenizer, config, out, text[:10], graph)


def losses(trainer: Trainer, n: int) -> list[tuple[float, ...]]:
    """The losses and gradient norms of n steps."""
    return [tuple(float(x) for x in trainer.step(trainer.learning_rate())) for _ in range(n)]


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()}


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without the column that differs from run to run."""
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def result(trainer: Trainer) -> tuple[Any, ...]:
    """All that a run leaves: what it logged, the weights, the optimizer's arrays and counters, the random numbers."""
    kept = {name: x.numpy().tobytes() for name, x in trainer.optimizer.state_dict().items()}
    bits = {name: x.tobytes() for name, x in weights(trainer).items()}
    return without_speed(trainer.rows), bits, kept, mg.random.get_state()


def losses_without_a_trainer(
    dtype: str, device: str, bias: bool = True, dropout: float = 0.0, steps: int = 4
) -> np.ndarray:
    """The losses and gradient norms of a few steps of a small GPT, with clipping and AdamW."""
    mg.manual_seed(0)
    config = GPTConfig(block_size=12, vocab_size=17, n_layer=2, n_head=2, n_embd=32, bias=bias, dropout=dropout)
    model = GPT(config)
    model.to(device, dtype)
    optimizer = model.configure_optimizer(lr=1e-2)
    rng = np.random.default_rng(1)
    results = []
    for _ in range(steps):
        ids = rng.integers(0, 17, (3, 13))
        ids, targets = (mg.Tensor(part, device=device).data for part in (ids[:, :-1], ids[:, 1:]))
        loss = model(ids, targets)[1]
        loss.backward()
        norm = optim.clip_grad_norm(optimizer.params, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        results.append((loss.item(), float(norm)))
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    return np.array(results)
