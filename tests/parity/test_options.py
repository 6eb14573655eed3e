"""The GPT with what came after GPT-2, and Muon, against plain PyTorch written from their papers."""

import importlib
import math

import numpy as np
import pytest

from gpt import GPT, GPTConfig
from minigrad import functional as F
from minigrad import nn
from minigrad.optim import Muon, orthogonalize

from .compare import (
    assert_same_losses_and_gradients,
    assert_same_weights,
    copy_weights,
    parameter_pairs,
    randomize,
    torch,
)

pytestmark = pytest.mark.parity
TF = torch.nn.functional


# The model


class TorchGPT(torch.nn.Module):
    """One class for all options, with GPT-2's names."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        norm = torch.nn.LayerNorm if c.norm == "layer" else (lambda C, bias: torch.nn.RMSNorm(C, eps=1e-5))

        def block():
            linear = torch.nn.Linear
            return named(
                ln_1=norm(c.n_embd, bias=c.bias),
                attn=named(c_attn=linear(c.n_embd, 3 * c.n_embd, c.bias), c_proj=linear(c.n_embd, c.n_embd, c.bias)),
                ln_2=norm(c.n_embd, bias=c.bias),
                mlp=named(c_fc=linear(c.n_embd, 4 * c.n_embd, c.bias), c_proj=linear(4 * c.n_embd, c.n_embd, c.bias)),
            )

        self.wte = torch.nn.Embedding(c.vocab_size, c.n_embd)
        if c.position == "learned":
            self.wpe = torch.nn.Embedding(c.block_size, c.n_embd)
        self.h = torch.nn.ModuleList(block() for _ in range(c.n_layer))
        self.ln_f = norm(c.n_embd, bias=c.bias)
        if not c.tie_weights:
            self.lm_head = torch.nn.Linear(c.n_embd, c.vocab_size, bias=False)

    def forward(self, ids, targets):
        c = self.config
        x = self.wte(ids)
        if c.position == "learned":
            x = x + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = x + self.attention(block["attn"], block["ln_1"](x))
            hidden = block["mlp"]["c_fc"](block["ln_2"](x))
            hidden = TF.relu(hidden) ** 2 if c.activation == "relu2" else TF.gelu(hidden, approximate="tanh")
            x = x + block["mlp"]["c_proj"](hidden)
        logits = TF.linear(self.ln_f(x), self.wte.weight if c.tie_weights else self.lm_head.weight)
        if c.logit_softcap:
            logits = c.logit_softcap * torch.tanh(logits / c.logit_softcap)
        return logits, TF.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def attention(self, layer, x):
        c = self.config
        q, k, v = (
            part.unflatten(-1, (c.n_head, -1)).transpose(1, 2) for part in layer["c_attn"](x).chunk(3, dim=-1)
        )  # (B, nh, T, hs)
        if c.qk_norm:
            q, k = (part / torch.sqrt(part.square().mean(-1, keepdim=True) + 1e-5) for part in (q, k))
        if c.position == "rotary":
            q, k = rotated(q), rotated(k)
        y = TF.scaled_dot_product_attention(q, k, v, is_causal=True)
        return layer["c_proj"](y.transpose(1, 2).flatten(-2))


def named(**modules):
    return torch.nn.ModuleDict(modules)


def rotated(x):
    """Rotary positions as a rotation matrix for every position, of 2 x 2 blocks at the channels i and i + D/2."""
    T, D = x.shape[-2:]
    turns = torch.zeros(T, D, D, dtype=x.dtype)
    for p in range(T):
        for i in range(D // 2):
            angle, j = p * 10000 ** (-2 * i / D), i + D // 2
            turns[p, i, i] = turns[p, j, j] = math.cos(angle)
            turns[p, i, j], turns[p, j, i] = -math.sin(angle), math.sin(angle)
    return torch.einsum("tij,...tj->...ti", turns, x)


OPTIONS = {
    "GPT-2": {},
    "rotary": {"position": "rotary"},
    "rms": {"norm": "rms"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"qk_norm": True},
    "untied": {"tie_weights": False},
    "softcap": {"logit_softcap": 3.0},
}
OPTIONS["all"] = {name: value for option in OPTIONS.values() for name, value in option.items()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_logits_loss_and_all_gradients(options, bias):
    config = GPTConfig(block_size=12, vocab_size=29, n_layer=2, n_head=4, n_embd=32, bias=bias, **options)
    ours, theirs = GPT(config).to(dtype="float64"), TorchGPT(config).double()
    randomize(ours)
    copy_weights(ours, theirs)
    ids, targets = np.random.default_rng(0).integers(0, 29, (2, 3, 12))
    assert_same_losses_and_gradients(ours, theirs, ids, targets)


# Muon


def newton_schulz(x, ns_steps):
    """The quintic iteration on one matrix, in its own dtype."""
    if x.size(0) > x.size(1):
        return newton_schulz(x.T, ns_steps).T
    x = x / x.norm()
    for _ in range(ns_steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


class TorchMuon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.0):
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        super().__init__(params, {**settings, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                v = self.state[w].setdefault("momentum", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(w.grad)
                u = w.grad + group["momentum"] * v if group["nesterov"] else v
                w.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1, w.size(0) / w.size(1)) ** 0.5
                w.sub_(group["lr"] * scale * newton_schulz(u, group["ns_steps"]))


def follow_each_other(make_ours, make_theirs):
    """Train an MLP of a tall, a square and a wide matrix in both libraries; the weights agree after every step."""
    ours = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in ((8, 16), (16, 16), (16, 3))))
    theirs = torch.nn.Sequential(*(torch.nn.Linear(*shape, bias=False) for shape in ((8, 16), (16, 16), (16, 3))))
    ours.to(dtype="float64")
    theirs.double()
    copy_weights(ours, theirs)
    optimizer, torch_optimizer = make_ours(ours.parameters()), make_theirs(theirs.parameters())
    rng = np.random.default_rng(0)
    for step in range(10):
        x, targets = rng.standard_normal((32, 8)), rng.integers(0, 3, 32)
        optimizer.zero_grad()
        F.cross_entropy(ours(x), targets).backward()
        for _, parameter, torch_parameter in parameter_pairs(ours, theirs):
            torch_parameter.grad = torch.tensor(parameter.grad)  # so that errors do not grow from step to step
        optimizer.step()
        torch_optimizer.step()
        assert_same_weights(ours, theirs, f"after step {step}")


SETTINGS = [
    {"lr": 0.02},
    {"lr": 0.02, "nesterov": False},
    {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1},
    {"lr": 0.02, "ns_steps": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_muon(settings):
    follow_each_other(lambda p: Muon(p, **settings), lambda p: TorchMuon(p, **settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon; 2.9 and newer do")
def test_muon_is_pytorchs(settings, monkeypatch):
    """Momentum, decay, factor and defaults; PyTorch iterates in bfloat16, so here its iteration is exchanged."""
    module = importlib.import_module("torch.optim._muon")
    exact = lambda x, coefficients, ns_steps, eps: newton_schulz(x, ns_steps)  # noqa: E731
    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", exact)
    theirs = {"weight_decay": 0.0, **settings}
    follow_each_other(lambda p: Muon(p, **settings), lambda p: torch.optim.Muon(p, **theirs))


@pytest.mark.parametrize("shape", [(12, 12), (40, 10), (10, 40)], ids=str)
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon; 2.9 and newer do")
def test_pytorchs_own_iteration_comes_as_close_as_bfloat16_lets_it(shape):
    module = importlib.import_module("torch.optim._muon")
    x = np.random.default_rng(0).standard_normal(shape)
    theirs = module._zeropower_via_newtonschulz(torch.tensor(x), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    np.testing.assert_allclose(orthogonalize(x), theirs.double().numpy(), rtol=0, atol=0.05)
