"""The programs that draw digits: a few steps of each, and the parts that their formulas rest on."""

import importlib
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


def whole_run(name, blobs, tmp_path, capsys, monkeypatch):
    """What a run of one step prints: it trains, draws, and is judged by a classifier that has learned nothing."""
    digits = importlib.import_module("digits")
    monkeypatch.setattr(digits, "EACH", 4)
    mg.save(digits.Classifier(4, 4, 3).state_dict(), tmp_path / digits.WEIGHTS)
    assert run_program(f"digits/{name}", "--data", blobs, "--steps", 1, "--out", tmp_path) == 0
    assert (tmp_path / f"{name}.png").is_file()
    return capsys.readouterr().out


def snapshot(module):
    return {name: parameter.data.copy() for name, parameter in module.named_parameters()}


# The variational autoencoder


def test_the_vae_learns_and_reports(blobs, tmp_path, capsys, monkeypatch):
    printed = whole_run("vae", blobs, tmp_path, capsys, monkeypatch)
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


# The generative adversarial network


def test_the_gan_learns_and_reports(blobs, tmp_path, capsys, monkeypatch):
    printed = whole_run("gan", blobs, tmp_path, capsys, monkeypatch)
    assert all(name in printed for name in ("classes given", "no classes", "no classes, G too fast"))
    gan, digits = load("gan", blobs)
    G, D = gan.Generator(digits), gan.Discriminator(digits)
    before = gan.discriminator_loss(D, G, *digits).item()
    gan.train(G, D, digits, 20, g_steps=0)
    assert gan.discriminator_loss(D, G, *digits).item() < before - 0.5
    history = gan.train(G, D, digits, 100)
    assert history["100"].shape == (gan.SHOWN, 1, 4, 4)
    corners = G.sample(digits.labels)[:, 0, [0, 0, 3], [0, 3, 0]]  # the pixels by which the classes differ
    assert (corners.argmax(axis=1) == digits.labels).mean() > 0.8


def test_each_player_changes_its_own_weights_only(blobs):
    gan, digits = load("gan", blobs)
    G, D = gan.Generator(digits), gan.Discriminator(digits)
    gan.discriminator_loss(D, G, *digits).backward()
    assert all(parameter.grad is None for parameter in G.parameters())
    assert all(np.any(parameter.grad) for parameter in D.parameters())
    D.zero_grad()

    changes = {"G": [], "D": []}
    real = gan.optim.AdamW.step

    def step(optimizer):
        """What an optimizer changes, and whether gradients of the other player are left over for it."""
        before = {"G": snapshot(G), "D": snapshot(D)}
        real(optimizer)
        for name, player in ("G", G), ("D", D):
            changed = [np.any(before[name][key] != value) for key, value in snapshot(player).items()]
            assert all(changed) or not any(changed)
            changes[name].append(any(changed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan.optim.AdamW, "step", step)
        gan.train(G, D, digits, 2, g_steps=2)
    assert changes == {"G": [False, True, True] * 2, "D": [True, False, False] * 2}
    assert all(parameter.grad is None for parameter in [*G.parameters(), *D.parameters()])


def test_the_losses_of_the_gan_are_those_of_the_paper(blobs):
    """-log sigmoid of the right answers; the generator's is not log(1 - sigmoid), which is flat where D is sure."""
    gan, digits = load("gan", blobs)
    G, D = gan.Generator(digits), gan.Discriminator(digits, noise=0.0, dropout=0.0)
    D.linear3.bias.data[...] = [-8, 0, 3]

    def probability(images):
        with mg.no_grad():
            return 1 / (1 + np.exp(-D(images, digits.labels).numpy().astype(np.float64)))

    mg.manual_seed(3)
    fake = G.sample(digits.labels)
    real_loss, fake_loss = -np.log(probability(digits.images)), -np.log(1 - probability(fake))
    mg.manual_seed(3)
    assert gan.discriminator_loss(D, G, *digits).item() == pytest.approx((real_loss + fake_loss).mean(), rel=1e-4)
    mg.manual_seed(3)
    loss = gan.generator_loss(D, G, digits.labels)
    assert loss.item() == pytest.approx(-np.log(probability(fake)).mean(), rel=1e-4)
    loss.backward()
    assert all(np.any(parameter.grad) for parameter in G.parameters())


# Diffusion


def denoisers(diffusion, digits):
    """Both networks, as the program makes them."""
    return {
        "MLP": diffusion.Denoiser(digits, diffusion.MLPBlock, digits.images.shape[2:], channels=32),
        "Transformer": diffusion.Denoiser(digits, diffusion.TransformerBlock, (2, 2), channels=32),
    }


class Oracle:
    """Knows the image, and so tells the noise in x_t exactly."""

    def __init__(self, diffusion, image, classes=3):
        self.a, self.image, self.classes = diffusion.A, image, classes

    def __call__(self, x, t, y):
        a, image = self.a[t][:, None, None, None], np.tile(self.image, (len(x) // len(self.image), 1, 1, 1))
        return mg.Tensor((x - np.sqrt(a) * (2 * image - 1)) / np.sqrt(1 - a))


def test_diffusion_learns_and_reports(blobs, tmp_path, capsys, monkeypatch):
    printed = whole_run("diffusion", blobs, tmp_path, capsys, monkeypatch)
    assert "MLP, 10 steps, guidance 2" in printed
    assert "Transformer, 20 steps, guidance 1" in printed
    diffusion, digits = load("diffusion", blobs)
    monkeypatch.setattr(diffusion, "moments", lambda steps: {steps})
    for model in denoisers(diffusion, digits).values():
        first = diffusion.loss_of(model, *digits).item()
        history = diffusion.train(model, digits, 30)
        assert diffusion.loss_of(model, *digits).item() < 0.8 * first
        assert history["30"].shape == (3, 1, 4, 4)


def test_the_schedule_keeps_the_variance_and_ends_in_noise(blobs):
    diffusion, _ = load("diffusion", blobs)
    betas = 1 - diffusion.A / np.concatenate([[1], diffusion.A[:-1]])
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=1e-2)
    assert (np.diff(diffusion.A) < 0).all()
    assert diffusion.A[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_draws_the_image_that_an_oracle_knows(blobs, steps):
    """Each x on the way is the image with the noise of its t, the same noise for eta 0."""
    diffusion, digits = load("diffusion", blobs)
    image, noise = digits.images[:4], mg.random.normal((4, 1, 4, 4))
    x = np.sqrt(diffusion.A[-1]) * (2 * image - 1) + np.sqrt(1 - diffusion.A[-1]) * noise
    path = list(diffusion.ddim(Oracle(diffusion, image), x, digits.labels[:4], steps))
    assert len(path) == steps
    times = np.linspace(diffusion.T - 1, 0, steps).round().astype(int)[1:]
    for t, at_t in zip(times, path, strict=False):
        expected = np.sqrt(diffusion.A[t]) * (2 * image - 1) + np.sqrt(1 - diffusion.A[t]) * noise
        np.testing.assert_allclose(at_t, (expected + 1) / 2, atol=1e-3)
    np.testing.assert_allclose(path[-1], image, atol=1e-3)


def test_ddim_is_deterministic_for_eta_0_and_has_the_right_noise_for_eta_1(blobs):
    diffusion, digits = load("diffusion", blobs)
    model, labels = denoisers(diffusion, digits)["MLP"], digits.labels[:4]
    x = mg.random.normal((4, 1, 4, 4))
    runs = [[*diffusion.ddim(model, x, labels, 5, eta=eta)][-1] for eta in (0, 0, 1, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[2], runs[3])
    image = np.broadcast_to(digits.images[:1], (4000, 1, 4, 4))
    oracle, labels = Oracle(diffusion, image), np.zeros(4000, int)
    second, *_ = diffusion.ddim(oracle, mg.random.normal(image.shape), labels, 3, eta=1.0)
    noise = 2 * second - 1 - np.sqrt(diffusion.A[500]) * (2 * image - 1)
    np.testing.assert_allclose(noise.std(), np.sqrt(1 - diffusion.A[500]), rtol=0.02)


@pytest.mark.parametrize("name", ["MLP", "Transformer"])
def test_guidance_0_is_no_class_and_1_is_the_class(blobs, name):
    diffusion, digits = load("diffusion", blobs)
    model, x, t = denoisers(diffusion, digits)[name], mg.random.normal((6, 1, 4, 4)), np.full(6, 300)
    labels = digits.labels[:6]
    with mg.no_grad():
        given, none = (model(x, t, y).numpy() for y in (labels, np.full(6, digits.classes)))
    assert not np.allclose(given, none, atol=1e-3)
    for guidance, expected in ((0, none), (1, given), (3, none + 3 * (given - none))):
        np.testing.assert_allclose(diffusion.guided(model, x, 300, labels, guidance), expected, atol=1e-4)


def test_patches_see_each_other_and_the_image_is_put_together_again(blobs):
    diffusion, digits = load("diffusion", blobs)
    model = denoisers(diffusion, digits)["Transformer"]
    x, t, y = mg.random.normal((1, 1, 4, 4)), np.array([10]), np.array([0])
    with mg.no_grad():
        before = model(x, t, y).numpy()
        x[0, 0, 3, 3] += 1  # a causal mask would hide the last patch from all others
        assert (model(x, t, y).numpy() != before).all()
        model.blocks = [lambda _: mg.Tensor(np.arange(16, dtype=np.float32).reshape(1, 4, 4))]
        model.ln_f = model.head = lambda tokens: tokens
        image = model(x, t, y).numpy()[0, 0]
    np.testing.assert_array_equal(image, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


# In full


@pytest.mark.slow  # trains the judge and all the models as their users do
def test_the_digits_are_as_good_as_the_guides_say(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for name, least in (
        ("classifier", {}),
        ("vae", {"VAE": 97}),
        ("gan", {"classes given": 90}),
        (
            "diffusion",
            {
                f"{network}, {steps} steps, guidance 2": 97
                for network in ("MLP", "Transformer")
                for steps in (10, 20, 50)
            },
        ),
    ):
        assert run_program(f"digits/{name}", "--out", tmp_path) == 0
        rows = {line[:34].strip(): line[34:].split() for line in capsys.readouterr().out.splitlines()}
        for row, accuracy in least.items():
            assert float(rows[row][0].rstrip("%")) >= accuracy
            assert rows[row][2] == "100%"
        if name == "gan":
            assert float(rows["no classes, G too fast"][3]) > 5 * float(rows["no classes"][3])
