"""The variational autoencoder of examples/digits against the same model in PyTorch."""

import math
import sys

import numpy as np
import pytest

import minigrad as mg
from minigrad import optim
from tests.programs import EXAMPLES, load_program

from .compare import assert_close, assert_same_gradients, copy_weights, torch

pytestmark = pytest.mark.parity


class TorchVAE(torch.nn.Module):
    """Written as in PyTorch's own example, with the names of ours."""

    def __init__(self, ours):
        super().__init__()
        for name in ("encoder", "decoder"):
            layers = [
                torch.nn.Linear(*reversed(layer.weight.shape)) if hasattr(layer, "weight") else torch.nn.ReLU()
                for layer in getattr(ours, name)
            ]
            setattr(self, name, torch.nn.Sequential(*layers))
        self.log_s = torch.nn.Parameter(torch.zeros(()))
        self.double()
        copy_weights(ours, self)

    def elbo(self, images, y, noise):
        x = images.flatten(1)
        mu, log_var = self.encoder(torch.cat([x, y], dim=1)).chunk(2, dim=1)
        q, prior = torch.distributions.Normal(mu, (log_var / 2).exp()), torch.distributions.Normal(0.0, 1.0)
        mean = torch.sigmoid(self.decoder(torch.cat([mu + q.stddev * noise, y], dim=1)))
        log_p = torch.distributions.Normal(mean, self.log_s.exp()).log_prob(x)
        return log_p.sum(dim=1), torch.distributions.kl_divergence(q, prior).sum(dim=1)


@pytest.fixture
def vae(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "digits"))
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    mg.manual_seed(0)
    return load_program("digits/vae")


def models(vae, digits):
    ours = vae.VAE(digits).to(dtype="float64")
    return ours, TorchVAE(ours)


def train_both(vae, digits, ours, theirs, steps):
    """The same batches, noise and learning rates for both."""
    our_optimizer = optim.AdamW(ours.parameters(), vae.LEARNING_RATE, weight_decay=0.0)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), vae.LEARNING_RATE, weight_decay=0.0)
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = rng.integers(len(digits.images), size=vae.BATCH_SIZE)
        batch = digits.images[rows], digits.labels[rows], rng.standard_normal((len(rows), vae.LATENT))
        lr = optim.warmup_cosine(step, vae.LEARNING_RATE, 0.0, 0, steps)
        our_optimizer.param_groups[0]["lr"] = their_optimizer.param_groups[0]["lr"] = lr
        (our_terms, their_terms) = both_elbos(ours, theirs, *batch)
        for (reconstruction, divergence), optimizer in (our_terms, our_optimizer), (their_terms, their_optimizer):
            optimizer.zero_grad()
            (divergence - reconstruction).mean().backward()
            optimizer.step()


def both_elbos(ours, theirs, images, labels, noise):
    y = np.eye(ours.classes)[labels]
    return ours.elbo(images, labels, noise), theirs.elbo(*map(torch.tensor, (images, y, noise)))


def random_digits(n, size, classes):
    rng = np.random.default_rng(1)
    digits = sys.modules["digits"].Digits
    return digits(rng.random((n, 1, size, size)), rng.permutation(np.arange(n) % classes))


def test_bound_and_gradients(vae):
    digits = random_digits(50, 8, 10)
    ours, theirs = models(vae, digits)
    noise = np.random.default_rng(2).standard_normal((50, vae.LATENT))
    our_terms, their_terms = both_elbos(ours, theirs, *digits, noise)
    for term, expected, what in zip(our_terms, their_terms, ("reconstruction", "KL"), strict=True):
        assert_close(term.data, expected, what)
    for reconstruction, divergence in (our_terms, their_terms):
        (reconstruction - divergence).mean().backward()
    assert_same_gradients(ours, theirs)


def test_short_training(vae):
    digits = random_digits(64, 4, 3)
    ours, theirs = models(vae, digits)
    train_both(vae, digits, ours, theirs, 20)
    noise = np.random.default_rng(2).standard_normal((64, vae.LATENT))
    for term, expected in zip(*both_elbos(ours, theirs, *digits, noise), strict=True):
        np.testing.assert_allclose(term.data, expected.detach().numpy(), rtol=1e-6)


@pytest.mark.slow  # trains both models in full, in float64
def test_training_in_full(vae):
    """The bound of held-out digits after the same batches and the same noise."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    digits, held_out = (part._replace(images=part.images.astype(float)) for part in sys.modules["digits"].load_digits())
    ours, theirs = models(vae, digits)
    train_both(vae, digits, ours, theirs, vae.STEPS)
    noise = np.random.default_rng(2).standard_normal((len(held_out.images), vae.LATENT))
    bounds = [
        (reconstruction - divergence).mean().item()
        for reconstruction, divergence in both_elbos(ours, theirs, *held_out, noise)
    ]
    print(f"ELBO of held-out digits: {bounds[0]:.2f} nats, PyTorch's {bounds[1]:.2f}")
    assert math.isclose(*bounds, abs_tol=0.05)
