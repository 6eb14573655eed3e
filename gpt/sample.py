"""Sampling: a model's logits into tokens, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

import minigrad as mg
from minigrad.memory import keep_freed_memory

from .config import number_or_nan
from .errors import ConfigError, GPTError, memory_advice

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
    stop_tokens: Any = None,
    vocab_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the next token of each row of ids (B, T), `max_new_tokens` times, as integers (B,).

    ids: an array (B, T), or a list of B prompts of any lengths, none of which sees another.
    temperature: logits are divided by it; below 1 is more careful, above 1 more daring, 0 takes the likeliest token.
    top_k: sample among the k likeliest tokens only.
    top_p: sample among the likeliest tokens that together have probability p (nucleus sampling, Holtzman et al., 2019).
    seed: the same seed gives the same tokens; None draws from minigrad's generator.
    use_cache: keep keys and values instead of computing them again; the tokens are the same.
    stop_tokens: an id, or several, any of which ends a row. A row that has ended repeats its last token until all
        have, and then the stream ends too.
    vocab_size: sample among the ids below it only, for a model with more than its tokenizer knows: some round the
        number up. None for all of the model's.

    When the context is full it slides: the model sees the last block_size tokens of each row. It is in evaluation mode
    while it computes a token, and between two of them in whatever mode it was. Raises `GPTError` where the logits give
    nothing to choose from, as those of a model that has diverged.
    """
    check_options(max_new_tokens, temperature, top_k, top_p, seed, vocab_size)
    keep_freed_memory()
    prompts = _rows(ids, model.config.vocab_size)
    stop = _stop_tokens(stop_tokens, model.config.vocab_size)
    rng = mg.random.new_generator(seed)

    def choose_tokens(logits: np.ndarray) -> np.ndarray:
        return choose(logits[:, :vocab_size], temperature, top_k, top_p, rng)

    return _continue(model, prompts, max_new_tokens, choose_tokens, use_cache, stop)


def _continue(
    model: GPT,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    choose_tokens: Callable[[np.ndarray], np.ndarray],
    use_cache: bool,
    stop: np.ndarray,
) -> Iterator[np.ndarray]:
    block_size, device = model.config.block_size, model.wte.weight.device
    longest = max(map(len, prompts))
    padding = np.array([longest - len(prompt) for prompt in prompts])  # the rows are aligned at the right
    tokens = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    ended = np.zeros(len(prompts), bool)
    cache = model.new_cache() if use_cache else None
    modules = list(model.modules())  # finding them again for each token would take a tenth of a small model's time
    for end in range(longest, longest + max_new_tokens):
        if cache is not None and cache.length == block_size:
            cache = None  # the window slides: every token has a new position, so nothing that was kept is valid
        tokens = tokens[:, -block_size:]  # those before `end` that the model sees
        empty = np.maximum(padding - max(0, end - block_size), 0)
        new = tokens if cache is None or not cache.length else tokens[:, -1:]
        mode = model.evaluating() if any(module.training for module in modules) else nullcontext()
        with mode, mg.no_grad(), memory_advice("what takes less: fewer prompts at a time, or shorter ones"):
            logits = model.next_logits(
                mg.Tensor(new, device=device).data, cache=cache, padding=empty if empty.any() else None
            )
        following = np.where(ended, tokens[:, -1], choose_tokens(logits.numpy()))
        tokens = np.concatenate([tokens, following[:, None]], axis=1)
        yield following
        ended |= np.isin(tokens[:, -1], stop)
        if ended.all():
            return


def generate(model: GPT, ids: Any, max_new_tokens: int, stop_tokens: Any = None, **options: Any) -> Any:
    """The rows of ids with the tokens that `stream` yields behind them.

    An array (B, T) gives an array, filled up as the stream fills it. A list of prompts gives a list of arrays (T_i,):
    each ends with its first stop token, or after `max_new_tokens`.
    """
    steps = list(stream(model, ids, max_new_tokens, stop_tokens=stop_tokens, **options))
    prompts = _rows(ids, model.config.vocab_size)
    new: Any = np.array(steps, np.int64).reshape(-1, len(prompts)).T  # (B, steps)
    if isinstance(ids, (list, tuple)):
        stop = _stop_tokens(stop_tokens, model.config.vocab_size)
        new = [row[: stops.argmax() + 1] if stops.any() else row for row in new for stops in [np.isin(row, stop)]]
    rows = [np.concatenate(parts) for parts in zip(prompts, new, strict=True)]
    return rows if isinstance(ids, (list, tuple)) else np.stack(rows)


def choose(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, rng: np.random.Generator
) -> np.ndarray:
    """One token a row from logits (B, V): integers (B,).

    Sampling is by the Gumbel-max trick: the largest of logit + Gumbel noise falls on token i with probability
    softmax(logits)_i. Raises `GPTError` for a row whose largest logit is not finite.
    """
    largest = logits.max(axis=-1, keepdims=True)  # NaN if any of them is
    if not np.isfinite(largest).all():
        found = largest[~np.isfinite(largest)][0]
        raise GPTError(f"the largest logit of the model is {found}; wanted a finite one to sample by: it has diverged")
    if temperature == 0:
        return logits.argmax(axis=-1)
    logits = logits.astype(np.float64) - largest
    with np.errstate(over="ignore"):  # near temperature 0 all but the likeliest become -inf
        logits /= temperature
    if top_k is not None and top_k < logits.shape[1]:
        kth = np.partition(logits, -top_k, axis=-1)[:, -top_k, None]  # (B, 1)
        logits[logits < kth] = -np.inf
    if top_p is not None:
        ranked = -np.sort(-logits, axis=-1)  # (B, V), the likeliest first
        probabilities = mg.functional.softmax(ranked).numpy()
        before = probabilities.cumsum(axis=-1) - probabilities  # of the tokens that are likelier; 0 for the first
        last = (before < top_p).sum(axis=-1, keepdims=True) - 1  # the last rank that is still needed
        logits[logits < np.take_along_axis(ranked, last, axis=-1)] = -np.inf
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


# Checks


def check_options(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None = None,
    vocab_size: int | None = None,
) -> None:
    """Raise `ConfigError` for options that have no meaning."""
    at_least_one = (("top_k", top_k, 1), ("vocab_size", vocab_size, 1))
    for name, value, least in (("max_new_tokens", max_new_tokens, 0), *at_least_one, ("seed", seed, 0)):
        if value is None and name != "max_new_tokens":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ConfigError(f"{name} is {value!r}; wanted a whole number")
        if value < least:
            raise ConfigError(f"{name} is {value}; wanted at least {least}")
    if not number_or_nan(temperature) >= 0:
        raise ConfigError(f"temperature is {temperature!r}; wanted at least 0")
    if top_p is not None and not 0 < number_or_nan(top_p) <= 1:
        raise ConfigError(f"top_p is {top_p!r}; wanted above 0 and at most 1")


def _rows(ids: Any, vocab_size: int) -> list[np.ndarray]:
    """The rows of an array (B, T), or the prompts of a list, as int64 arrays (T,)."""
    if isinstance(ids, (list, tuple)):
        rows = [mg.Tensor(row).numpy() for row in ids]
    else:
        array = mg.Tensor(ids).numpy()
        rows = [*array] if array.ndim == 2 else []
    wrong = [row for row in rows if row.ndim != 1 or not row.size or row.dtype.kind not in "iu"]
    if wrong or not rows:
        got = wrong[0] if wrong else mg.Tensor(ids).numpy()
        raise ConfigError(
            f"generate: wanted ids, integers (B, T), or a list of rows of them, none empty; got {got.shape} {got.dtype}"
        )
    for row in rows:
        if row.min() < 0 or row.max() >= vocab_size:
            raise ConfigError(f"generate: wanted ids from 0 to {vocab_size - 1}; got {row.min()} to {row.max()}")
    return [row.astype(np.int64) for row in rows]  # whatever the prompt's dtype, a sampled token fits


def _stop_tokens(stop_tokens: Any, vocab_size: int) -> np.ndarray:
    """None, an id or several as an array."""
    several = list(stop_tokens) if isinstance(stop_tokens, (set, frozenset)) else stop_tokens
    stop = np.atleast_1d([] if several is None else several)
    if stop.size and (stop.dtype.kind not in "iu" or stop.min() < 0 or stop.max() >= vocab_size):
        raise ConfigError(f"stop_tokens is {stop_tokens!r}; wanted ids from 0 to {vocab_size - 1}")
    return stop
