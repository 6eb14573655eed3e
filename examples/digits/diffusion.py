"""A diffusion model draws digits (Ho et al., 2020): it begins with noise and removes it step by step.

    python examples/digits/classifier.py      # first: trains the judge
    python examples/digits/diffusion.py       # three minutes on one core

Noise is added to an image x_0, with pixels from -1 to 1, in T steps, until nothing else is left. After t steps it is

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e          e is normal(0, 1), and a_t falls from almost 1 to almost 0

A network, an MLP or a Transformer, learns to tell the noise e from x_t, t and the class y. See `loss_of` and `ddim`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
from digits import EACH, Digits, batches, draw, moments, prepare, print_table

import minigrad as mg
from gpt.config import GPTConfig
from gpt.errors import run_program
from gpt.model import MLP, Block, new_norm
from gpt.translation.seq2seq import sinusoidal_positions
from minigrad import functional as F
from minigrad import nn, optim

T = 1000
A = np.cumprod(1 - np.linspace(1e-4, 0.02, T)).astype(np.float32)  # a_t: step t keeps 1 - beta_t of the variance; (T,)
STEPS, BATCH_SIZE, LEARNING_RATE, LAYERS = 3000, 64, 4e-3, 3
NO_CLASS, GUIDANCE = 0.1, 2.0  # share of the images whose class is not given; see `guided`


class Denoiser(nn.Module):
    """e_hat: x_t (N, 1, H, W), t (N,) and y (N,) -> (N, 1, H, W). y = classes means that no class is given.
    L patches of P pixels become tokens of C channels. What is known, t and y, is added to them before each block."""

    def __init__(self, digits: Digits, block: type[nn.Module], patch: tuple[int, int], channels: int):
        (H, W), self.patch, self.classes = digits.images.shape[2:], patch, digits.classes
        self.grid = H // patch[0], W // patch[1]
        config = GPTConfig(block_size=math.prod(self.grid), n_embd=channels, n_head=4)
        self.times = sinusoidal_positions(0, T, channels).astype(np.float32)  # (T, C)
        self.time, self.label = nn.Linear(channels, channels), nn.Embedding(self.classes + 1, channels)
        self.condition = nn.Linear(channels, channels)
        self.wte = nn.Linear(math.prod(patch), channels)
        self.wpe = nn.Parameter(mg.random.normal((math.prod(self.grid), channels), 0.02))
        self.blocks = nn.ModuleList(block(config) for _ in range(LAYERS))
        self.ln_f, self.head = new_norm(config), nn.Linear(channels, math.prod(patch))

    def forward(self, x: np.ndarray, t: np.ndarray, y: np.ndarray) -> mg.Tensor:
        (rows, columns), (h, w) = self.grid, self.patch
        patches = x.reshape(-1, rows, h, columns, w).swapaxes(2, 3).reshape(-1, rows * columns, h * w)  # (N, L, P)
        condition = self.condition(F.silu(self.time(self.times[t]) + self.label(y)))[:, None]  # (N, 1, C)
        tokens = self.wte(patches) + self.wpe  # (N, L, C)
        for block in self.blocks:
            tokens = block(tokens + condition)
        patches = self.head(self.ln_f(tokens)).reshape(-1, rows, columns, h, w)
        return patches.swapaxes(2, 3).reshape(*x.shape)


class MLPBlock(nn.Module):
    """gpt's block without attention. The denoiser called MLP has the whole image as its only token."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln, self.mlp = new_norm(config), MLP(config)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return x + self.mlp(self.ln(x))


class TransformerBlock(Block):
    """gpt's block, where every patch attends to all, not only to those before it (DiT: Peebles and Xie, 2023)."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        y = F.scaled_dot_product_attention(*self.attn.heads(self.ln_1(x)))  # (N, nh, L, hs)
        x = x + self.attn.c_proj(y.transpose(0, 2, 1, 3).reshape(*x.shape))
        return x + self.mlp(self.ln_2(x))


def loss_of(model: Denoiser, images: np.ndarray, labels: np.ndarray) -> mg.Tensor:
    """The mean of (e - e_hat(x_t, t, y))^2 for images from 0 to 1, at a random t each."""
    rng, e = mg.random.generator(), mg.random.normal(images.shape)
    t = rng.integers(T, size=len(images))
    a, y = A[t][:, None, None, None], np.where(rng.random(len(labels)) < NO_CLASS, model.classes, labels)
    error = e - model(np.sqrt(a) * (2 * images - 1) + np.sqrt(1 - a) * e, t, y)
    return (error * error).mean()


def train(model: Denoiser, digits: Digits, steps: int) -> dict[str, np.ndarray]:
    """Returns images of each class, from the same noise, after some numbers of steps."""
    optimizer = optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    x, history = mg.random.normal((digits.classes, *digits.images.shape[1:])), {}
    for step, images, labels in batches(digits, steps, BATCH_SIZE):
        optimizer.param_groups[0]["lr"] = optim.warmup_cosine(step, LEARNING_RATE, 0.0, 100, steps)
        loss_of(model, images, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in moments(steps):
            *_, history[f"{step + 1:,}"] = ddim(model, x, np.arange(digits.classes), 20)
    return history


def guided(model: Denoiser, x: np.ndarray, t: int, labels: np.ndarray, guidance: float) -> np.ndarray:
    """Classifier-free guidance (Ho and Salimans, 2022): e_hat(no class) + guidance (e_hat(y) - e_hat(no class)).

    0 is no class, 1 is the class as learned, and more exaggerates what distinguishes the class."""
    y = np.concatenate([labels, np.full(len(x), model.classes)])
    with mg.no_grad():
        given, none = np.split(model(np.concatenate([x, x]), np.full(len(y), t), y).numpy(), 2)
    return none + np.float32(guidance) * (given - none)


def ddim(model: Denoiser, x: np.ndarray, labels: np.ndarray, steps: int, guidance=GUIDANCE, eta=0.0) -> Iterator:
    """The image after each step from noise x (N, 1, H, W), with pixels of about 0 to 1 (Song et al., 2021).

    The noise e that is seen at t, where a_t is a, implies an image, x_0 = (x - sqrt(1 - a) e) / sqrt(a). At the next t,
    where a_t is b, this image would be  x = sqrt(b) x_0 + sqrt(1 - b - s^2) e + s noise.
    eta 0: s = 0, no new noise, so few steps are enough. eta 1: s^2 = (1 - b) / (1 - a) (1 - a / b), as in DDPM."""
    times = np.linspace(T - 1, 0, steps).round().astype(int)
    for t, a, b in zip(times, A[times], [*A[times[1:]], np.float32(1)], strict=True):
        x_0 = ((x - np.sqrt(1 - a) * guided(model, x, t, labels, guidance)) / np.sqrt(a)).clip(-1, 1)
        e = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)  # what of x is noise if x_0 is the image
        s = np.float32(eta) * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = np.sqrt(b) * x_0 + np.sqrt(1 - b - s * s) * e + s * mg.random.normal(x.shape)
        yield (x + 1) / 2


def main() -> None:
    start = time.perf_counter()
    args, digits, held_out, classifier = prepare("Train diffusion models on digits.", STEPS)
    asked = np.repeat(np.arange(digits.classes), EACH)
    samples, panels, (H, W) = {}, {}, digits.images.shape[2:]
    patch = math.gcd(H, 2), math.gcd(W, 2)  # 2 × 2 pixels if both sides are even
    for name, block, size, channels in (("MLP", MLPBlock, (H, W), 256), ("Transformer", TransformerBlock, patch, 64)):
        model = Denoiser(digits, block, size, channels)
        panels[f"{name}: steps of training"] = train(model, digits, args.steps)
        noise = mg.random.normal((len(asked), 1, H, W))
        for steps, w in ((10, GUIDANCE), (20, GUIDANCE), (50, GUIDANCE), (20, 1)):
            samples[f"{name}, {steps} steps, guidance {w:g}"] = [*ddim(model, noise, asked, steps, w)][-1], asked
    print_table(classifier, digits, held_out, samples)
    path = list(ddim(model, noise[::EACH], asked[::EACH], 10))
    panels["Transformer: steps of sampling"] = {str(i + 1): path[i].clip(0, 1) for i in (0, 2, 4, 6, 8, 9)}
    print(f"picture  {draw(panels, args.out / 'diffusion.png')}")
    print(f"seconds  {time.perf_counter() - start:.0f}")


if __name__ == "__main__":
    run_program(main)
