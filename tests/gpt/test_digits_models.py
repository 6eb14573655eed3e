"""The programs that draw digits: a few steps of each, and the parts that their formulas rest on."""

import sys

import numpy as np
import pytest

import minigrad as mg
from tests.programs import EXAMPLES, load_program, run_program


@pytest.fixture(autouse=True)
def beside_the_programs(monkeypatch, blank_pictures):
    """The module digits.py is found as the programs beside it find it."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "digits"))
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    mg.manual_seed(0)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """A file of 200 images of 4 × 4 pixels: a bright corner, one of three, on noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 3
    images = rng.integers(0, 60, (200, 4, 4))
    for image, label in zip(images, labels, strict=True):
        image[[(0, 0), (0, 3), (3, 0)][label]] = 255
    path = tmp_path_factory.mktemp("digits") / "blobs.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


def load(name, path):
    """The module of a program, and the digits that it learns from."""
    program = load_program(f"digits/{name}")
    return program, sys.modules["digits"].load_digits(str(path))[0]


def whole_run(name, blobs, tmp_path, capsys, steps):
    """What a short run prints: it trains, judges and draws."""
    assert run_program("digits/classifier", "--data", blobs, "--epochs", 1, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run_program(f"digits/{name}", "--data", blobs, "--steps", steps, "--out", tmp_path) == 0
    assert (tmp_path / f"{name}.png").is_file()
    return capsys.readouterr().out


def snapshot(module):
    return {name: parameter.data.copy() for name, parameter in module.named_parameters()}


# The variational autoencoder


def test_the_vae_learns_and_reports(blobs, tmp_path, capsys):
    printed = whole_run("vae", blobs, tmp_path, capsys, 2)
    assert "held out     ELBO " in printed
    assert "VAE  " in printed
    vae, digits = load("vae", blobs)
    model = vae.VAE(digits)
    noise = mg.random.normal((len(digits.images), vae.LATENT))
    bounds = []
    for _ in range(2):
        reconstruction, divergence = model.elbo(*digits, noise)
        bounds.append((reconstruction - divergence).mean().item())
        history = vae.train(model, digits, 60)
    assert bounds[1] > bounds[0] + 3
    assert [*history] == ["0", "1", "3", "9", "24", "60"]
    assert all(images.shape == (3, 1, 4, 4) for images in history.values())


def test_the_kl_in_closed_form_is_that_of_samples(blobs):
    """The mean of log q(z) - log p(z) over samples of q, for several q."""
    vae, _ = load("vae", blobs)
    rng = np.random.default_rng(0)
    mu, log_var = rng.normal(0, 1, 6), rng.normal(0, 1, 6)
    z = mu + np.exp(log_var / 2) * rng.standard_normal((200_000, 6))
    log_q = -0.5 * (z - mu) ** 2 / np.exp(log_var) - log_var / 2
    expected = (log_q + 0.5 * z * z).mean(axis=0)
    np.testing.assert_allclose(vae.kl(mg.Tensor(mu), mg.Tensor(log_var)).numpy(), expected, atol=0.02)
    assert vae.kl(mg.Tensor(0.0), mg.Tensor(0.0)).item() == 0


def test_the_elbo_is_below_the_log_probability(blobs):
    """log p(x | y) by importance sampling, with q as the proposal, is above the mean of the bound over the noise."""
    vae, digits = load("vae", blobs)
    model = vae.VAE(digits)
    vae.train(model, digits, 60)
    images, labels = digits.images[:8], digits.labels[:8]
    with mg.no_grad():
        mu, log_var = (part.numpy() for part in model.encode(images, labels))
        noise = mg.random.normal((400, 8, vae.LATENT))
        terms = [[part.numpy() for part in model.elbo(images, labels, each)] for each in noise]
    z = mu + np.exp(log_var / 2) * noise
    log_p_minus_log_q = (-0.5 * z**2 + 0.5 * noise**2 + 0.5 * log_var).sum(axis=2)  # of z, (400, 8)
    log_weights = np.array([reconstruction for reconstruction, _ in terms]) + log_p_minus_log_q
    log_p = np.logaddexp.reduce(log_weights, axis=0) - np.log(400)
    bound = np.mean([reconstruction - divergence for reconstruction, divergence in terms], axis=0)
    assert (bound < log_p + 0.05).all()
    np.testing.assert_allclose(terms[0][1], -log_p_minus_log_q.mean(axis=0), atol=1)
