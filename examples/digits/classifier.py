"""Train a small convolutional network to read digits; it also judges what vae.py, gan.py and diffusion.py draw.

    python examples/digits/classifier.py                      # scikit-learn's digits; half a minute
    python examples/digits/classifier.py --data FILE.npz      # arrays "images" (N, H, W) and "labels" (N,)

Writes the weights to classifier.safetensors in the folder --out, and a picture of the first layer's kernels and of all
held-out digits that were read wrongly to classifier.png.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from digits import WEIGHTS, Classifier, Digits, judge, load_digits, look, parse_arguments

import minigrad as mg
from gpt.errors import run_program
from gpt.figures import attempt, new_figure, save_figure
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import optim

EPOCHS, BATCH_SIZE = 20, 64
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.1


def main() -> None:
    args = parse_arguments("Train a small convolutional network to read digits.", "epochs", EPOCHS, "passes")
    start = time.perf_counter()
    digits, held_out = load_digits(args.data)
    mg.manual_seed(args.seed)
    model = Classifier(*digits.images.shape[2:], max(digits.classes, held_out.classes))
    print(f"digits      {len(digits.images):,} to learn from, {len(held_out.images):,} held out")
    print(f"parameters  {model.num_parameters():,}")
    train(model, digits, args.epochs)

    result = judge(model, held_out.images, held_out, held_out.labels)
    own = judge(model, digits.images, held_out, digits.labels)
    noise = mg.random.uniform(held_out.images.shape, 0, 1)
    print(f"accuracy    {result.accuracy:.2%} of held-out digits, {own.accuracy:.2%} of those that it learned from")
    print(f"confidence  {result.confidence:.3f} of held-out digits")
    print(
        f"distance    from held-out digits: {own.distance:.2f} for those that it learned from, "
        f"{judge(model, noise, held_out).distance:.0f} for noise"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    mg.save(model.state_dict(), args.out / WEIGHTS)
    picture = attempt(lambda: draw(model, held_out, args.out / "classifier.png"))
    print(f"weights     {args.out / WEIGHTS}")
    print(f"picture     {picture}")
    print(f"seconds     {time.perf_counter() - start:.0f}")


def train(model: Classifier, digits: Digits, epochs: int) -> None:
    """AdamW on batches in a new order in every pass; the learning rate falls along half a cosine."""
    optimizer = optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(digits.images) // BATCH_SIZE)
    model.train()
    with progress_bar(total=steps) as bar:
        for _ in range(epochs):
            order = mg.random.generator().permutation(len(digits.images))
            for i in range(0, len(order), BATCH_SIZE):
                rows = order[i : i + BATCH_SIZE]
                for group in optimizer.param_groups:
                    group["lr"] = optim.warmup_cosine(bar.n, LEARNING_RATE, 0.0, 0, steps)
                loss = F.cross_entropy(model(digits.images[rows]), digits.labels[rows])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                bar.update()


def draw(model: Classifier, held_out: Digits, path: Path) -> Path | None:
    """The kernels of the first layer, and the held-out digits that were read wrongly."""
    figure = new_figure((10, 4.5))
    if figure is None:
        return None
    left, right = figure.subfigures(1, 2)
    left.suptitle("the first layer's kernels, 3 × 3")
    kernels = model.conv1.weight.data[:, 0]
    for axes, kernel in zip(left.subplots(4, 8).flat, kernels, strict=True):
        limit = np.abs(kernels).max()
        axes.imshow(kernel, cmap="RdBu", vmin=-limit, vmax=limit)
        axes.axis("off")
    seen = look(model, held_out.images)[0].argmax(axis=1)
    wrong = np.flatnonzero(seen != held_out.labels)
    right.suptitle(
        f"{len(wrong)} of {len(seen)} held-out digits read wrongly" + (": the first 12" if len(wrong) > 12 else "")
    )
    for axes in (panels := right.subplots(3, 4)).flat:
        axes.axis("off")
    for axes, i in zip(panels.flat, wrong, strict=False):
        axes.imshow(held_out.images[i, 0], cmap="gray_r")
        axes.set_title(f"{held_out.labels[i]} read as {seen[i]}", fontsize=9)
    return save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
