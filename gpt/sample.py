"""Sampling: a model's logits into tokens, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import minigrad as mg

from .errors import ConfigError

if TYPE_CHECKING:
    from .model import GPT


def stream(
    model: GPT,
    ids: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    use_cache: bool = True,
) -> Iterator[Any]:
    """Yield the next token of each row of ids (B, T), `max_new_tokens` times, as integers (B,).

    temperature: logits are divided by it; below 1 is more careful, above 1 more daring, 0 takes the likeliest token.
    top_k: sample among the k likeliest tokens only.
    top_p: sample among the likeliest tokens that together have probability p (nucleus sampling, Holtzman et al., 2019).
    seed: the same seed gives the same tokens; None draws from minigrad's generator.
    use_cache: keep keys and values instead of computing them again; the tokens are the same.

    When the context is full it slides: the model sees the last block_size tokens.
    """
    check_options(max_new_tokens, temperature, top_k, top_p)
    ids, device = mg.Tensor(ids).numpy(), model.wte.weight.device
    if ids.ndim != 2 or ids.shape[1] < 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"generate: wanted ids, integers (B, T) with T of at least 1; got {ids.shape} {ids.dtype}")
    block_size = model.config.block_size
    ids = ids.astype("int64")  # whatever the prompt's dtype, a sampled token fits
    rng = mg.random.new_generator(seed)
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache() if use_cache else None
        ids = new = ids[:, -block_size:]
        for _ in range(max_new_tokens):
            if cache is not None and cache.length + new.shape[1] > block_size:
                cache = None  # the window slides: every token has a new position, so nothing that was kept is valid
            with mg.no_grad():
                logits, _ = model(mg.Tensor(ids if cache is None else new, device=device).data, cache=cache)
            new = choose(logits[:, -1].numpy(), temperature, top_k, top_p, rng)[:, None]  # (B, 1)
            ids = mg.functional.concatenate([ids, new], axis=1).data[:, -block_size:]
            yield new[:, 0]
    finally:
        model.train(was_training)


def generate(model: GPT, ids: Any, max_new_tokens: int, *options: Any, **named_options: Any) -> Any:
    """The rows of ids (B, T) with all of the tokens that `stream` yields behind them."""
    ids = mg.Tensor(ids, device="cpu")
    tokens = [token[:, None] for token in stream(model, ids, max_new_tokens, *options, **named_options)]
    return mg.functional.concatenate([ids.astype("int64"), *tokens], axis=1).data


def check_options(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `ConfigError` for options that have no meaning."""
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; wanted at least 0")
    if not temperature >= 0:
        raise ConfigError(f"temperature is {temperature}; wanted at least 0")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}; wanted at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}; wanted above 0 and at most 1")


def choose(logits: Any, temperature: float, top_k: int | None, top_p: float | None, rng: Any) -> Any:
    """One token a row from logits (B, V), on the CPU: integers (B,).

    Sampling is by the Gumbel-max trick: the largest of logit + Gumbel noise falls on token i with probability
    softmax(logits)_i.
    """
    if temperature == 0:
        return logits.argmax(axis=-1)
    logits = logits.astype("float64") / temperature
    ranked = -mg.get_array_module(logits).sort(-logits, axis=-1)  # (B, V), the largest first
    if top_k is not None:
        kth = ranked[:, min(top_k, ranked.shape[1]) - 1, None]  # (B, 1)
        logits = mg.functional.masked_fill(logits, logits < kth, -float("inf")).data
        ranked = mg.functional.masked_fill(ranked, ranked < kth, -float("inf")).data
    if top_p is not None:
        probabilities = mg.functional.softmax(ranked).data
        before = probabilities.cumsum(axis=-1) - probabilities  # of the tokens that are likelier; 0 for the first
        last = (before < top_p).sum(axis=-1, keepdims=True) - 1  # the last rank that is still needed
        smallest = ranked[range(len(ranked)), last[:, 0]][:, None]
        logits = mg.functional.masked_fill(logits, logits < smallest, -float("inf")).data
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
