"""Load a model and its tokenizer from a run's folder, a checkpoint, a folder with GPT-2's files, or a name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from . import checkpoint, lora, pretrained, run
from .errors import CheckpointError, PretrainedError, reason
from .model import GPT
from .text import tokenizer

TOKENIZER = "minigrad_tokenizer.json"  # beside config.json, where the vocabulary is not GPT-2's
GPT2_VOCABULARY = "855ec41a9d90094ebb1189ee8082e915505cf2dfe0691a4f39da9c020f9476b2"  # see `_check_is_gpt2s`


def load_model(
    source: str | os.PathLike[str],
    adapters: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    dropout: float | None = None,
) -> tuple[GPT, tokenizer.Tokenizer]:
    """A model in evaluation mode, and its tokenizer.

    source: the folder of a run (its best checkpoint is loaded), a checkpoint file, a folder in Hugging Face's layout of
        GPT-2, or "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", which are downloaded once.
    adapters: a file of LoRA adapters to put on it.
    dropout: replaces the model's own probability.

    Raises `CheckpointError` or `PretrainedError` if there is no model, or if it is damaged.
    """
    named = not Path(source).exists() and pretrained.SHORT_NAMES.fullmatch(str(source))
    if named or Path(source, pretrained.CONFIG).is_file():
        model = GPT.from_pretrained(source, dropout=dropout)
        its_tokenizer = _tokenizer_beside(model, Path(source))
        model.to(device)
    else:
        saved = checkpoint.load(checkpoint.find(source))
        if saved.run.get("train_config", {}).get("lora_rank"):
            raise CheckpointError(
                f"{saved.path}: holds adapters, not a model; load {saved.run['train_config']['model']}, "
                f"and on it {saved.path.with_name(run.ADAPTERS)}"
            )
        if dropout is not None:
            saved.config = dataclasses.replace(saved.config, dropout=dropout)
        model, its_tokenizer = saved.model(device), saved.tokenizer
    return (model if adapters is None else lora.load_adapters(model, adapters)), its_tokenizer


def save_pretrained(model: GPT, its_tokenizer: tokenizer.Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a model in Hugging Face's layout of GPT-2, and its tokenizer beside it unless that is GPT-2's own."""
    model.save_pretrained(folder)
    if isinstance(its_tokenizer, tokenizer.GPT2Tokenizer):
        Path(folder, TOKENIZER).unlink(missing_ok=True)  # of another model that was there
    else:
        its_tokenizer.save(Path(folder, TOKENIZER))


def check_can_save_pretrained(model: GPT, folder: str | os.PathLike[str]) -> None:
    """Make the folder. Raise `PretrainedError` if it cannot be made, or if the model is not a GPT-2.

    A run's folder is rejected: `load_model` would load the model written there in place of the run's.
    """
    pretrained.check_is_gpt2(model.config, {name: p.data for name, p in model.named_parameters()})
    for name in (run.LAST, run.BEST):
        if Path(folder, name).is_file():
            raise PretrainedError(f"{folder}: has a run's {name}; expected another folder to write the model to")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PretrainedError(f"{folder}: cannot be made ({reason(error)})") from error


def _tokenizer_beside(model: GPT, folder: Path) -> tokenizer.Tokenizer:
    if (folder / TOKENIZER).is_file():
        found = tokenizer.load(folder / TOKENIZER)
    else:
        _check_is_gpt2s(folder)
        found = tokenizer.GPT2Tokenizer()
    if found.vocab_size > model.config.vocab_size:  # a model may have more ids: some round the number up
        raise PretrainedError(
            f"{folder}: the model has {model.config.vocab_size} tokens, its tokenizer {found.vocab_size}; "
            f"put a tokenizer other than GPT-2's there as {TOKENIZER}"
        )
    return found


def _check_is_gpt2s(folder: Path) -> None:
    """Raise `PretrainedError` if the folder holds a Hugging Face tokenizer whose vocabulary is not GPT-2's.

    The check compares the SHA-256 of tokens and ids as sorted JSON, so it does not need GPT-2's own files.
    """
    for path in (folder / "tokenizer.json", folder / "vocab.json"):
        if not path.is_file():
            continue
        vocabulary: Any = pretrained.read_json(path)
        if path.name == "tokenizer.json":
            model = vocabulary.get("model")
            vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest() != GPT2_VOCABULARY:
            raise PretrainedError(
                f"{path}: this vocabulary is not GPT-2's, and other Hugging Face tokenizers cannot be read; put a "
                f"tokenizer saved by this project there as {TOKENIZER}, or use GPT.from_pretrained for the model alone"
            )
