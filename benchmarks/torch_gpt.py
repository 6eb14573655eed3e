"""A GPT in plain PyTorch, to measure against and to check against.

It is written as nanoGPT's users would write it today: fused causal attention, AdamW's fused update, keys and values
kept in buffers while generating. Its parameters carry GPT-2's names, so that weights can be copied by name; until then
they are as PyTorch's layers begin (contestants.torch_model gives it GPT-2's).
"""

import torch
from torch import nn
from torch.nn import functional as TF


class TorchGPT(nn.Module):
    """Token plus position embeddings, pre-norm blocks, a final layer norm, and logits from the token embedding."""

    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, bias, dropout=0.0):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(TorchBlock(n_head, n_embd, bias, dropout) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)
        self.block_size, self.n_head = block_size, n_head

    def residual(self, ids, cache=None):
        """The residual stream behind the last block (B, T, C). With a cache `ids` continue what is in it."""
        past = 0 if cache is None else cache[0].length
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(past, past + ids.shape[1], device=ids.device)))
        for i, block in enumerate(self.h):
            x = block(x, None if cache is None else cache[i])
        return x

    def forward(self, ids, targets=None, cache=None):
        """Logits (B, T, V), and the loss, which is None without targets."""
        logits = TF.linear(self.ln_f(self.residual(ids, cache)), self.wte.weight)
        loss = None if targets is None else TF.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def configure_optimizer(self, lr, weight_decay, betas, fused=False):
        parameters = list(self.parameters())
        matrices, others = ([p for p in parameters if (p.ndim >= 2) == wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)

    def new_cache(self, batch_size=1):
        """An empty cache of keys and values for `forward`, a buffer of the full context size for each layer."""
        shape = (batch_size, self.n_head, self.block_size, self.wte.embedding_dim // self.n_head)
        return [TorchLayerCache(shape, self.wte.weight.dtype) for _ in self.h]


class TorchLayerCache:
    """The keys and values of one layer for the tokens so far."""

    def __init__(self, shape, dtype):
        self.k, self.v, self.length = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), 0

    def append(self, k, v):
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class TorchBlock(nn.Module):
    def __init__(self, n_head, n_embd, bias, dropout):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attn = TorchAttention(n_head, n_embd, bias, dropout)
        self.ln_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = TorchMLP(n_embd, bias, dropout)

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class TorchAttention(nn.Module):
    def __init__(self, n_head, n_embd, bias, dropout):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.n_head, self.dropout = n_head, dropout
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None):
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        if cache is not None:
            k, v = cache.append(k, v)
        p = self.dropout if self.training else 0.0
        queries, keys = q.shape[2], k.shape[2]
        if queries == keys or queries == 1:  # a single query comes last and sees every key
            y = TF.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=queries == keys)
        else:  # PyTorch's `is_causal` aligns the first query with the first key; here the last are aligned
            mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
            y = TF.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(-2)))


class TorchMLP(nn.Module):
    def __init__(self, n_embd, bias, dropout):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(TF.gelu(self.c_fc(x), approximate="tanh")))
