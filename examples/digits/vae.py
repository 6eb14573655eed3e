"""A variational autoencoder draws digits (Kingma and Welling, 2014), each of a given class (Sohn et al., 2015).

    python examples/digits/classifier.py      # first: trains the judge
    python examples/digits/vae.py             # ten seconds

How an image x of class y comes about: a few hidden numbers z, the style, are drawn from p(z) = normal(0, 1), and a
network, the decoder, gives p(x | z, y). A second network, the encoder, guesses the z of an image: q(z | x, y). Both
maximize the evidence lower bound, the ELBO, on the logarithm of the image's probability density:

    log p(x | y)  >=  E_q[log p(x | z, y)]  -  KL(q(z | x, y) || p(z))
                      reconstruction           how many nats z tells about x

The first term wants z to describe the image. The second wants z to look like p(z), from which new images are drawn.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from digits import EACH, Digits, batches, draw_rows, moments, one_hot, prepare, print_table

import minigrad as mg
from gpt.errors import run_program
from gpt.figures import attempt, new_figure, save_figure
from minigrad import functional as F
from minigrad import nn, optim

LATENT, HIDDEN = 16, 256  # numbers in z; units of the two hidden layers of either network
STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 64, 2e-3


class VAE(nn.Module):
    """Encoder and decoder of N images with P pixels from 0 to 1, their labels (N,), and z, L = LATENT numbers each."""

    def __init__(self, digits: Digits) -> None:
        self.classes, self.shape = digits.classes, digits.images.shape[1:]
        self.encoder = perceptron(math.prod(self.shape) + self.classes, 2 * LATENT)
        self.decoder = perceptron(LATENT + self.classes, math.prod(self.shape))
        self.log_s = nn.Parameter(np.float32(-1))  # log of the standard deviation of a pixel

    def encode(self, images: np.ndarray, labels: np.ndarray) -> tuple[mg.Tensor, mg.Tensor]:
        """Mean and log variance of q(z | x, y), a normal distribution with independent numbers: (N, L) each."""
        x = images.reshape(len(images), -1)  # (N, P)
        mu, log_var = F.split(self.encoder(np.concatenate([x, one_hot(labels, self.classes)], axis=1)), LATENT, axis=1)
        return mu, log_var

    def decode(self, z: mg.Tensor | np.ndarray, labels: np.ndarray) -> mg.Tensor:
        """The mean of each pixel under p(x | z, y): (N, P)."""
        return F.sigmoid(self.decoder(F.concatenate([z, one_hot(labels, self.classes, z.dtype)], axis=1)))

    def elbo(self, images: np.ndarray, labels: np.ndarray, noise: np.ndarray) -> tuple[mg.Tensor, mg.Tensor]:
        """Both terms of the bound for each image, (N,) each, estimated with one z. noise (N, L) is normal(0, 1).

        Reparametrization: z = mu + sigma noise is a sample of q, and differentiable in mu and sigma.
        Reconstruction: a pixel is normal, with the decoder's mean m and a learned standard deviation s, the same for
        all pixels, so log p(x | z, y) = -sum over pixels of ((x - m) / s)^2 / 2 + log s + log(2 pi) / 2.
        """
        mu, log_var = self.encode(images, labels)
        z = mu + F.exp(log_var / 2) * noise  # (N, L)
        error = (images.reshape(len(images), -1) - self.decode(z, labels)) * F.exp(-self.log_s)  # (N, P)
        log_p = -0.5 * error * error - self.log_s - 0.5 * math.log(2 * math.pi)
        return log_p.sum(axis=1), kl(mu, log_var).sum(axis=1)

    def sample(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The images (N, 1, H, W) that the decoder makes of z (N, L): the means of the pixels."""
        with mg.no_grad():
            return self.decode(z, labels).numpy().reshape(-1, *self.shape)


def perceptron(inputs: int, outputs: int) -> nn.Module:
    first, second = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(HIDDEN, outputs))


def kl(mu: mg.Tensor, log_var: mg.Tensor) -> mg.Tensor:
    """KL(normal(mu, sigma^2) || normal(0, 1)) of each number, in closed form.

    E_q[log q(z) - log p(z)] with log q = -((z - mu) / sigma)^2 / 2 - log sigma + c and log p = -z^2 / 2 + c.
    E[((z - mu) / sigma)^2] = 1 and E[z^2] = mu^2 + sigma^2, so KL = (mu^2 + sigma^2 - 1) / 2 - log sigma.
    """
    return 0.5 * (mu * mu + F.exp(log_var) - 1 - log_var)


def train(model: VAE, digits: Digits, steps: int) -> dict[str, np.ndarray]:
    """Maximize the ELBO. Returns an image of each class, made of the same z, after some numbers of steps."""
    optimizer = optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    z, labels_shown = mg.random.normal((model.classes, LATENT)), np.arange(model.classes)
    history = {"0": model.sample(z, labels_shown)}
    for step, images, labels in batches(digits, steps, BATCH_SIZE):
        optimizer.param_groups[0]["lr"] = optim.warmup_cosine(step, LEARNING_RATE, 0.0, 0, steps)
        reconstruction, divergence = model.elbo(images, labels, mg.random.normal((len(images), LATENT)))
        loss = (divergence - reconstruction).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in moments(steps):
            history[f"{step + 1:,}"] = model.sample(z, labels_shown)
    return history


def main() -> None:
    start = time.perf_counter()
    args, digits, held_out, classifier = prepare("Train a variational autoencoder on digits.", STEPS)
    model = VAE(digits)
    history = train(model, digits, args.steps)
    with mg.no_grad():
        for name, (images, labels) in {"learned from": digits, "held out": held_out}.items():
            parts = model.elbo(images, labels, mg.random.normal((len(images), LATENT)))
            reconstruction, divergence = (part.mean().item() for part in parts)
            print(f"{name:13}ELBO {reconstruction - divergence:.2f}: {reconstruction:.2f} - {divergence:.2f} nats")
    asked = np.repeat(np.arange(model.classes), EACH)
    samples = model.sample(mg.random.normal((len(asked), LATENT)), asked)
    print_table(classifier, digits, held_out, {"VAE": (samples, asked)})
    print(f"picture  {attempt(lambda: draw(model, history, held_out, args.out / 'vae.png'))}")
    print(f"seconds  {time.perf_counter() - start:.0f}")


def draw(model: VAE, history: dict[str, np.ndarray], held_out: Digits, path: Path) -> Path | None:
    """Samples over the training, and the two numbers of z that tell most about the held-out digits: where the encoder
    puts these, and what the decoder makes of values from -2 to 2, with the other numbers 0."""
    figure = new_figure((14, 4.2))
    if figure is None:
        return None
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 4))
    left.set(title="one z for each class", ylabel="steps")
    draw_rows(left, history)
    with mg.no_grad():
        mu, log_var = model.encode(*held_out)
    a, b = np.argsort(kl(mu, log_var).numpy().mean(axis=0))[-2:]
    middle.set(title="mean of q(z | x, y) of held-out digits", xlabel=f"z[{a}]", ylabel=f"z[{b}]")
    points = middle.scatter(*mu.numpy()[:, [a, b]].T, c=held_out.labels, cmap="tab10", s=12)
    figure.colorbar(points, ax=middle, ticks=range(model.classes), label="class")
    values, z = np.linspace(-2, 2, 9, dtype=np.float32), np.zeros((9, 9, LATENT), np.float32)
    z[..., a], z[..., b] = values, values[::-1, None]
    images = model.sample(z.reshape(81, LATENT), np.full(81, min(2, model.classes - 1))).reshape(9, 9, *model.shape)
    right.set(title="the decoder, for one class", xlabel=f"z[{a}] from -2 to 2", ylabel=f"z[{b}]")
    draw_rows(right, {f"{value:.1f}": row for value, row in zip(values[::-1], images, strict=True)})
    return save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
