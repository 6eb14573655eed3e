"""The small models whose layers the site shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import minigrad as mg
from gpt import GPT, GPTConfig

NEWER = {"position": "rotary", "norm": "rms", "activation": "relu2", "qk_norm": True, "logit_softcap": 15.0}
VARIANTS: dict[str, dict[str, Any]] = {"GPT-2": {}, "GPT with newer parts": NEWER}


def models() -> Iterator[tuple[str, GPT, mg.Tensor]]:
    """The name of each model, the model, and its loss on a few tokens, still on the tape."""
    ids, targets = mg.Tensor([[1, 2, 3, 4]]), mg.Tensor([[2, 3, 4, 5]])
    for name, options in VARIANTS.items():
        model = GPT(GPTConfig(block_size=4, vocab_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.1, **options))
        yield name, model, model(ids, targets)[1]
