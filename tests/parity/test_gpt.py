"""The whole GPT against PyTorch's, from the same weights: one pass in float64, and a training run."""

import numpy as np
import pytest

from gpt import GPT, GPTConfig
from minigrad import optim

from .compare import (
    assert_close,
    assert_same_gradients,
    assert_same_losses_and_gradients,
    copy_weights,
    randomize,
    torch,
)

# isort: split
from benchmarks.torch_gpt import TorchGPT  # after compare.py, which skips this file where PyTorch is missing

pytestmark = pytest.mark.parity


def gpts(dtype, **shape):
    """The same GPT twice, with the same weights."""
    ours = GPT(GPTConfig(**shape, dropout=0.0)).to(dtype=dtype)
    theirs = TorchGPT(**shape).to(getattr(torch, dtype))
    copy_weights(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [12, 7, 1], ids="{} tokens".format)
def test_logits_loss_and_all_gradients(bias, length):
    ours, theirs = gpts("float64", block_size=12, vocab_size=29, n_layer=3, n_head=4, n_embd=32, bias=bias)
    randomize(ours)
    copy_weights(ours, theirs)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 29, (2, 3, length))
    targets[0, 0] = -100  # nothing to predict there

    assert_same_losses_and_gradients(ours, theirs, ids, targets)


def test_gradient_of_the_logits_without_targets():
    ours, theirs = gpts("float64", block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, bias=True)
    ids = np.random.default_rng(0).integers(0, 11, (2, 8))
    upstream = np.random.default_rng(1).standard_normal((2, 8, 11))
    (logits, loss), (torch_logits, _) = ours(ids), theirs(torch.tensor(ids))
    assert loss is None
    assert_close(logits.data, torch_logits, "logits")
    logits.backward(upstream)
    torch_logits.backward(torch.tensor(upstream))
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"), [("float32", 100, 1e-3), ("float64", 20, 1e-7)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("bias", [True, False], ids=["with biases", "without biases"])
def test_training_follows_the_same_loss_curve(dtype, steps, tolerance, bias):
    """AdamW with decay on the matrices, gradients clipped at 1, batches from a text that the model begins to learn."""
    shape = {"block_size": 32, "vocab_size": 40, "n_layer": 4, "n_head": 4, "n_embd": 64, "bias": bias}
    ours, theirs = gpts(dtype, **shape)
    recipe = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    optimizer, torch_optimizer = ours.configure_optimizer(**recipe), theirs.configure_optimizer(**recipe)

    rng = np.random.default_rng(0)
    text = rng.integers(0, 40, 200)
    losses, torch_losses, clipped = [], [], 0
    for _ in range(steps):
        batch = np.stack([text[start : start + 33] for start in rng.integers(0, 200 - 33, 8)])
        ids, targets = batch[:, :-1], batch[:, 1:]

        _, loss = ours(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        clipped += optim.clip_grad_norm(ours.parameters(), 1.0) > 1.0
        optimizer.step()
        losses.append(loss.item())

        _, torch_loss = theirs(torch.tensor(ids), torch.tensor(targets))
        torch_optimizer.zero_grad()
        torch_loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        torch_optimizer.step()
        torch_losses.append(torch_loss.item())

    assert loss.data.dtype == dtype
    np.testing.assert_allclose(losses, torch_losses, rtol=0, atol=tolerance)
    assert losses[-1] < 0.9 * losses[0], "it learned too little for the comparison to mean anything"
    assert clipped, "no gradient was large enough to be clipped"
