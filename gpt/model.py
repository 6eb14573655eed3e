"""GPT: a pre-norm Transformer decoder (Radford et al., 2019), with GPT-2's names for its parts.

    tokens ──► wte + wpe ──► h.0 ──► h.1 ──► … ──► ln_f ──► lm_head ──► logits for the next token
                             each block:  x = x + attn(ln_1(x));  x = x + mlp(ln_2(x))

Options of `GPTConfig` replace single parts with later findings; the names stay.

Shapes: B sequences in a batch, T tokens in each, C = n_embd channels, nh heads of size hs = C / nh, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim

from . import pretrained
from .config import GPTConfig
from .errors import ConfigError, PretrainedError
from .sample import generate


def new_norm(config: GPTConfig) -> nn.Module:
    """The norm before each part of a block and after the last: layer norm, or RMS norm (Zhang and Sennrich, 2019)."""
    return nn.RMSNorm(config.n_embd) if config.norm == "rms" else nn.LayerNorm(config.n_embd, bias=config.bias)


class CausalSelfAttention(nn.Module):
    """Every token sends a query (q) to all tokens up to itself, matches it with their keys (k) and takes the mean of
    their values (v) with the softmax of the matches as weights, in nh heads side by side (Vaswani et al., 2017).

    qk_norm: every q and k of a head of size D gets length sqrt(D), so a score q k / sqrt(D) lies within ±sqrt(D),
        whatever the weights are (Henry et al., 2020, with a fixed scale in place of a learned one).
    position "rotary": q and k are rotated by their positions, which keeps their lengths.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm
        self.rotary = config.position == "rotary"

    def forward(self, x: mg.Tensor, cache: LayerCache | None = None, mask: Any = None) -> mg.Tensor:
        B, T, C = x.shape
        q, k, v = self.heads(x, past=0 if cache is None else cache.length)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, tokens so far, hs)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, causal=True, mask=mask, dropout_p=p)
        y = y.transpose(0, 2, 1, 3).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))

    def heads(self, x: mg.Tensor, past: int = 0) -> tuple[mg.Tensor, mg.Tensor, mg.Tensor]:
        """Queries, keys and values of x (B, T, C), each (B, nh, T, hs); `past` tokens came before."""
        B, T, C = x.shape
        qkv = self.c_attn(x).reshape(B, T, 3 * self.n_head, C // self.n_head).transpose(0, 2, 1, 3)  # (B, 3 nh, T, hs)
        q, k, v = F.split(qkv, self.n_head, axis=1)  # (B, nh, T, hs) each
        if self.qk_norm:
            q, k = F.rms_norm(q), F.rms_norm(k)
        if self.rotary:  # only differences of positions matter, so padding on the left needs no correction
            q, k = F.rotary(q, past), F.rotary(k, past)
        return q, k, v

    def weights(self, x: mg.Tensor) -> mg.Tensor:
        """The attention weights P = softmax(q k^T / sqrt(hs)) of `forward`, without dropout: (B, nh, T, T).

        Row t is what token t looks at: it sums to 1, and is 0 beyond t.
        """
        q, k, _ = self.heads(x)
        T, hs = q.shape[2:]
        xp = mg.get_array_module(q.data)
        future = xp.triu(xp.ones((T, T), bool), k=1)
        return F.softmax(F.masked_fill(q @ k.swapaxes(2, 3) / math.sqrt(hs), future, -math.inf))


class MLP(nn.Module):
    """For every token by itself: to four times as many channels, GELU or squared ReLU, and back."""

    def __init__(self, config: GPTConfig) -> None:
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.activation = nn.SquaredReLU() if config.activation == "relu2" else nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """Communication, then computation, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = new_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = new_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: mg.Tensor, cache: LayerCache | None = None, mask: Any = None) -> mg.Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The whole model. `logits, loss = model(ids, targets)`."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # token embeddings
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)  # position embeddings
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = new_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight  # tied: the same vector reads and predicts a token
        self.initialize()

    def initialize(self) -> None:
        """GPT-2's: weights normal(0, 0.02), biases 0, layer norms 1 and 0.

        The projections that end in the residual stream are scaled by 1 / sqrt(2 n_layer): the stream adds up 2 n_layer
        of them, so its variance does not grow with the depth. With `zero_init_residual` they are 0, and every block
        starts as the identity (Goyal et al., 2017).
        """
        residual_std = 0.0 if self.config.zero_init_residual else 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                std = residual_std if name.endswith("c_proj.weight") else 0.02
                parameter.data[...] = mg.random.normal(parameter.shape, std)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def forward(
        self, ids: Any, targets: Any = None, cache: KVCache | None = None, padding: Any = None
    ) -> tuple[mg.Tensor, mg.Tensor | None]:
        """Logits for the token after each token, and the mean cross-entropy with the targets, or None without them.

        ids, targets: integers (B, T). logits: (B, T, V). See `hidden_states` for the cache and the padding.
        """
        logits = self.logits(self.hidden_states(ids, cache, padding))  # (B, T, V)
        return logits, None if targets is None else F.cross_entropy(logits, targets)

    def next_logits(self, ids: Any, cache: KVCache | None = None, padding: Any = None) -> mg.Tensor:
        """Logits (B, V) for the token after the last of each row; no others are computed."""
        return self.logits(self.hidden_states(ids, cache, padding)[:, -1])

    def logits(self, x: mg.Tensor) -> mg.Tensor:
        """Hidden states (…, C) to logits (…, V), squashed into ±logit_softcap if it is set (Bello et al., 2016)."""
        logits, bound = self.lm_head(x), self.config.logit_softcap
        return bound * F.tanh(logits / bound) if bound else logits

    def hidden_states(self, ids: Any, cache: KVCache | None = None, padding: Any = None) -> mg.Tensor:
        """The output of the last layer norm for every token, (B, T, C): the input of lm_head.

        cache: holds the keys and values of the tokens before `ids`.
        padding: integers (B,): the number of ids on the left of each row, cached ones included, that are padding.
            No token sees them, and the first token after them has position 0.
        """
        x, mask = self.embed(ids, cache, padding)
        for i, block in enumerate(self.h):
            if self.config.checkpoint and self.training and cache is None:
                x = nn.checkpoint(block, x, None, mask)
            else:
                x = block(x, None if cache is None else cache.layers[i], mask)
        return self.ln_f(x)

    def embed(self, ids: Any, cache: KVCache | None = None, padding: Any = None) -> tuple[mg.Tensor, Any]:
        """The input of the first block, (B, T, C), and the mask that hides the padding, if any. See `hidden_states`."""
        ids = mg.Tensor(ids).data
        if ids.ndim != 2:
            raise ConfigError(f"GPT: expected ids, integers (B, T); got {ids.shape} {ids.dtype}")
        B, T = ids.shape
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise ConfigError(f"a sequence of {past + T} tokens is longer than block_size {self.config.block_size}")
        x, mask, positions = self.wte(ids), None, slice(past, past + T)  # (B, T, C)
        if padding is not None:
            xp, padding = mg.get_array_module(self.wte.weight.data), mg.Tensor(padding, device=self.wte.weight.device)
            columns = xp.arange(past + T) - padding.data[:, None]  # (B, past + T), negative at padding
            mask, positions = (columns >= 0)[:, None, None], columns[:, past:].clip(0)  # (B, T)
        if self.config.position == "learned":
            x = x + self.wpe.weight[positions]  # (T, C), or (B, T, C) with padding
        return self.drop(x), mask

    def attention_weights(self, ids: Any) -> list[mg.Tensor]:
        """The attention weights of every layer for ids (B, T): a list of (B, nh, T, T).

        Computed without dropout and without gradients. See `CausalSelfAttention.weights`.
        """
        weights = []
        with self.evaluating(), mg.no_grad():
            x, _ = self.embed(ids)
            for block in self.h:
                weights.append(block.attn.weights(block.ln_1(x)))
                x = block(x)
        return weights

    def configure_optimizer(
        self,
        lr: float,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        optimizer: str = "adamw",
        muon_lr: float = 0.02,
    ) -> optim.AdamW | optim.CombinedOptimizer:
        """AdamW, with weight decay for the matrices and embeddings and none for biases and norms.

        With optimizer "muon", Muon trains the matrices of the blocks, at `muon_lr` and with the same decay, and AdamW
        everything else.
        """
        if optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer is {optimizer!r}; expected 'adamw' or 'muon'")
        matrices = [p for p in self.h.parameters() if p.ndim >= 2] if optimizer == "muon" else []
        others = set(self.parameters()) - set(matrices)
        parameters = [p for p in self.parameters() if p in others]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)
        if not matrices:
            return adamw
        packed = {block.attn.c_attn.weight for block in self.h}  # q, k and v: three matrices each
        groups = [
            {"params": [p for p in matrices if p in packed], "split": 3},
            {"params": [p for p in matrices if p not in packed]},
        ]
        return optim.CombinedOptimizer(adamw, optim.Muon(groups, lr=muon_lr, weight_decay=weight_decay))

    def new_cache(self) -> KVCache:
        """An empty cache of keys and values, to pass to `forward`."""
        return KVCache(self.config)

    def generate(self, ids: Any, max_new_tokens: int, *sampling: Any, **options: Any) -> Any:
        """Continue each row of ids (B, T) by `max_new_tokens` sampled tokens: integers (B, T + max_new_tokens).

        A list of prompts of any lengths gives a list of rows. A row ends early with one of the `stop_tokens`; in an
        array it is filled up with that token. The options are the fields of `gpt.sample.Sampling`, in their order:
        temperature=1.0, top_k=None, top_p=None, seed=None, use_cache=True, stop_tokens=None, vocab_size=None.
        """
        return generate(self, ids, max_new_tokens, *sampling, **options)

    @classmethod
    def from_pretrained(cls, folder_or_name: Any, dtype: Any = "float32", dropout: float | None = None) -> GPT:
        """GPT-2 as Hugging Face stores it, from a folder or downloaded, in evaluation mode.

        folder_or_name, dropout: see `pretrained.read`. dtype: of the parameters, whatever the file's is.
        The files are checked before the model is built, and then that each parameter, those of a derived class too, has
        a tensor. Raises `PretrainedError` that names all that is wrong.
        """
        dtype = pretrained.floating(dtype)
        config, tensors = pretrained.read(folder_or_name, dropout)
        with mg.random.blank():  # lm_head, until it is tied to wte, would be a third of the memory
            model = cls(config)
        parameters = dict(model.named_parameters())
        shapes = {name: pretrained.as_stored(name, parameter.data).shape for name, parameter in parameters.items()}
        extra = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
        if extra:
            raise PretrainedError(
                f"{folder_or_name}: has no values for what {cls.__name__} has beyond GPT: {', '.join(extra)}"
            )
        model.to(dtype=dtype)
        for name, parameter in parameters.items():
            tensors[name].copy_to(parameter.data)
        return model.eval()

    def save_pretrained(self, folder: Any) -> None:
        """Write config.json and model.safetensors, which transformers opens as GPT-2. See `pretrained.write`."""
        pretrained.write(folder, self.config, {name: p.data for name, p in self.named_parameters()})


class LayerCache:
    """The keys and values of one layer for the tokens so far, in buffers of the full context size."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.buffers: list[Any] = []

    def append(self, *new: mg.Tensor) -> Iterator[mg.Tensor]:
        """Store the new tokens' keys and values (B, nh, T, hs). Returns all of them so far, (B, nh, length, hs)."""
        B, nh, T, hs = new[0].shape
        if not self.buffers:
            xp = mg.get_array_module(new[0].data)
            self.buffers = [xp.empty((B, nh, self.block_size, hs), part.dtype) for part in new]
        if len(self.buffers[0]) != B:
            raise ConfigError(f"a batch of {B} does not continue a cache of {len(self.buffers[0])}")
        start, self.length = self.length, self.length + T
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[:, :, start : self.length] = part.data
        return (mg.Tensor(buffer[:, :, : self.length]) for buffer in self.buffers)


class KVCache:
    """Keys and values of all layers, so that each new token costs the work of one token. For use inside `no_grad`."""

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [LayerCache(config.block_size) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """The number of tokens in the cache."""
        return self.layers[0].length
