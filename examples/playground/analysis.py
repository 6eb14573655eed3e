"""What the page shows about one prediction, computed by the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg
from gpt import GPT, CharTokenizer, ConfigError
from gpt.errors import memory_advice
from gpt.sample import stream
from gpt.text.tokenizer import END_OF_TEXT, Tokenizer
from minigrad import functional as F

PROMPT = "ROMEO:\nBut soft, what light"


@dataclass
class Prediction:
    """The prediction after the last of T tokens, and how it came about. V tokens are in the vocabulary."""

    target: int  # the token whose probability is explained
    logits: np.ndarray  # (V,)
    lens: np.ndarray  # (n_layer + 1, V): the probabilities if the model ended before layer 0, after layer 0, …
    attention: np.ndarray  # (n_layer, n_head, T): what the last token attends to
    influence: np.ndarray  # (T,): gradient x input


class Model:
    """A model and its tokenizer, which compute for one request at a time."""

    def __init__(self, name: str, model: GPT, tokenizer: Tokenizer) -> None:
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.lock = threading.Lock()
        for parameter in model.parameters():
            parameter.requires_grad = False  # only the gradient of the embeddings is shown

    def about(self) -> dict[str, Any]:
        """What the page says about the model."""
        c = self.model.config
        shape = {"layers": c.n_layer, "heads": c.n_head, "channels": c.n_embd, "context": c.block_size}
        size = {"parameters": self.model.num_parameters(), "vocabulary": self.vocab_size}
        return {"name": self.name, "prompt": self.prompt(), **size, **shape}

    def prompt(self) -> str:
        """A text to begin with: of characters, only those that the vocabulary has."""
        if not isinstance(self.tokenizer, CharTokenizer):
            return PROMPT
        characters = self.tokenizer.characters
        return "".join(c for c in PROMPT if c in characters).strip() or characters[:10]

    @property
    def vocab_size(self) -> int:
        """How many tokens there are. A model may have more ids than its tokenizer."""
        return min(self.tokenizer.vocab_size, self.model.config.vocab_size)

    def label(self, token: int) -> str:
        """The text of one token. Bytes that are no character alone become escapes."""
        return self.tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")

    def tokens(self, text: str) -> list[dict[str, Any]]:
        """The tokens of a text, each with its id and its text."""
        return [{"id": int(token), "text": self.label(int(token))} for token in self.tokenizer.encode(text)]

    def check(self, ids: list[int], most: int) -> np.ndarray:
        """The ids as an array. Raises `ConfigError` unless they are tokens, at least one and at most `most`."""
        if not ids or any(type(token) is not int or not 0 <= token < self.vocab_size for token in ids):
            raise ConfigError(f"expected tokens, numbers from 0 to {self.vocab_size - 1}, at least one")
        if len(ids) > most:
            raise ConfigError(f"the text has {len(ids):,} tokens; the page takes at most {most:,}")
        return np.array(ids, np.int64)

    def explain(self, ids: np.ndarray, target: int | None = None) -> Prediction:
        """The prediction after the last of the ids (T,), at most block_size of them.

        target: the token to explain (default: the likeliest). Its influence is, for each input token, the gradient of
        its log-probability with respect to the token's embedding (position included), times the embedding, summed over
        the channels: how the log-probability changes, to first order, if the embedding grows by a small part of itself.
        """
        model, V = self.model, self.vocab_size
        with self.lock, memory_advice("try a shorter text"):
            row = mg.Tensor(ids[None], device=model.wte.weight.device)  # (1, T)
            attention = [weights.numpy()[0, :, -1] for weights in model.attention_weights(row)]  # (nh, T)
            x = mg.Tensor(model.embed(row)[0].data, requires_grad=True)  # (1, T, C)
            streams = [x]
            for block in model.h:
                streams.append(block(streams[-1]))
            predictions = [model.logits(model.ln_f(stream[:, -1]))[0, :V] for stream in streams]  # (V,)
            if target is None:
                target = int(predictions[-1].numpy().argmax())
            F.log_softmax(predictions[-1])[target].backward()
            assert x.grad is not None
            lens = [F.softmax(logits.detach()).numpy() for logits in predictions]
            influence = mg.Tensor((x.grad * x.data).sum(axis=-1)[0]).numpy()
            return Prediction(target, predictions[-1].numpy(), np.stack(lens), np.stack(attention), influence)

    def continuation(self, ids: np.ndarray, length: int, options: dict[str, Any]) -> Iterator[np.ndarray]:
        """The tokens that examples/sample.py generates with these options, each (1,). See `next_token`."""
        return stream(
            self.model, ids[None], length, **options, stop_tokens=self.end_of_text(), vocab_size=self.vocab_size
        )

    def next_token(self, tokens: Iterator[np.ndarray]) -> int | None:
        """The next token of a continuation, or None at its end."""
        with self.lock:
            token = next(tokens, None)
        return None if token is None or int(token[0]) in self.end_of_text() else int(token[0])

    def end_of_text(self) -> list[int]:
        """The token that ends a text, if the vocabulary has it."""
        special = self.tokenizer.special_tokens
        return [special[END_OF_TEXT]] if END_OF_TEXT in special else []
