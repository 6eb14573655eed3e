"""One file with the model inside, which needs no server: the weights as float16 in base64, and a forward pass in
JavaScript (static/model.js).

Every GPT of this project can be exported, with any options and any of its tokenizers, as long as it is small.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt import GPT, CharTokenizer, ConfigError, checkpoint, lora
from gpt.errors import reason
from gpt.text.tokenizer import Tokenizer
from minigrad.serialization import write_atomically

from .analysis import Model

STATIC = Path(__file__).parent / "static"
MOST_PARAMETERS = 16_000_000  # 43 MB as base64, about the most that a browser still opens at once
SCRIPTS = ("sampling.js", "model.js", "exported.js")


def write_page(path: Path, name: str, model: GPT, tokenizer: Tokenizer) -> None:
    """Write the page of a model to a file.

    Raises `ConfigError` for a model of more than `MOST_PARAMETERS`, for weights that float16 cannot hold, and if the
    file cannot be written.
    """
    check_can_export(model)
    try:
        write_atomically(path, page_of(Model(name, lora.merge(model), tokenizer)).encode())
    except OSError as error:
        raise ConfigError(f"--export {path}: cannot be written ({reason(error)})") from error


def page_of(shown: Model) -> str:
    """The page of a model."""
    config = shown.model.config
    names = [name for name, _ in config.parameter_shapes()]
    weights = {name: weights.numpy() for name, weights in checkpoint.exact_weights(shown.model).items()}
    content = b"".join(halves(name, weights[name]) for name in names)
    (end,) = shown.end_of_text() or [None]
    about = {
        "config": dataclasses.asdict(config),
        "shapes": [[name, weights[name].shape] for name in names],
        "tokenizer": tokenizer_state(shown.tokenizer),
        "size": shown.vocab_size,
        "end": end,
        "prompt": shown.prompt(),
    }
    script = "".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; base-uri 'none'"
    return fill(
        (STATIC / "exported.html").read_text(encoding="utf-8"),
        {
            "policy": policy,
            "name": html.escape(shown.name),
            "style": style,
            "parameters": f"{shown.model.num_parameters():,}",
            "layers": str(config.n_layer),
            "heads": str(config.n_head),
            "channels": str(config.n_embd),
            "context": str(config.block_size),
            "about": json.dumps(about).replace("<", "\\u003c"),  # so that no text in it ends the element
            "weights": base64.b64encode(content).decode(),
            "script": script,
        },
    )


def check_can_export(model: GPT) -> None:
    """Raise `ConfigError` for a model that is too large."""
    if model.num_parameters() > MOST_PARAMETERS:
        raise ConfigError(
            f"--export: the model has {model.num_parameters():,} parameters; expected at most {MOST_PARAMETERS:,}, "
            "which a browser can still compute with"
        )


def halves(name: str, values: np.ndarray) -> bytes:
    """Numbers as little-endian float16."""
    with np.errstate(over="ignore"):
        rounded = values.astype("<f2")
    if not np.isfinite(rounded).all():
        raise ConfigError(f"--export: {name} has {abs(values).max():.3g}; expected numbers that float16 can hold")
    return rounded.tobytes()


def tokenizer_state(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the page needs of a tokenizer: the characters, or the bytes of each token as base64.

    A pair of tokens is merged if together they are a token, the lowest first, so the merges follow from the tokens.
    """
    if isinstance(tokenizer, CharTokenizer):
        return {"characters": tokenizer.characters}
    special = tokenizer.special_tokens.values()
    count = min(special, default=tokenizer.vocab_size)  # the special tokens come last, and are no text
    return {"tokens": [base64.b64encode(tokenizer.decode_bytes([token])).decode() for token in range(count)]}


def digest(text: str) -> str:
    """The hash by which the page's policy allows a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def fill(template: str, parts: dict[str, str]) -> str:
    """The template with each {name} replaced by the part of that name."""
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)
