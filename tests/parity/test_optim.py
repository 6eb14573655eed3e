"""The optimizers against PyTorch's: a small MLP in float64, whose weights agree after every step."""

import itertools

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import nn, optim

from .compare import assert_close, assert_same_gradients, assert_same_weights, copy_weights, torch

pytestmark = pytest.mark.parity

STEPS = 20


def mlps():
    """The same MLP twice, in float64, with the same weights."""
    ours = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype="float64")
    theirs = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU("tanh"), torch.nn.Linear(16, 3)).double()
    copy_weights(ours, theirs)
    return ours, theirs


def batches():
    """A batch of inputs and classes for each step."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((32, 8)), rng.integers(0, 3, 32)) for _ in range(STEPS)]


def compute_gradients(ours, theirs, x, targets):
    """The gradients of the cross-entropy of one batch, in both libraries."""
    ours.zero_grad()
    theirs.zero_grad()
    F.cross_entropy(ours(mg.Tensor(x)), targets).backward()
    torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(targets)).backward()


def groups(module):
    """Weights are decayed, biases are not and learn slower."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0, "lr": 3e-3},
    ]


@pytest.mark.parametrize("max_norm", [0.1, 0.27, 1e9], ids=["always clipped", "sometimes clipped", "never clipped"])
def test_adamw_with_two_groups_and_clipping(max_norm):
    ours, theirs = mlps()
    optimizer = optim.AdamW(groups(ours), lr=1e-2, betas=(0.9, 0.95))
    torch_optimizer = torch.optim.AdamW(groups(theirs), lr=1e-2, betas=(0.9, 0.95))
    clipped = 0
    for step, (x, targets) in enumerate(batches()):
        compute_gradients(ours, theirs, x, targets)
        norm = optim.clip_grad_norm(ours.parameters(), max_norm)
        torch_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        assert_close(np.asarray(norm), torch_norm, f"norm at step {step}")
        assert_same_gradients(ours, theirs)
        optimizer.step()
        torch_optimizer.step()
        assert_same_weights(ours, theirs, f"after step {step}")
        clipped += norm > max_norm
    assert {0.1: clipped == STEPS, 0.27: 0 < clipped < STEPS, 1e9: clipped == 0}[max_norm]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e-2},
        {"lr": 1e-2, "betas": (0.5, 0.6)},
        {"lr": 1e-2, "eps": 1e-2},
        {"lr": 1e-2, "weight_decay": 0.5},
    ],
    ids=str,
)
def test_adamw_settings_and_defaults(settings):
    run(lambda p: optim.AdamW(p, **settings), lambda p: torch.optim.AdamW(p, **settings))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd(momentum, weight_decay):
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    run(lambda p: optim.SGD(p, **settings), lambda p: torch.optim.SGD(p, **settings))


def test_learning_rate_changed_between_steps():
    run(lambda p: optim.AdamW(p, lr=1.0), lambda p: torch.optim.AdamW(p, lr=1.0), lr=lambda step: 1e-2 / (1 + step))


def run(make_ours, make_theirs, lr=None):
    """Train both MLPs, with the learning rate that `lr` gives for a step, and compare all weights after every step."""
    ours, theirs = mlps()
    optimizer, torch_optimizer = make_ours(ours.parameters()), make_theirs(theirs.parameters())
    for step, (x, targets) in enumerate(batches()):
        if lr is not None:
            for group in itertools.chain(optimizer.param_groups, torch_optimizer.param_groups):
                group["lr"] = lr(step)
        compute_gradients(ours, theirs, x, targets)
        optimizer.step()
        torch_optimizer.step()
        assert_same_weights(ours, theirs, f"after step {step}")


@pytest.mark.parametrize("make", [lambda o, p: o.AdamW(p, lr=1e-2), lambda o, p: o.SGD(p, lr=0.1, momentum=0.9)])
def test_parameters_that_miss_the_first_steps(make):
    """The first layer joins after half of the steps; until then it has no gradient and stays as it is."""
    ours, theirs = mlps()
    optimizer, torch_optimizer = make(optim, ours.parameters()), make(torch.optim, theirs.parameters())
    for step, (x, targets) in enumerate(batches()):
        compute_gradients(ours, theirs, x, targets)
        if step < STEPS // 2:
            for parameter in itertools.chain(ours[0].parameters(), theirs[0].parameters()):
                parameter.grad = None
        optimizer.step()
        torch_optimizer.step()
        assert_same_weights(ours, theirs, f"after step {step}")


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_clip_grad_norm(max_norm):
    ours, theirs = mlps()
    compute_gradients(ours, theirs, *batches()[0])
    ours[0].bias.grad = theirs[0].bias.grad = None  # parameters without a gradient do not count
    norm = optim.clip_grad_norm(ours.parameters(), max_norm)
    torch_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    assert_close(np.asarray(norm), torch_norm, "norm")
    assert_close(ours[0].weight.grad, theirs[0].weight.grad, "gradient after clipping")
