"""The ladder: from a table of character pairs to a small Transformer, one idea a rung. Read it from the top.

    Bigram ─► OneHead ─► SeveralHeads ─► WithFeedForward ─► WithResiduals ─► WithLayerNorm ─► GPT in gpt/model.py

The rungs are those of Andrej Karpathy's lecture "Let's build GPT: from scratch, in code, spelled out". Attention is
written out operation by operation; the backward pass of each operation is a class in minigrad/ops.
`python examples/ladder.py --all` trains the rungs on the same text and shows what each idea is worth.

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
    """A model that is asked as GPT is: `logits, loss = model(ids, targets)`, and `model.generate(ids, n)`.

    A rung says what `hidden_states` makes of the tokens and how `logits` come from that.
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
        """Logits (B, V) for the token after the last of each row: what gpt/sample.py asks for."""
        if padding is not None:
            raise ConfigError(f"{type(self).__name__}.generate: expected prompts of one length")
        return self.logits(self.hidden_states(ids)[:, -1])

    def new_cache(self) -> None:
        """None: a rung computes all tokens again for each new one."""

    def generate(self, ids: Any, max_new_tokens: int, *sampling: Any, **options: Any) -> Any:
        """Continue each row of ids (B, T) by `max_new_tokens` sampled tokens: integers (B, T + max_new_tokens).

        The options are the fields of `gpt.sample.Sampling`. Beyond block_size the model sees the last of the tokens.
        """
        return generate(self, ids, max_new_tokens, *sampling, **options)


# Rung 1: pairs


class Bigram(LanguageModel):
    """The next token from the current one alone: row i of a table (V, V) holds the logits of what follows token i.

    The gradient of the loss by that row is, summed over the places where token i stands and divided by the number of
    all places, softmax(row) - onehot(the token that follows). It vanishes when softmax(row) is how often each token
    follows token i in the text: training counts pairs. No model can do better that sees one token only, so all that
    follows is about seeing more.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.vocab_size)

    def hidden_states(self, ids: Any) -> mg.Tensor:
        return self.wte(ids)  # (B, T, V)

    def logits(self, x: mg.Tensor) -> mg.Tensor:
        return x  # the row is the logits


# Rung 2: a look at the past


class ContextModel(LanguageModel):
    """Tokens become vectors, a body lets them talk, and a linear layer reads the next token off. The rungs from here
    on differ in the body only, which turns (B, T, C) into (B, T, C):

        tokens ──► wte + wpe ──► body ──► lm_head ──► logits for the next token

    wte holds a vector for what a token is and wpe one for where it stands. Without wpe a head could not tell whether
    "ab" or "ba" stands before a token: a weighted mean does not know the order of what it averages.
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

    Every token asks a question q, and shows a key k and a value v. How well question i and key j fit is their dot
    product; softmax turns the fits with the past into weights that sum to 1; y_i is the mean of the values by these
    weights. So a token chooses, by what it contains, whom it listens to.

    The mask: e^-inf = 0, so a token that is still to be predicted has weight 0, and no gradient flows to it either.
    The scale: a score adds up hs products, so if the entries of q and k are independent, of mean 0 and variance 1, its
    variance is hs; divided by sqrt(hs) it is 1. Larger scores push softmax towards a single 1, where its gradient
    vanishes.

    `F.scaled_dot_product_attention` is the same in one operation; `minigrad.ops.attention` derives its backward pass.
    """

    def __init__(self, n_embd: int, head_size: int) -> None:
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, hs) each
        T, hs = q.shape[-2:]
        scores = q @ k.swapaxes(-2, -1) / math.sqrt(hs)  # (B, T, T): row i is question i, column j is key j
        position = mg.get_array_module(x.data).arange(T)
        future = position > position[:, None]  # (T, T): true where j > i
        scores = F.masked_fill(scores, future, -math.inf)
        weights = F.softmax(scores)  # (B, T, T): every row sums to 1
        return weights @ v  # (B, T, hs)


class OneHead(ContextModel):
    """A token looks at its past: the body is one head of all C channels.

    What a pair of characters leaves open, the characters before it often settle.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, body=Head(config.n_embd, config.n_embd))


# Rung 3: several looks


class MultiHead(nn.Module):
    """nh heads of size C / nh, each on all of x, their results side by side: (B, T, C) -> (B, T, C)."""

    def __init__(self, n_head: int, n_embd: int) -> None:
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head) for _ in range(n_head))

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return F.concatenate([head(x) for head in self.heads], axis=-1)


class SeveralHeads(ContextModel):
    """Several small heads in place of a large one, with exactly as many parameters.

    One head makes one set of weights and so one mean, in which all that it looks for is blended. Several can look for
    several things at once, say the last vowel and the last line break, and hand them on apart.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, body=MultiHead(config.n_head, config.n_embd))


# Rung 4: time to think


class FeedForward(nn.Sequential):
    """W_2 max(W_1 x + b_1, 0) + b_2 for every token by itself, 4 C channels wide in between: (…, C) -> (…, C)."""

    def __init__(self, n_embd: int) -> None:
        super().__init__(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))


class WithFeedForward(ContextModel):
    """Communication, then computation: what a token has gathered, it now works on.

    Attention's result is a mean of values, which are linear in x; lm_head is linear too. Conclusions such as "a q, and
    no space since" take something that is not linear in between.
    """

    def __init__(self, config: GPTConfig) -> None:
        body = nn.Sequential(MultiHead(config.n_head, config.n_embd), FeedForward(config.n_embd))
        super().__init__(config, body)


# Rung 5: depth


class Block(nn.Module):
    """x = x + projection(attention(x));  x = x + feed_forward(x).

    The projection: side by side, head 1 could write to the first hs channels only, head 2 to the next. A linear layer
    lets every head add to every channel. The feed-forward part ends in such a layer already.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.attention = MultiHead(config.n_head, config.n_embd)
        self.projection = nn.Linear(config.n_embd, config.n_embd)
        self.feed_forward = FeedForward(config.n_embd)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        x = x + self.projection(self.attention(x))
        return x + self.feed_forward(x)


class WithResiduals(ContextModel):
    """Every part adds to x instead of replacing it (He et al., 2015), so that blocks can be stacked.

    With y = x + f(x) the gradient by x is g + g df/dx: the first term reaches the embeddings through any number of
    blocks undiminished, whatever the parts do to the second. And a token keeps what it is: a part has to learn only
    what to change. Without this a deep stack starts by losing both the signal and its gradient.
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
    """What a part reads is shifted to mean 0 and scaled to variance 1, for each token (Ba, Kiros and Hinton, 2016).

    The more blocks have added to x, the larger it gets, and attention's scores with its square. After a norm every
    part reads numbers of one size, however deep it is and whatever the others learn meanwhile. The norm comes before
    the part and not after the sum (as in GPT-2), so the path along which x is passed on stays clear; a last norm is
    for lm_head.
    """

    def __init__(self, config: GPTConfig) -> None:
        blocks = [NormBlock(config) for _ in range(config.n_layer)]
        super().__init__(config, body=nn.Sequential(*blocks, nn.LayerNorm(config.n_embd)))


# The ladder


class Rung(NamedTuple):
    """A rung: its model, made of a `GPTConfig`, what is new in it, and the validation loss the lecture reaches."""

    model: type[nn.Module]
    about: str
    lecture: float


# The last rung is made of the same parts at another size: more channels, heads and blocks, a longer context, and
# dropout, for a model that is large enough to learn a million characters by heart. It is the preset "baby".
RUNGS = {
    "bigram": Rung(Bigram, "the next token from the current one alone", 2.5),
    "head": Rung(OneHead, "one head of self-attention: a look at the past", 2.4),
    "heads": Rung(SeveralHeads, "four heads: several looks at once", 2.28),
    "feed-forward": Rung(WithFeedForward, "+ feed-forward: time to think", 2.24),
    "residual": Rung(WithResiduals, "+ residual connections and projections: three blocks deep", 2.08),
    "layer-norm": Rung(WithLayerNorm, "+ layer norm: an even scale", 2.06),
    "gpt": Rung(GPT, "scaled up, with dropout: gpt/model.py", 1.48),
}

# The shape of all rungs but the last: what a GPTConfig wants beside the size of the vocabulary.
SMALL = {"block_size": 8, "n_layer": 3, "n_head": 4, "n_embd": 32}
