"""A GPT in plain PyTorch, written from the architecture and not from minigrad's code, to compare with.

Its parameters carry GPT-2's names, so that the weights can be copied by name. Attention is written out: scores, mask,
softmax, sum.
"""

import math

from .compare import torch

nn, TF = torch.nn, torch.nn.functional


class TorchGPT(nn.Module):
    """Token plus position embeddings, pre-norm blocks, a final layer norm, and logits from the token embedding."""

    def __init__(self, block_size, vocab_size, n_layer, n_head, n_embd, bias):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.h = nn.ModuleList(TorchBlock(n_head, n_embd, bias) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)

    def forward(self, ids, targets=None):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = TF.linear(self.ln_f(x), self.wte.weight)
        loss = None if targets is None else TF.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def configure_optimizer(self, lr, weight_decay, betas):
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=betas)


class TorchBlock(nn.Module):
    def __init__(self, n_head, n_embd, bias):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attn = TorchAttention(n_head, n_embd, bias)
        self.ln_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = TorchMLP(n_embd, bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchAttention(nn.Module):
    def __init__(self, n_head, n_embd, bias):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=bias)
        self.n_head = n_head

    def forward(self, x):
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).flatten(-2))


class TorchMLP(nn.Module):
    def __init__(self, n_embd, bias):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x):
        return self.c_proj(TF.gelu(self.c_fc(x), approximate="tanh"))
