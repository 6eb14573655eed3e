"""Sampling: generate tokens one by one from a model's logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import minigrad as mg
from minigrad.memory import keep_freed_memory

from .config import GPTConfig
from .errors import ConfigError, GPTError, memory_advice
from .options import check_count, number_or_nan, option


class LanguageModel(Protocol):
    """The interface that sampling needs. `GPT` and the models of gpt/course/ladder.py have it.

    `next_logits(ids)` maps integers (B, T) to the logits (B, V) of the token after the last of each row. cache: holds
    the tokens before `ids`. padding: the number of ids at the left of each row to ignore. A model whose `new_cache`
    returns None recomputes everything for each token. The other methods are those of `nn.Module`.
    """

    config: GPTConfig

    def next_logits(self, ids: Any, cache: Any = None, padding: Any = None) -> mg.Tensor: ...

    def new_cache(self) -> Any: ...

    def parameters(self) -> Iterable[mg.Tensor]: ...

    def modules(self) -> Iterable[Any]: ...

    def evaluating(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises `ConfigError` for bad values.

    top_p is nucleus sampling (Holtzman et al., 2019). use_cache keeps keys and values instead of recomputing them; the
    tokens are the same. stop_tokens is an id, or several ids; each of them ends a row. vocab_size is for models that
    have more ids than their tokenizer, as some models round the number up.
    """

    temperature: float = option(1.0, "divides the logits: below 1 is less random; 0 takes the likeliest token")
    top_k: int | None = option(None, "sample only from the k likeliest tokens")
    top_p: float | None = option(None, "sample only from the likeliest tokens that together have this probability")
    seed: int | None = option(None, "random seed; the same seed gives the same text")
    use_cache: bool = option(True, "keep keys and values of the tokens so far")
    stop_tokens: Any = option(None, "ids that end a row")
    vocab_size: int | None = option(None, "sample only from the ids below this number")

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("vocab_size", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if not number_or_nan(self.temperature) >= 0:
            raise ConfigError(f"temperature is {self.temperature!r}; expected a number of at least 0")
        if self.top_p is not None and not 0 < number_or_nan(self.top_p) <= 1:
            raise ConfigError(f"top_p is {self.top_p!r}; expected a number above 0 and at most 1")

    def stop_ids(self, vocab_size: int) -> np.ndarray:
        """`stop_tokens` as an array of ids below `vocab_size`."""
        several = list(self.stop_tokens) if isinstance(self.stop_tokens, (set, frozenset)) else self.stop_tokens
        stop = np.atleast_1d([] if several is None else several)
        if stop.size and (stop.dtype.kind not in "iu" or stop.min() < 0 or stop.max() >= vocab_size):
            raise ConfigError(f"stop_tokens is {self.stop_tokens!r}; expected ids from 0 to {vocab_size - 1}")
        return stop

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One token per row from logits (B, V): integers (B,).

        Samples with the Gumbel-max trick: token i has the largest logit + Gumbel noise with probability
        softmax(logits)_i. Raises `GPTError` for a row whose largest logit is not finite.
        """
        logits = self.adjusted(logits)
        return logits.argmax(axis=-1) if self.temperature == 0 else (logits + rng.gumbel(size=logits.shape)).argmax(-1)

    def adjusted(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, V) whose softmax is the distribution that `choose` samples from: -inf for tokens left out.

        At temperature 0 they are the logits themselves, of which `choose` takes the largest.
        """
        logits = logits[:, : self.vocab_size]
        largest = logits.max(axis=-1, keepdims=True)  # NaN if any logit is
        if not np.isfinite(largest).all():
            found = largest[~np.isfinite(largest)][0]
            raise GPTError(f"the largest logit is {found}; expected a finite number: the model has diverged")
        if self.temperature == 0:
            return logits
        logits = logits.astype(np.float64) - largest
        with np.errstate(over="ignore"):  # near temperature 0, all but the largest become -inf
            logits /= self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            kth = np.partition(logits, -self.top_k, axis=-1)[:, -self.top_k, None]  # (B, 1)
            logits[logits < kth] = -np.inf
        if self.top_p is not None:
            ranked = -np.sort(-logits, axis=-1)  # (B, V), likeliest first
            probabilities = mg.functional.softmax(ranked).numpy()
            before = probabilities.cumsum(axis=-1) - probabilities  # total of the likelier tokens; 0 for the first
            last = (before < self.top_p).sum(axis=-1, keepdims=True) - 1  # the last rank to keep
            logits[logits < np.take_along_axis(ranked, last, axis=-1)] = -np.inf
        return logits


def stream(model: LanguageModel, ids: Any, max_new_tokens: int, *sampling: Any, **options: Any) -> Iterator[np.ndarray]:
    """Yield the next token of each row of ids (B, T), `max_new_tokens` times, as integers (B,).

    ids: an array (B, T), or a list of B prompts of any lengths. Prompts do not see each other.
    The options are the fields of `Sampling`, in their order. Without a seed, minigrad's generator is used. A row that
    has ended repeats its last token until all rows have ended; then the stream ends.

    When the context is full it slides: the model sees the last block_size tokens of each row. The model is in
    evaluation mode while it computes a token, and keeps its own mode in between. Raises `GPTError` if the largest logit
    is not finite, which means that the model has diverged.
    """
    check_count("max_new_tokens", max_new_tokens, 0)
    how = Sampling(*sampling, **options)
    prompts, stop = rows_of(ids, model.config.vocab_size), how.stop_ids(model.config.vocab_size)
    keep_freed_memory()
    return _continue(model, prompts, max_new_tokens, how, stop, mg.random.new_generator(how.seed))


def _continue(
    model: LanguageModel,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    how: Sampling,
    stop: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    block_size, device = model.config.block_size, next(iter(model.parameters())).device
    longest = max(map(len, prompts))
    padding = np.array([longest - len(prompt) for prompt in prompts])  # at the left of each row
    tokens = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    ended = np.zeros(len(prompts), bool)
    cache = model.new_cache() if how.use_cache else None
    modules = list(model.modules())  # listed once: listing them per token would take a tenth of a small model's time
    for end in range(longest, longest + max_new_tokens):
        if cache is not None and cache.length == block_size:
            cache = None  # the window slides, so every token has a new position and the cache is invalid
        tokens = tokens[:, -block_size:]  # the tokens that the model sees
        empty = np.maximum(padding - max(0, end - block_size), 0)
        new = tokens if cache is None or not cache.length else tokens[:, -1:]
        mode = model.evaluating() if any(module.training for module in modules) else nullcontext()
        with mode, mg.no_grad(), memory_advice("to use less memory: fewer prompts at a time, or shorter ones"):
            logits = model.next_logits(
                mg.Tensor(new, device=device).data, cache=cache, padding=empty if empty.any() else None
            )
        following = np.where(ended, tokens[:, -1], how.choose(logits.numpy(), rng))
        tokens = np.concatenate([tokens, following[:, None]], axis=1)
        yield following
        ended |= np.isin(tokens[:, -1], stop)
        if ended.all():
            return


def generate(model: LanguageModel, ids: Any, max_new_tokens: int, *sampling: Any, **options: Any) -> Any:
    """The rows of ids, continued with the tokens that `stream` yields.

    An array (B, T) gives an array; a row that has ended repeats its last token. A list of prompts gives a list of
    arrays (T_i,) that end with the first stop token or after `max_new_tokens`.
    """
    steps = list(stream(model, ids, max_new_tokens, *sampling, **options))
    prompts = rows_of(ids, model.config.vocab_size)
    new: Any = np.array(steps, np.int64).reshape(-1, len(prompts)).T  # (B, steps)
    if isinstance(ids, (list, tuple)):
        stop = Sampling(*sampling, **options).stop_ids(model.config.vocab_size)
        new = [row[: stops.argmax() + 1] if stops.any() else row for row in new for stops in [np.isin(row, stop)]]
    rows = [np.concatenate(parts) for parts in zip(prompts, new, strict=True)]
    return rows if isinstance(ids, (list, tuple)) else np.stack(rows)


def rows_of(ids: Any, vocab_size: int) -> list[np.ndarray]:
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
            f"generate: expected ids, integers (B, T), or a list of nonempty rows, got {got.shape} {got.dtype}"
        )
    for row in rows:
        if row.min() < 0 or row.max() >= vocab_size:
            raise ConfigError(f"generate: expected ids from 0 to {vocab_size - 1}, got {row.min()} to {row.max()}")
    return [row.astype(np.int64) for row in rows]  # int64, so that any sampled token fits
