"""Checkpoints: one safetensors file with the model, the optimizer and all else that an exact resume needs.

A run keeps two in its folder: `last.safetensors`, to resume from, and `best.safetensors`, with the lowest validation
loss, to sample from. Each is written under a temporary name and then renamed, so a file is never half written.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minigrad as mg
from minigrad.serialization import load_with_metadata

from .config import GPTConfig
from .errors import CheckpointError, ConfigError, GPTError
from .model import GPT
from .run import BEST, LAST, older_checkpoints
from .text.tokenizer import CharTokenizer, Tokenizer, from_state


def save(path: str | os.PathLike[str], model: GPT, optimizer: Any, tokenizer: Tokenizer, run: dict[str, Any]) -> None:
    """Write a checkpoint. `run` is the state of the training, as plain numbers, strings, lists and dicts."""
    tensors = {f"model.{name}": value for name, value in exact_weights(model, optimizer).items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state_dict().items()}
    about = {"config": dataclasses.asdict(model.config), "tokenizer": tokenizer.state(), "run": run}
    mg.save(tensors, path, metadata={"minigrad": json.dumps(about)})


def exact_weights(model: GPT, optimizer: Any = None) -> dict[str, mg.Tensor]:
    """The parameters by name, as they are written to files.

    16-bit parameters become float32, with the values of the optimizer's masters if it has them. Such a file can be used
    wherever float32 can, and rounding gives the 16-bit parameters back.
    """
    masters: Any = {} if optimizer is None else optimizer.masters()
    values = {name: masters.get(p, p.data) for name, p in model.named_parameters()}
    return {name: mg.Tensor(x, dtype="float32" if x.dtype.itemsize == 2 else None) for name, x in values.items()}


@dataclasses.dataclass
class Checkpoint:
    """What `load` found in a file."""

    path: Path
    config: GPTConfig
    tokenizer: Tokenizer
    run: dict[str, Any]
    tensors: dict[str, mg.Tensor]

    def part(self, prefix: str) -> dict[str, mg.Tensor]:
        """The tensors of "model" or "optimizer", by name."""
        return part(self.tensors, prefix)

    @property
    def options(self) -> dict[str, Any]:
        """The options of model and training that the run was started with."""
        return {**dataclasses.asdict(self.config), **self.run["train_config"]}

    def check_same_text(self, data_id: str) -> None:
        """Raise `ConfigError` if the run was trained on another text than the one with this id."""
        if self.run["data_id"] != data_id:
            raise ConfigError(f"{self.path} was trained on another text; resume with the same --data")

    def model(self, device: str = "cpu") -> GPT:
        """The model, with its weights, in evaluation mode."""
        model = GPT(self.config)
        try:
            model.load_state_dict(self.part("model"))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        model.to(device)
        model.eval()
        return model


def part(tensors: Mapping[str, mg.Tensor], prefix: str) -> dict[str, mg.Tensor]:
    """The tensors named "prefix.…", by the rest of the name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file; raises `CheckpointError` if it is missing, damaged, or something else."""
    try:
        tensors, metadata = load_with_metadata(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    try:
        about = json.loads(metadata["minigrad"])
        if "characters" in about:  # from before there were other tokenizers
            tokenizer: Tokenizer = CharTokenizer(about["characters"])
        else:
            tokenizer = from_state(about["tokenizer"])
        run = about["run"]
        if not isinstance(run, dict) or not isinstance(run.get("train_config", {}), dict):
            raise TypeError(f"run is {str(run):.100}; expected a dict whose train_config is a dict")
        return Checkpoint(Path(path), GPTConfig(**about["config"]), tokenizer, run, tensors)
    except GPTError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of this project ({why})") from error


def load_last(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read the checkpoint to resume a run from. If the last cannot be read, print a warning and read the one before.

    That is the newest that --keep has left, or else the best. Raises `CheckpointError` if there is none.
    """
    folder = Path(folder)
    paths = [folder / LAST, *older_checkpoints(folder).values(), folder / BEST]
    unreadable: list[CheckpointError] = []
    for path in paths:
        try:
            saved = load(path)
        except CheckpointError as error:
            unreadable.append(error)
            continue
        if unreadable:
            print(f"warning     {unreadable[0]}; resuming from {path}, step {saved.run.get('iteration')}")
        return saved
    raise unreadable[0]


def find(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint to sample from: a file itself; in a run's folder the best, or else the last."""
    folder = Path(folder)
    if folder.is_file():
        return folder
    for name in (BEST, LAST):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: found no checkpoint ({BEST} or {LAST}) there")
