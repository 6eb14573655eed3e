"""Checkpoints: one safetensors file with the model, the optimizer and all else that an exact resume needs.

A run keeps two in its folder: `last.safetensors`, to resume from, and `best.safetensors`, with the lowest validation
loss, to sample from. Each is written under a temporary name and then renamed, so a file is never half written. It
contains its SHA-256, and `load` believes nothing that it says without a check.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import minigrad as mg
from minigrad.serialization import load_with_metadata

from . import metrics
from .config import GPTConfig, check_tensors
from .errors import CheckpointError, ConfigError, DataError, GPTError
from .model import GPT
from .options import number_or_nan, restore
from .run import BEST, LAST, METRICS, older_checkpoints
from .text.tokenizer import CharTokenizer, Tokenizer, from_state


def save(
    path: str | os.PathLike[str] | None,
    model: GPT,
    optimizer: Any,
    tokenizer: Tokenizer,
    run: dict[str, Any],
    outer: Any = None,
) -> None:
    """Write a checkpoint. `run` is the state of the training, as plain numbers, strings, lists and dicts.

    path: None on ranks that do not write. They only take part in collecting an optimizer's state that is shared out.
    outer: with DiLoCo, the object that takes the outer steps.
    """
    tensors = {f"model.{name}": value for name, value in exact_weights(model, optimizer).items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state_dict().items()}
    if outer is not None:
        tensors |= {f"outer.{name}": value for name, value in outer.state_dict().items()}
    if path is None:
        return
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
        """The tensors of "model", "optimizer" or "outer", by name."""
        return part(self.tensors, prefix)

    @property
    def options(self) -> dict[str, Any]:
        """The options of model and training that the run was started with."""
        return {**dataclasses.asdict(self.config), **self.run["train_config"]}

    def rows(self) -> list[dict[str, Any]]:
        """The rows that metrics.csv, beside this file, had when it was saved. Raises FileNotFoundError without it."""
        if "rows" in self.run:  # metrics.csv could not be written, or was not the record yet
            return self.run["rows"]
        try:
            return metrics.read(self.path.with_name(METRICS), self.run["metrics"])
        except DataError as error:
            raise CheckpointError(str(error)) from error

    def check_same_text(self, data_id: str) -> None:
        """Raise `ConfigError` if the run was trained on another text than the one with this id."""
        if self.run["data_id"] != data_id:
            raise ConfigError(f"{self.path} was trained on another text; resume with the same --data")

    def model(self, device: str = "cpu") -> GPT:
        """The model, with its weights, in evaluation mode."""
        try:
            check_tensors(self.config.parameter_shapes(), self.part("model"))  # `load` does not for a run of adapters
            with mg.random.blank():
                model = GPT(self.config)
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


class _Run(dict):
    """The state of a training run. Raises `CheckpointError` for bad values, and for a part that is not there."""

    def __init__(self, path: Path, content: Any) -> None:
        if not isinstance(content, dict):
            raise CheckpointError(f"run is {content!r:.100}; expected a dict")
        unknown = [f"{name:.50}" for name in content if name not in PARTS]
        if unknown:
            raise CheckpointError(
                f"its run has parts that this version does not know: {', '.join(map(repr, unknown[:5]))}; it was saved "
                "by a newer version, or is damaged"
            )
        for name, value in content.items():
            try:
                PARTS[name](value)
            except ValueError as error:
                raise CheckpointError(f"its run's {name}: {error}") from error
        super().__init__(content)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(f"{self.path}: its run has no {name}; expected a checkpoint of a training run")


def _check(expected: str, is_right: Callable[[Any], bool]) -> Callable[[Any], None]:
    """A function that raises ValueError for a value that is not right."""

    def check(value: Any) -> None:
        if not is_right(value):
            raise ValueError(f"expected {expected}, got {value!r:.100}")

    return check


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_finite(value: Any) -> bool:
    return abs(number_or_nan(value)) < float("inf")


def _are_options(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str | int | float | None) for x in value.values())


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("bytes")) and isinstance(value.get("sha256"), str)


def _is_scale(value: Any) -> bool:
    is_state = isinstance(value, dict) and _is_finite(value.get("scale")) and _is_count(value.get("good_steps"))
    return value is None or (is_state and value["scale"] > 0)


# The parts of a run, each with a check of its type and range. `Trainer.save` writes them.
PARTS: dict[str, Callable[[Any], None]] = {
    "train_config": _check("options by name", _are_options),
    "iteration": _check("a number of steps", _is_count),
    "best_val_loss": _check("a finite number or null", lambda value: value is None or _is_finite(value)),
    "metrics": _check("the length and the SHA-256 of metrics.csv", _is_mark),
    "rows": metrics.check_rows,
    "random": mg.random.check_state,
    "data_id": _check("text", lambda value: isinstance(value, str)),
    "loss_scale": _check("the state of a GradScaler or null", _is_scale),
    "skipped": _check("a number of steps", _is_count),
    "rollbacks": _check("a number of rollbacks", _is_count),
}


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file; raises `CheckpointError` if it is missing, damaged, or something else.

    All of it is checked before anything is made of it: the types and ranges in the metadata, the options, and the name,
    shape and dtype of each tensor of the model. A run of adapters has no such tensors; `resume` compares its own.
    """
    try:
        tensors, metadata = load_with_metadata(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    try:
        about = json.loads(metadata["minigrad"])
        run = _Run(Path(path), about["run"])
        if "characters" in about:  # from before there were other tokenizers
            tokenizer: Tokenizer = CharTokenizer(about["characters"])
        else:
            tokenizer = from_state(about["tokenizer"])
        config = restore(GPTConfig, about["config"])
        if not run.get("train_config", {}).get("lora_rank"):
            check_tensors(config.parameter_shapes(), part(tensors, "model"))
        return Checkpoint(Path(path), config, tokenizer, run, tensors)
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
