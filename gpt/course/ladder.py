"""The ladder: from a table of character pairs to a small Transformer, one new idea per rung. Read it from the top.

    Bigram ─► OneHead ─► SeveralHeads ─► WithFeedForward ─► WithResiduals ─► WithLayerNorm ─► GPT in gpt/model.py

The rungs follow Andrej Karpathy's lecture "Let's build GPT: from scratch, in code, spelled out". Attention is written
out operation by operation; the backward pass of each operation is in its class in minigrad/ops.
`python examples/ladder.py --all` trains the rungs on the same text and shows how much each idea gains.

Shapes: B sequences in a batch, T tokens in each, C = n_embd channels, nh heads of size hs, V = vocab_size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import minigrad as mg
from minigrad import functional as F
from minigrad import nn

from ..config import GPTConfig
from ..errors import ConfigError
from ..model import GPT
from ..sample import generate

# What all rungs share


class LanguageModel(nn.Module):
    """A model with the interface of GPT: `logits, loss = model(ids, targets)`, and `model.generate(ids, n)`.

    Each rung defines `hidden_states`, computed from the tokens, and `logits`, computed from the hidden states.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def hidden_states(self, ids: Any) -> mg.Tensor:
        raise TypeError(f"{type(self).__name__} must define hidden_states(ids)")

    def logits(self, x: mg.Tensor) -> mg.Tensor:
        raise TypeError(f"{type(self).__name__} must define logits(x)")

    def forward(self, ids: Any, targets: Any = None) -> tuple[mg.Tensor, mg.Tensor | None]:
        """Logits for the token after each token, and the mean cross-entropy with the targets, or None without them.

        ids, targets: integers (B, T). logits: (B, T, V).
        """
        logits = self.logits(self.hidden_states(ids))
        return logits, None if targets is None else F.cross_entropy(logits, targets)

    def next_logits(self, ids: Any, cache: None = None, padding: Any = None) -> mg.Tensor:
        """Logits (B, V) for the token after the last of each row. gpt/sample.py calls this."""
        if padding is not None:
            raise ConfigError(f"{type(self).__name__}.generate: expected prompts of equal length")
        return self.logits(self.hidden_states(ids)[:, -1])

    def new_cache(self) -> None:
        """None: a rung recomputes all tokens for each new one."""

    def generate(self, ids: Any, max_new_tokens: int, *sampling: Any, **options: Any) -> Any:
        """Continue each row of ids (B, T) with `max_new_tokens` sampled tokens: integers (B, T + max_new_tokens).

        The options are the fields of `gpt.sample.Sampling`. The model sees the last block_size tokens.
        """
        return generate(self, ids, max_new_tokens, *sampling, **options)


# Rung 1: pairs


class Bigram(LanguageModel):
    """Predict the next token from the current one alone: row i of a table (V, V) holds the logits after token i.

    Each place where token i stands adds softmax(row) - onehot(next token) to the gradient of that row, divided by the
    number of all places. The gradient vanishes when softmax(row) equals how often each token follows token i in the
    text. So training counts pairs. No model that sees a single token can do better; the rungs that follow see more.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.vocab_size)

    def hidden_states(self, ids: Any) -> mg.Tensor:
        return self.wte(ids)  # (B, T, V)

    def logits(self, x: mg.Tensor) -> mg.Tensor:
        return x  # the row is the logits


# Rung 2: attention to the past


class ContextModel(LanguageModel):
    """Tokens become vectors, a body lets them exchange information, and a linear layer predicts the next token.

        tokens ──► wte + wpe ──► body ──► lm_head ──► logits for the next token

    From here on the rungs differ only in the body, which maps (B, T, C) to (B, T, C).

    wte has a vector for each token of the vocabulary, and wpe one for each position. Without wpe a head could not tell
    whether "ab" or "ba" precedes a token, because a weighted mean ignores the order of what it averages.
    """

    def __init__(self, config: GPTConfig, body: nn.Module) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.body = body
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def hidden_states(self, ids: Any) -> mg.Tensor:
        T, longest = ids.shape[-1], self.config.block_size
        if longest < T:
            raise ConfigError(f"a sequence of {T} tokens is longer than block_size {longest}")
        return self.body(self.wte(ids) + self.wpe.weight[:T])  # (B, T, C) + (T, C), then (B, T, C)

    def logits(self, x: mg.Tensor) -> mg.Tensor:
        return self.lm_head(x)  # (…, V)


class Head(nn.Module):
    """One head of causal self-attention (Vaswani et al., 2017): x (B, T, C) -> (B, T, hs).

        q = x W_q^T    k = x W_k^T    v = x W_v^T
        weights = softmax(q k^T / sqrt(hs), with -inf where the key is in the future)
        y = weights v

    Every token has a query q (a question), a key k and a value v. The score of query i and key j is their dot product.
    Softmax turns the scores of token i with its past into weights that sum to 1, and y_i is the mean of the values with
    these weights. So the content of a token decides which tokens it listens to.

    The mask: e^-inf = 0, so future tokens have weight 0, and no gradient flows to them.

    The scale: a score is a sum of hs products. If the entries of q and k are independent with mean 0 and variance 1,
    the variance of the sum is hs. Division by sqrt(hs) makes it 1. Larger scores would push softmax towards a single 1,
    where its gradient vanishes.

    `F.scaled_dot_product_attention` computes the same in one operation; `minigrad.ops.attention` derives its backward
    pass.
    """

    def __init__(self, n_embd: int, head_size: int) -> None:
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        T, hs = q.shape[-2:]
        scores = q @ k.swapaxes(-2, -1) / math.sqrt(hs)  # (B, T, T): row i is query i, column j is key j
        position = mg.get_array_module(x.data).arange(T)
        future = position > position[:, None]  # (T, T): true where j > i
        scores = F.masked_fill(scores, future, -math.inf)
        weights = F.softmax(scores)  # (B, T, T): every row sums to 1
        return weights @ v  # (B, T, hs)


class OneHead(ContextModel):
    """A token attends to its past: the body is one head with all C channels.

    Several earlier characters often determine the next one where the last character alone does not.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, body=Head(config.n_embd, config.n_embd))


# Rung 3: several heads


class MultiHead(nn.Module):
    """nh heads of size C / nh, each reading all of x, with their results concatenated: (B, T, C) -> (B, T, C)."""

    def __init__(self, n_head: int, n_embd: int) -> None:
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head) for _ in range(n_head))

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return F.concatenate([head(x) for head in self.heads], axis=-1)


class SeveralHeads(ContextModel):
    """Several small heads replace the large one, with exactly the same number of parameters.

    One head has one set of weights, so it blends everything it looks for into one mean. Several heads can look for
    several things at once, such as the last vowel and the last line break, and keep them separate.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, body=MultiHead(config.n_head, config.n_embd))


# Rung 4: time to think


class FeedForward(nn.Sequential):
    """W_2 max(W_1 x + b_1, 0) + b_2 for each token separately, with 4 C channels in between: (…, C) -> (…, C)."""

    def __init__(self, n_embd: int) -> None:
        super().__init__(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))


class WithFeedForward(ContextModel):
    """Communication, then computation: a token now processes what it has gathered.

    Attention's result is a mean of values, which are linear in x, and lm_head is linear too. Conclusions such as "there
    was a q, and no space since" need a nonlinear function in between.
    """

    def __init__(self, config: GPTConfig) -> None:
        body = nn.Sequential(MultiHead(config.n_head, config.n_embd), FeedForward(config.n_embd))
        super().__init__(config, body)


# Rung 5: depth


class Block(nn.Module):
    """x = x + projection(attention(x));  x = x + feed_forward(x).

    The projection: after concatenation, head 1 could add only to the first hs channels, head 2 only to the next hs. A
    linear layer lets every head add to every channel. The feed-forward part already ends in a linear layer.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.attention = MultiHead(config.n_head, config.n_embd)
        self.projection = nn.Linear(config.n_embd, config.n_embd)
        self.feed_forward = FeedForward(config.n_embd)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        x = x + self.projection(self.attention(x))
        return x + self.feed_forward(x)


class WithResiduals(ContextModel):
    """Each part adds to x instead of replacing it (He et al., 2015), so that blocks can be stacked.

    With y = x + f(x) and g = dL/dy, the gradient of x is g + g df/dx. The first term reaches the embeddings through any
    number of blocks undiminished, whatever happens to the second. A token also keeps its content, so a part only has to
    learn what to change. Without this, a deep stack starts out by losing both the signal and its gradient.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, body=nn.Sequential(*(Block(config) for _ in range(config.n_layer))))


# Rung 6: an even scale


class NormBlock(Block):
    """x = x + projection(attention(ln_1(x)));  x = x + feed_forward(ln_2(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        x = x + self.projection(self.attention(self.ln_1(x)))
        return x + self.feed_forward(self.ln_2(x))


class WithLayerNorm(ContextModel):
    """Each part's input is shifted to mean 0 and scaled to variance 1, per token (Ba, Kiros and Hinton, 2016).

    The more blocks have added to x, the larger it gets, and attention's scores grow with its square. After a norm,
    every part reads numbers of the same size, at any depth and whatever the other parts learn. As in GPT-2, the norm
    comes before the part and not after the sum, so x itself still passes unchanged from block to block. A final norm
    does the same for lm_head.
    """

    def __init__(self, config: GPTConfig) -> None:
        blocks = [NormBlock(config) for _ in range(config.n_layer)]
        super().__init__(config, body=nn.Sequential(*blocks, nn.LayerNorm(config.n_embd)))


# The ladder


class Rung(NamedTuple):
    """A rung: its model, built from a `GPTConfig`; what is new in it; and the validation loss in the lecture."""

    model: type[nn.Module]
    about: str
    lecture: float


# The last rung has the same parts in a larger size: more channels, heads and blocks, and a longer context. It has
# dropout because a model of this size could memorize a million characters. It is the preset "baby".
RUNGS = {
    "bigram": Rung(Bigram, "the next token from the current one alone", 2.5),
    "head": Rung(OneHead, "one head of self-attention: attention to the past", 2.4),
    "heads": Rung(SeveralHeads, "four heads: several things to look for at once", 2.28),
    "feed-forward": Rung(WithFeedForward, "+ feed-forward: time to think", 2.24),
    "residual": Rung(WithResiduals, "+ residual connections and projections: three blocks deep", 2.08),
    "layer-norm": Rung(WithLayerNorm, "+ layer norm: an even scale", 2.06),
    "gpt": Rung(GPT, "scaled up, with dropout: gpt/model.py", 1.48),
}

# The shape of all rungs but the last: the options of GPTConfig besides the vocabulary size.
SMALL = {"block_size": 8, "n_layer": 3, "n_head": 4, "n_embd": 32}
