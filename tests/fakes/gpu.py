"""A card to train on: the stand-in for CuPy, the emulator of kernels and the twin of cuBLASLt together.

What they are given goes through the stand-in's streams, so that it can be captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPT, CharTokenizer, GPTConfig
from gpt.config import TrainConfig
from gpt.text.data import Dataset
from gpt.trainer import Trainer
from minigrad import kernels
from minigrad.kernels.cuda import launch
from tests.fakes import cupy as fake_cupy
from tests.fakes.cublaslt import Twin, twin_of_cublaslt
from tests.fakes.emulator import emulated

TEXT = " ".join(np.random.default_rng(0).choice(["amber", "birch", "cedar", "dunes", "ember"], 400))


@contextlib.contextmanager
def a_card(monkeypatch: Any) -> Iterator[list[str]]:
    """Inside this context there is a GPU with its kernels in use. What it gives is the list of all launches so far."""
    fake_cupy.install(monkeypatch)
    launches: list[str] = []
    with emulated(), twin_of_cublaslt(), kernels.using("cpu", "cuda"):
        emulate, multiply = launch.emulate, Twin.cublasLtMatmul

        def launched(kernel: Any, *arguments: Any) -> None:
            launches.append(kernel.name)
            fake_cupy.submit(lambda: emulate(kernel, *arguments))

        def multiplied(self: Twin, handle: Any, operation: Any, *arguments: Any) -> int:
            as_it_is = dict(self.things[operation.value])  # cuBLASLt reads it now, not when the product is computed

            def work() -> None:
                now, self.things[operation.value] = self.things[operation.value], as_it_is
                with np.errstate(all="ignore"):  # a GPU does not warn
                    multiply(self, handle, operation, *arguments)
                self.things[operation.value] = now

            launches.append("product")
            fake_cupy.submit(work)
            return 0

        monkeypatch.setattr(launch, "emulate", launched)
        monkeypatch.setattr(Twin, "cublasLtMatmul", multiplied)
        yield launches
        monkeypatch.undo()


def new_trainer(out: Any, device: str = "cuda", shape: Any = None, graph: bool = True, **options: Any) -> Trainer:
    """A small run on a small text; everything random starts from the seed."""
    settings = {"max_iters": 6, "batch_size": 2, "warmup_iters": 3, "lr_decay_iters": 8, "eval_interval": 5}
    config = TrainConfig(**{**settings, "learning_rate": 1e-2, "eval_iters": 1, **options})
    mg.manual_seed(config.seed)
    tokenizer = CharTokenizer.from_text(TEXT)
    small = {"block_size": 12, "n_layer": 1, "n_head": 2, "n_embd": 32, "dropout": 0.1, **(shape or {})}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **small))
    model.to(device)
    return Trainer(model, Dataset(tokenizer.encode(TEXT), 12), tokenizer, config, out, "text", graph)
