"""The encoder-decoder Transformer of "Attention Is All You Need" (Vaswani et al., 2017), with the parts of model.py.

    source ──► source_wte + positions ──► encoder.0 ──► … ──► encoder_ln_f ──► memory
                                                                                 │ keys and values for every block
    target ──► target_wte + positions ──► decoder.0 ──► … ──► decoder_ln_f ──► lm_head ──► logits for the next token

    encoder:  x = x + attn(ln_1(x));                                      x = x + mlp(ln_2(x))
    decoder:  x = x + attn(ln_1(x));  x = x + cross_attn(ln_2(x), memory);  x = x + mlp(ln_3(x))

The encoder reads the whole source: every token attends to every other. The decoder is a GPT whose blocks also attend to
the encoder's output. This cross-attention is the only connection between the two. The MLPs use GELU, like GPT's,
instead of the paper's ReLU.

Shapes: B sequences in a batch, S tokens in each source, T in each target, C = n_embd channels, nh heads of size
hs = C / nh, V = target_vocab_size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import functional as F
from minigrad import nn
from minigrad.memory import keep_freed_memory

from ..config import GPTConfig, linear_shapes, norm_shapes
from ..errors import ConfigError
from ..model import MLP, CausalSelfAttention, KVCache, new_norm
from ..options import check_choices, check_count, check_whole, option
from .beam import END, PAD, START, beam_search, check_length_penalty

__all__ = ["END", "PAD", "START", "Seq2Seq", "Seq2SeqConfig", "sinusoidal_positions"]


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The shape of an encoder-decoder Transformer. The default sizes are those of the paper's base model.

    norm_first: pre-norm, a norm before each part of a block and one after the last block; or, if False, the paper's
        post-norm, a norm after each sum, so that no sum passes unchanged from the first block to the last. Pre-norm is
        the default because it trains without a careful warm-up (Xiong et al., 2020).
    tie_weights: the paper's is "all"; with the default the source can have its own vocabulary.

    Raises `ConfigError` for values that cannot make a model.
    """

    source_vocab_size: int = option(37000, "number of source tokens, including <pad>, <start> and <end>")
    target_vocab_size: int = option(37000, "number of target tokens, including <pad>, <start> and <end>")
    n_layer: int = option(6, "blocks in the encoder, and in the decoder")
    n_head: int = option(8, "heads in each attention; they divide the channels evenly")
    n_embd: int = option(512, "channels")
    dropout: float = option(0.1, "probability of dropout")
    bias: bool = option(True, "biases in linear layers and layer norms")
    position: str = option("sinusoidal", "position embedding", ("sinusoidal", "learned"))
    block_size: int = option(512, "the longest source or target, in tokens, for learned positions")
    norm_first: bool = option(True, "norm before each part of a block, not after it")
    tie_weights: str = option(
        "output",
        "one matrix for target embeddings and output layer, or for source embeddings too",
        ("none", "output", "all"),
    )

    def __post_init__(self) -> None:
        check_whole(self, {"source_vocab_size": 4, "target_vocab_size": 4})  # the three special tokens, and one more
        check_choices(self)
        _ = self.blocks  # checks the other options
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ConfigError(f"position 'sinusoidal' needs an even n_embd, got {self.n_embd}")
        if self.tie_weights == "all" and self.source_vocab_size != self.target_vocab_size:
            raise ConfigError(
                f"tie_weights 'all' needs equal vocabulary sizes, got {self.source_vocab_size} and "
                f"{self.target_vocab_size}"
            )

    @property
    def blocks(self) -> GPTConfig:
        """The shape of a GPT with the same blocks."""
        names = {"block_size", "n_layer", "n_head", "n_embd", "dropout", "bias"}
        return GPTConfig(vocab_size=self.target_vocab_size, **{name: getattr(self, name) for name in names})

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and the shape of each parameter of a `Seq2Seq`, in order; see `GPTConfig.parameter_shapes`."""
        C, blocks, vocab_size = self.n_embd, self.blocks, self.target_vocab_size
        attention = {
            **linear_shapes("c_q", C, C, self.bias),
            **linear_shapes("c_kv", C, 2 * C, self.bias),
            **linear_shapes("c_proj", C, C, self.bias),
        }
        causal = {**linear_shapes("c_attn", C, 3 * C, self.bias), **linear_shapes("c_proj", C, C, self.bias)}
        mlp = {**linear_shapes("c_fc", C, 4 * C, self.bias), **linear_shapes("c_proj", 4 * C, C, self.bias)}
        parts: dict[str, list[tuple[str, dict[str, tuple[int, ...]]]]] = {
            "encoder": [("attn", attention), ("mlp", mlp)],
            "decoder": [("attn", causal), ("cross_attn", attention), ("mlp", mlp)],
        }
        yield "source_wte.weight", (self.source_vocab_size, C)
        if self.tie_weights != "all":
            yield "target_wte.weight", (vocab_size, C)
        if self.position == "learned":
            yield from ((f"{side}_wpe.weight", (self.block_size, C)) for side in ("source", "target"))
        for side, its_parts in parts.items():
            block: dict[str, tuple[int, ...]] = {}
            for i, (part, shapes) in enumerate(its_parts, start=1):
                block |= norm_shapes(f"ln_{i}", blocks) | {f"{part}.{name}": shape for name, shape in shapes.items()}
            for layer in range(self.n_layer):
                yield from ((f"{side}.{layer}.{name}", shape) for name, shape in block.items())
        for side in parts if self.norm_first else ():
            yield from norm_shapes(f"{side}_ln_f", blocks).items()
        if self.tie_weights == "none":
            yield "lm_head.weight", (vocab_size, C)


class Attention(nn.Module):
    """Attention from every token of x (queries) to all tokens of a context (keys, values), in nh heads side by side.

    In the encoder, the context is x itself: self-attention. In the decoder, it is the encoder's output:
    cross-attention. There the keys and values are the same for all target tokens, so they are computed once and passed
    as an argument.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_kv = nn.Linear(config.n_embd, 2 * config.n_embd, bias=config.bias)  # k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def keys_values(self, context: mg.Tensor) -> tuple[mg.Tensor, ...]:
        """The keys and values of a context (B, S, C), both (B, nh, S, hs)."""
        k, v = F.split(self.c_kv(context), context.shape[-1], axis=2)
        return self.heads(k), self.heads(v)

    def forward(
        self, x: mg.Tensor, keys_values: tuple[mg.Tensor, ...], mask: Any = None, weights: list | None = None
    ) -> mg.Tensor:
        """x (B, T, C) and the context's k and v -> (B, T, C).

        mask: True where a token may attend, broadcast to (B, nh, T, S).
        weights: a list to which the attention weights (B, nh, T, S) are appended.
        """
        (k, v), q = keys_values, self.heads(self.c_q(x))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask=mask, dropout_p=p)  # (B, nh, T, hs)
        if weights is not None:  # softmax(q k^T / sqrt(hs)) v, with v = identity
            identity = mg.Tensor(np.eye(k.shape[2]), dtype=v.dtype, device=v.device)
            weights.append(F.scaled_dot_product_attention(q, k, identity, mask=mask).data)
        y = y.transpose(0, 2, 1, 3).reshape(x.shape)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))

    def heads(self, x: mg.Tensor) -> mg.Tensor:
        """(B, T, C) -> (B, nh, T, hs)."""
        B, T, C = x.shape
        return x.reshape(B, T, self.n_head, C // self.n_head).transpose(0, 2, 1, 3)


class ResidualBlock(nn.Module):
    """Base of both blocks: adds a part to the residual stream, with the norm before the part or after the sum."""

    norm_first: bool

    def add(self, x: mg.Tensor, norm: nn.Module, part: Callable[[mg.Tensor], mg.Tensor]) -> mg.Tensor:
        return x + part(norm(x)) if self.norm_first else norm(x + part(x))


class EncoderBlock(ResidualBlock):
    """Self-attention among all tokens of the source, then an MLP."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.norm_first = config.norm_first
        self.ln_1 = new_norm(config.blocks)
        self.attn = Attention(config.blocks)
        self.ln_2 = new_norm(config.blocks)
        self.mlp = MLP(config.blocks)

    def forward(self, x: mg.Tensor, mask: Any = None) -> mg.Tensor:
        x = self.add(x, self.ln_1, lambda x: self.attn(x, self.attn.keys_values(x), mask))
        return self.add(x, self.ln_2, self.mlp)


class DecoderBlock(ResidualBlock):
    """Causal self-attention to the target so far, then cross-attention to the source, then an MLP."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.norm_first = config.norm_first
        self.ln_1 = new_norm(config.blocks)
        self.attn = CausalSelfAttention(config.blocks)
        self.ln_2 = new_norm(config.blocks)
        self.cross_attn = Attention(config.blocks)
        self.ln_3 = new_norm(config.blocks)
        self.mlp = MLP(config.blocks)

    def forward(
        self,
        x: mg.Tensor,
        keys_values: tuple[mg.Tensor, ...],
        source_mask: Any = None,
        mask: Any = None,
        cache: Any = None,
        weights: list | None = None,
    ) -> mg.Tensor:
        x = self.add(x, self.ln_1, lambda x: self.attn(x, cache, mask))
        x = self.add(x, self.ln_2, lambda x: self.cross_attn(x, keys_values, source_mask, weights))
        return self.add(x, self.ln_3, self.mlp)


@dataclass
class Memory:
    """The encoded sources: keys and values (B, nh, S, hs) for each decoder block, and their mask."""

    keys_values: list[tuple[mg.Tensor, ...]]
    mask: Any  # (B, 1, 1, S), False at padding; None if nothing is padded

    def repeat(self, n: int) -> Memory:
        """Each row repeated n times, for n hypotheses; without gradients."""
        k_and_v = [tuple(mg.Tensor(part.data.repeat(n, axis=0)) for part in layer) for layer in self.keys_values]
        return Memory(k_and_v, None if self.mask is None else self.mask.repeat(n, axis=0))


class Seq2Seq(nn.Module):
    """The whole model: `logits, loss = model(source, ids, targets)`.

    Sources and targets are integers; the shorter rows of a batch are filled up with PAD at the end. For a target y, the
    decoder reads START y (`ids`) and has to predict y END (`targets`).
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.config = config
        self.source_wte = nn.Embedding(config.source_vocab_size, config.n_embd)
        self.target_wte = nn.Embedding(config.target_vocab_size, config.n_embd)
        if config.position == "learned":
            self.source_wpe = nn.Embedding(config.block_size, config.n_embd)
            self.target_wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layer))
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layer))
        if config.norm_first:
            self.encoder_ln_f = new_norm(config.blocks)
            self.decoder_ln_f = new_norm(config.blocks)
        self.lm_head = nn.Linear(config.n_embd, config.target_vocab_size, bias=False)
        if config.tie_weights == "all":
            self.source_wte.weight = self.target_wte.weight
        if config.tie_weights in ("output", "all"):
            self.lm_head.weight = self.target_wte.weight
        self.initialize()

    def initialize(self) -> None:
        """Weights normal(0, 1 / sqrt(inputs)), so that every product keeps the variance; biases 0.

        With `norm_first` nothing rescales the residual stream. Then the n projections that are added to it are scaled
        by 1 / sqrt(n), as in GPT-2.
        """
        layers = self.config.n_layer
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                added = (2 if name.startswith("encoder") else 3) * layers
                scaled = self.config.norm_first and name.endswith("c_proj.weight")
                std = 1 / math.sqrt(parameter.shape[1] * (added if scaled else 1))
                parameter.data[...] = mg.random.normal(parameter.shape, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(
        self, source: Any, ids: Any, targets: Any = None, label_smoothing: float = 0.0
    ) -> tuple[mg.Tensor, mg.Tensor | None]:
        """Logits for the token after each token of `ids`, and the mean cross-entropy; None without targets.

        source: integers (B, S). ids, targets: integers (B, T). logits: (B, T, V). Targets that are PAD do not count; if
        all are, the loss is NaN.
        """
        logits = self.decode(ids, self.encode(source))
        if targets is None:
            return logits, None
        targets = self.as_ids("targets", targets)
        return logits, F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=label_smoothing)

    def encode(self, source: Any) -> Memory:
        """Encode the sources (B, S). No token attends to padding; attention to a source of only padding gives 0."""
        source = self.as_ids("source", source)
        x, mask = self.embed(source, "source"), padding_mask(source)  # (B, S, C)
        for block in self.encoder:
            x = block(x, mask)
        if self.config.norm_first:
            x = self.encoder_ln_f(x)
        return Memory([block.cross_attn.keys_values(x) for block in self.decoder], mask)

    def decode(self, ids: Any, memory: Memory, cache: KVCache | None = None, weights: list | None = None) -> mg.Tensor:
        """Logits (B, T, V) for the token after each token of `ids` (B, T).

        cache: keys and values of the tokens before `ids`; then no id may be PAD.
        weights: a list to which every block appends its cross-attention weights (B, nh, T, S).
        """
        ids = self.as_ids("ids", ids)
        sources = len(memory.keys_values[0][0].data)
        if len(ids) != sources:
            raise ConfigError(f"Seq2Seq: expected one target per source, got {len(ids)} targets and {sources} sources")
        x = self.embed(ids, "target", past=0 if cache is None else cache.length)  # (B, T, C)
        mask = padding_mask(ids) if cache is None else None
        for i, block in enumerate(self.decoder):
            layer_cache = None if cache is None else cache.layers[i]
            x = block(x, memory.keys_values[i], memory.mask, mask, layer_cache, weights)
        return self.lm_head(self.decoder_ln_f(x) if self.config.norm_first else x)

    def embed(self, ids: Any, side: str, past: int = 0) -> mg.Tensor:
        """Token embeddings plus position embeddings, from position `past` on: (B, T) -> (B, T, C).

        The entries of the embeddings are about 1 / sqrt(C), which suits the output layer. They are scaled by sqrt(C) to
        the magnitude of the sinusoids (section 3.4 of the paper).
        """
        wte: nn.Embedding = getattr(self, f"{side}_wte")
        C, end = self.config.n_embd, past + ids.shape[1]
        if self.config.position == "sinusoidal":
            positions = sinusoidal_positions(past, end, C)
            return self.drop(wte(ids) * math.sqrt(C) + mg.Tensor(positions, dtype=wte.weight.dtype, device=self.device))
        if end > self.config.block_size:
            raise ConfigError(f"a {side} of {end} tokens is longer than block_size {self.config.block_size}")
        wpe: nn.Embedding = getattr(self, f"{side}_wpe")
        return self.drop((wte(ids) + wpe.weight[past:end]) * math.sqrt(C))

    @property
    def device(self) -> str:
        return self.lm_head.weight.device

    def as_ids(self, name: str, ids: Any) -> Any:
        """Integers (B, T) as a plain array on the model's device."""
        array = mg.Tensor(ids, device=self.device).data
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise ConfigError(f"Seq2Seq: expected {name}, integers (B, T), got {array.shape} {array.dtype}")
        return array

    def translate(
        self, source: Any, beam_size: int = 1, max_new_tokens: int = 100, length_penalty: float = 0.6
    ) -> list[np.ndarray]:
        """The likeliest target that beam search finds for each source (B, S): rows of integers, without START.

        A row ends with END, or after `max_new_tokens`. beam_size 1 is greedy search. For the length penalty see
        `gpt.translation.beam`. The sources are encoded once, and keys and values of the targets are cached.
        """
        check_count("beam_size", beam_size, 1)
        check_count("max_new_tokens", max_new_tokens, 1)
        check_length_penalty(length_penalty)
        if self.config.position == "learned" and max_new_tokens > self.config.block_size:
            raise ConfigError(
                f"max_new_tokens is {max_new_tokens}; expected at most block_size {self.config.block_size}"
            )
        source = self.as_ids("source", source)
        if not len(source):
            return []
        keep_freed_memory()
        with self.evaluating(), mg.no_grad():
            memory = self.encode(source).repeat(beam_size)
            cache = KVCache(dataclasses.replace(self.config.blocks, block_size=max_new_tokens))

            def next_log_probabilities(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
                if cache.length and beam_size > 1:
                    select_rows(cache, mg.Tensor(rows, device=self.device).data)
                logits = self.decode(tokens[:, None], memory, cache)[:, -1]  # (B * beam_size, V)
                return F.log_softmax(logits).numpy()

            found = beam_search(next_log_probabilities, len(source), beam_size, max_new_tokens, length_penalty)
        return [hypothesis.tokens for hypothesis in found]

    def cross_attention(self, source: Any, ids: Any) -> np.ndarray:
        """The cross-attention weights (n_layer, B, nh, T, S) of each token of `ids` on each token of the source."""
        weights: list[Any] = []
        with self.evaluating(), mg.no_grad():
            self.decode(ids, self.encode(source), weights=weights)
        return np.stack([mg.Tensor(layer).numpy() for layer in weights])


def sinusoidal_positions(start: int, stop: int, channels: int) -> np.ndarray:
    """The paper's position embeddings for start ≤ t < stop: (stop - start, channels). `channels` must be even.

        P(t, 2i) = sin(t / 10000^(2i / C))        P(t, 2i + 1) = cos(t / 10000^(2i / C))

    Each pair of channels is like the hand of a clock. The first hand makes a turn in 2 pi tokens. Each hand is slower
    than the one before by the same factor, and the last takes 10000^(1 - 2/C) times as long as the first. Moving by n
    tokens turns every hand by an angle that depends only on n, so relative positions are easy to read.
    """
    t, i = np.arange(start, stop)[:, None], np.arange(channels // 2)
    angles = t / 10000 ** (2 * i / channels)  # (T, C / 2)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(stop - start, channels)


def padding_mask(ids: Any) -> Any:
    """True (B, 1, 1, T) where a token is not PAD; None if nothing is padded, as attention is faster without a mask.

    On a GPU this always returns the mask, because checking it would wait for the GPU.
    """
    mask = (ids != PAD)[:, None, None]
    return None if isinstance(mask, np.ndarray) and mask.all() else mask


def select_rows(cache: KVCache, rows: Any) -> None:
    """Replace row i of the cache by its former row rows[i], for all i."""
    for layer in cache.layers:
        layer.buffers = [buffer[rows] for buffer in layer.buffers]
