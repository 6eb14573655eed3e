"""A generative adversarial network draws digits (Goodfellow et al., 2014), of given classes (Mirza and Osindero, 2014).

    python examples/digits/classifier.py      # first: trains the judge
    python examples/digits/gan.py             # a minute

Two players. The generator G makes an image of class y from noise z. The discriminator D sees an image and a class, and
says how real the image is: D(x, y) is the logit of the probability that x is a real image of y. They minimize in turn

    D:  -log sigmoid(D(x, y)) - log(1 - sigmoid(D(G(z, y), y)))  =  softplus(-D(x, y)) + softplus(D(G(z, y), y))
    G:  -log sigmoid(D(G(z, y), y))                              =  softplus(-D(G(z, y), y))

Each changes its own weights only. G could instead maximize D's loss, but where D is sure that an image is false, that
loss is flat and G learns nothing. The loss above is steepest there: the "non-saturating" loss of the paper.
"""

from __future__ import annotations

import math
import time

import numpy as np
from digits import EACH, Digits, batches, draw, moments, one_hot, prepare, print_table

import minigrad as mg
from gpt.errors import run_program
from minigrad import functional as F
from minigrad import nn, optim

LATENT, HIDDEN = 10, 256  # numbers in z; units of the two hidden layers of either network
STEPS, BATCH_SIZE = 3000, 64
LEARNING_RATE, BETAS = 2e-3, (0.5, 0.99)  # the gradient's direction changes with the other player: a short memory
NOISE, DROPOUT = 0.5, 0.3  # of the discriminator: the noise on the images that it sees, and its dropout
SHOWN = 10  # images of a generator in a row of the picture


class Generator(nn.Module):
    """z (N, LATENT) and labels (N,) -> images (N, 1, H, W) from 0 to 1."""

    def __init__(self, digits: Digits) -> None:
        self.classes, self.shape = digits.classes, digits.images.shape[1:]
        first, second = nn.Linear(LATENT + self.classes, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(HIDDEN, math.prod(self.shape)))

    def forward(self, z: np.ndarray, labels: np.ndarray) -> mg.Tensor:
        x = self.layers(np.concatenate([z, one_hot(labels, self.classes)], axis=1))  # (N, P)
        return F.sigmoid(x).reshape(-1, *self.shape)

    def sample(self, labels: np.ndarray) -> np.ndarray:
        """One image for each label, without a graph."""
        with mg.no_grad():
            return self(mg.random.normal((len(labels), LATENT)), labels).numpy()


class Discriminator(nn.Module):
    """Images (N, 1, H, W) and labels (N,) -> logits (N,), above 0 for images that look like real ones of that class.

    The last layer has a logit for each class, of which that of the label counts (Miyato and Koyama, 2018). Noise on all
    images, real ones and others, hides small differences between them, by which D could be sure too early
    (Arjovsky and Bottou, 2017).
    """

    def __init__(self, digits: Digits, noise: float = NOISE, dropout: float = DROPOUT) -> None:
        self.classes, self.noise = digits.classes, noise
        self.linear1 = nn.Linear(math.prod(digits.images.shape[1:]), HIDDEN)
        self.linear2, self.linear3 = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, self.classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: mg.Tensor | np.ndarray, labels: np.ndarray) -> mg.Tensor:
        x = 2 * F.reshape(images, len(labels), -1) - 1  # (N, P), from -1 to 1
        x = leaky_relu(self.linear1(x + mg.random.normal(x.shape, self.noise)))
        x = leaky_relu(self.linear2(self.dropout(x)))
        return (self.linear3(self.dropout(x)) * one_hot(labels, self.classes)).sum(axis=1)


def leaky_relu(x: mg.Tensor) -> mg.Tensor:
    """Unlike ReLU, it has a slope everywhere, through which G can learn."""
    return F.maximum(x, 0.2 * x)


def discriminator_loss(D: Discriminator, G: Generator, images: np.ndarray, labels: np.ndarray) -> mg.Tensor:
    """The loss of D for real images and for as many of G's. These are made without a graph, so G gets no gradient."""
    return (F.softplus(-D(images, labels)) + F.softplus(D(G.sample(labels), labels))).mean()


def generator_loss(D: Discriminator, G: Generator, labels: np.ndarray) -> mg.Tensor:
    """The loss of G for new images. Its gradient passes through D to G; `train` drops the part that is D's."""
    return F.softplus(-D(G(mg.random.normal((len(labels), LATENT)), labels), labels)).mean()


def train(G: Generator, D: Discriminator, digits: Digits, steps: int, g_steps: int = 1) -> dict[str, np.ndarray]:
    """A step of D, then `g_steps` of G, in turn, `steps` times. Returns images of G after some numbers of steps."""
    players = [optim.AdamW(player.parameters(), LEARNING_RATE, BETAS, weight_decay=0.0) for player in (D, G)]
    shown = np.arange(SHOWN) % G.classes
    history = {"0": G.sample(shown)}
    for step, images, labels in batches(digits, steps, BATCH_SIZE):
        for player in players:
            player.param_groups[0]["lr"] = optim.warmup_cosine(step, LEARNING_RATE, 0.0, 0, steps)
        discriminator_loss(D, G, images, labels).backward()
        players[0].step()
        players[0].zero_grad()
        for _ in range(g_steps):
            generator_loss(D, G, labels).backward()
            players[1].step()
            players[1].zero_grad()
            players[0].zero_grad()
        if step + 1 in moments(steps):
            history[f"{step + 1:,}"] = G.sample(shown)
    return history


def main() -> None:
    start = time.perf_counter()
    args, digits, held_out, classifier = prepare("Train generative adversarial networks on digits.", STEPS)
    unlabeled = Digits(digits.images, np.zeros_like(digits.labels))  # all of one class: G chooses what to draw
    asked = np.repeat(np.arange(digits.classes), EACH)
    samples, histories = {}, {}
    for name, known, g_steps in (
        ("classes given", digits, 1),
        ("no classes", unlabeled, 1),
        ("no classes, G too fast", unlabeled, 5),
    ):
        G, D = Generator(known), Discriminator(known)
        histories[f"{name}: steps of D"] = train(G, D, known, max(1, args.steps // g_steps), g_steps)
        print(f"{name:34}the loss of D is {discriminator_loss(D, G, *known).item():.3f} at the end")
        labels = asked if known is digits else np.zeros_like(asked)
        samples[name] = G.sample(labels), labels if known is digits else None
    print_table(classifier, digits, held_out, samples)
    print(f"picture  {draw(histories, args.out / 'gan.png')}")
    print(f"seconds  {time.perf_counter() - start:.0f}")


if __name__ == "__main__":
    run_program(main)
