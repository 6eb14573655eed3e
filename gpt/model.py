"""GPT: a pre-norm Transformer decoder (Radford et al., 2019), with GPT-2's names for its parts.

    tokens ──► wte + wpe ──► h.0 ──► h.1 ──► … ──► ln_f ──► lm_head ──► logits for the next token
                             each block:  x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))

Shapes: B sequences in a batch, T tokens in each, C = n_embd channels, nh heads of size hs = C / nh, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim

from .config import GPTConfig
from .errors import ConfigError
from .sample import generate


class CausalSelfAttention(nn.Module):
    """Every token asks (q) all tokens up to itself (k) and takes what they offer (v), in nh heads side by side."""

    def __init__(self, config: GPTConfig) -> None:
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x: mg.Tensor, cache: LayerCache | None = None) -> mg.Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.reshape(B, T, self.n_head, C // self.n_head).transpose(0, 2, 1, 3)  # (B, nh, T, hs)
            for part in F.split(self.c_attn(x), C, axis=2)
        )
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, tokens so far, hs)
        y = F.scaled_dot_product_attention(q, k, v, causal=True, dropout_p=self.dropout if self.training else 0.0)
        y = y.transpose(0, 2, 1, 3).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Every token thinks for itself: four times as many channels, GELU, and back."""

    def __init__(self, config: GPTConfig) -> None:
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Communication, then computation, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: mg.Tensor, cache: LayerCache | None = None) -> mg.Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The whole model. `logits, loss = model(ids, targets)`."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # token embeddings
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # position embeddings
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # tied: a token is read and predicted by the same vector
        self.initialise()

    def initialise(self) -> None:
        """GPT-2's: weights normal(0, 0.02), biases 0, layer norms 1 and 0.

        The projections that end in the residual stream are scaled by 1 / sqrt(2 n_layer): 2 n_layer of them are added
        up, and so the stream keeps its variance however deep the model is.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                residual = name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                parameter.data[...] = mg.random.normal(parameter.shape, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(
        self, ids: Any, targets: Any = None, cache: KVCache | None = None
    ) -> tuple[mg.Tensor, mg.Tensor | None]:
        """Logits for the token after each token, and the mean cross-entropy with the targets, or None without them.

        ids, targets: integers (B, T). logits: (B, T, V). With a cache, `ids` continue the tokens that are in it.
        """
        B, T = ids.shape
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise ConfigError(f"a sequence of {past + T} tokens is longer than block_size {self.config.block_size}")
        x = self.wte(ids) + self.wpe.weight[past : past + T]  # (B, T, C) + (T, C)
        x = self.drop(x)
        for i, block in enumerate(self.h):
            x = block(x, None if cache is None else cache.layers[i])
        logits = self.lm_head(self.ln_f(x))  # (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits, targets)

    def configure_optimizer(
        self, lr: float, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
    ) -> optim.AdamW:
        """AdamW that decays the matrices and embeddings, and leaves the biases and layer norms alone."""
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)

    def new_cache(self) -> KVCache:
        """An empty cache of keys and values, to pass to `forward`."""
        return KVCache(self.config)

    def generate(
        self,
        ids: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> Any:
        """Continue each row of ids (B, T) by `max_new_tokens` sampled tokens: integers (B, T + max_new_tokens).

        See `gpt.sample.stream` for the options.
        """
        return generate(self, ids, max_new_tokens, temperature, top_k, top_p, seed, use_cache)


class LayerCache:
    """The keys and values of one layer for the tokens so far, in buffers of the full context size."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.buffers: list[Any] = []

    def append(self, *new: mg.Tensor) -> Iterator[mg.Tensor]:
        """Store the new tokens' keys and values (B, nh, T, hs); all of them so far, (B, nh, length, hs)."""
        B, nh, T, hs = new[0].shape
        if not self.buffers:
            xp = mg.get_array_module(new[0].data)
            self.buffers = [xp.empty((B, nh, self.block_size, hs), part.dtype) for part in new]
        start, self.length = self.length, self.length + T
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[:, :, start : self.length] = part.data
        return (mg.Tensor(buffer[:, :, : self.length]) for buffer in self.buffers)


class KVCache:
    """Keys and values of all layers, so that generating a token costs one token's work. For use inside `no_grad`."""

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [LayerCache(config.block_size) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """How many tokens are in the cache."""
        return self.layers[0].length
