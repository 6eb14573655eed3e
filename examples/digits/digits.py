"""Images of digits, a small convolutional network that reads them, and a judge of images that a model made.

The images are those of scikit-learn: 1,797 digits of 8 × 8 pixels, written by 43 people (Alpaydin and Kaynak, 1998). A
fifth of them is held out: chosen once, by a fixed seed, and used for nothing but the figures at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minigrad as mg
from gpt.errors import CheckpointError, DataError, reason
from gpt.figures import attempt, new_figure, save_figure
from gpt.options import Parser, check_count, folder
from gpt.run import progress_bar
from minigrad import functional as F
from minigrad import nn

HELD_OUT = 5  # one image of so many
SPLIT_SEED = 1998
CHANNELS, FEATURES = (32, 64), 64  # of the network's convolutions; the numbers by which its last layer tells digits
WEIGHTS = "classifier.safetensors"
EACH = 100  # images of each class, by which a model is judged
MOMENTS = (0, 0.02, 0.05, 0.15, 0.4, 1)  # of a training run, at which samples are drawn


def parse_arguments(description: str, count: str, default: int, about: str) -> argparse.Namespace:
    """The options of the programs here: --data, --seed, --out, and how long to train, --steps or --epochs."""
    parser = Parser(description=description)
    parser.add_argument("--data", metavar="FILE", help="an .npz file of images and labels (default: scikit-learn's)")
    parser.add_argument(f"--{count}", type=int, default=default, help=f"{about} (default: {default})")
    parser.add_argument("--seed", type=int, default=1337, help="random seed (default: 1337)")
    parser.add_argument(
        "--out", metavar="DIR", default="out-digits", type=folder, help="folder for the results (default: out-digits)"
    )
    args = parser.parse_args()
    check_count(count, getattr(args, count), 1)
    check_count("seed", args.seed, 0)
    return args


class Digits(NamedTuple):
    """Images, (N, 1, H, W) from 0 to 1, and the digit that each shows, (N,) from 0 to the number of classes - 1."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.labels.max()) + 1


def load_digits(path: str | None = None) -> tuple[Digits, Digits]:
    """The digits to learn from, and those held out: scikit-learn's, or those of an .npz file of `images` and `labels`.

    images: numbers (N, H, W), (N, H, W, 1) or (N, 1, H, W), which are divided by the largest. labels: integers (N,).
    """
    images, labels = of_scikit_learn() if path is None else of_file(path)
    images = (images / max(images.max(), 1e-9)).astype(np.float32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    held_out, rest = np.split(order, [len(images) // HELD_OUT])
    return Digits(images[rest], labels[rest]), Digits(images[held_out], labels[held_out])


def of_scikit_learn() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        install = 'pip install -e ".[examples]"'
        raise DataError(f"the digits need scikit-learn: {install}, or give a file of images with --data") from error
    found = load_digits()
    return found.images[:, None], found.target


def of_file(path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected an .npz file of images and labels ({reason(error)})") from error
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]):
        images = images.reshape(len(images), *(n for n in images.shape[1:] if n > 1))
    if images.ndim != 3 or images.dtype.kind not in "uif" or min(images.shape[1:]) < 4 or len(images) < 2 * HELD_OUT:
        raise DataError(
            f"{path}: expected at least {2 * HELD_OUT} images of one channel and at least 4 × 4 pixels, "
            f"got {images.shape} {images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() > 999:
        raise DataError(f"{path}: expected {len(images)} labels from 0 on, got {labels.shape} {labels.dtype}")
    if not np.isfinite(images).all() or images.min() < 0:
        raise DataError(f"{path}: expected pixels of at least 0")
    return images[:, None], labels.astype(np.int64)


def batches(digits: Digits, steps: int, size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The number of each step, and random images (size, 1, H, W) with their labels (size,). Shows a progress bar."""
    with progress_bar(total=steps) as bar:
        for step in range(steps):
            rows = mg.random.generator().integers(len(digits.images), size=size)
            yield step, digits.images[rows], digits.labels[rows]
            bar.update()


def one_hot(labels: np.ndarray, classes: int, dtype: Any = np.float32) -> np.ndarray:
    """1 in the column of the label, 0 elsewhere: (N,) -> (N, classes)."""
    return np.eye(classes, dtype=dtype)[labels]


def moments(steps: int) -> set[int]:
    """The numbers of updates after which samples are drawn."""
    return {round(share * steps) for share in MOMENTS}


class Classifier(nn.Module):
    """Two convolutions, the largest of each 2 × 2 pixels, two linear layers: (N, 1, H, W) -> logits (N, classes)."""

    def __init__(self, height: int = 8, width: int = 8, classes: int = 10) -> None:
        first, second = CHANNELS
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.linear1 = nn.Linear(second * (height // 2) * (width // 2), FEATURES)
        self.linear2 = nn.Linear(FEATURES, classes)
        self.dropout = nn.Dropout(0.25)

    def features(self, x: Any) -> Any:
        """What the last layer decides by: (N, FEATURES)."""
        x = F.relu(self.conv1(x))  # (N, 32, H, W)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 64, H/2, W/2)
        return F.relu(self.linear1(self.dropout(x.reshape(len(x), -1))))

    def forward(self, x: Any) -> Any:
        return self.linear2(self.dropout(self.features(x)))


def load_classifier(path: Path, digits: Digits) -> Classifier:
    """A classifier that classifier.py has trained and saved, for images of the size and the classes of `digits`."""
    model = Classifier(*digits.images.shape[2:], digits.classes)
    try:
        model.load_state_dict(mg.load(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there; first run: python examples/digits/classifier.py") from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no classifier of these images: {error}") from error
    return model.eval()


class Judgment(NamedTuple):
    """What the classifier says about images."""

    accuracy: float  # the share that shows the digit that was asked for; NaN if none was
    confidence: float  # the mean probability of the digit that it sees
    coverage: float  # the share of the classes of which at least one image was seen
    distance: float  # the Fréchet distance to held-out real digits


def judge(classifier: Classifier, images: np.ndarray, held_out: Digits, labels: np.ndarray | None = None) -> Judgment:
    """Judge images (N, 1, H, W) from 0 to 1, which were to show the digits `labels`, if these are given."""
    logits, features = look(classifier, images)
    _, real = look(classifier, held_out.images)
    seen = logits.argmax(axis=1)
    return Judgment(
        accuracy=float("nan") if labels is None else float((seen == labels).mean()),
        confidence=float(F.softmax(logits).data.max(axis=1).mean()),
        coverage=len(np.unique(seen)) / logits.shape[1],
        distance=frechet_distance(features, real),
    )


def look(classifier: Classifier, images: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, classes) and the features (N, FEATURES) of images, without dropout."""
    classifier.eval()
    with mg.no_grad():
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        features = np.concatenate([classifier.features(batch).numpy() for batch in batches])
        return classifier.linear2(features).numpy(), features


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far the rows of a (N, D) and b (M, D) are apart, both taken as normally distributed (Heusel et al., 2017).

        |mean(a) - mean(b)|^2 + trace(A + B - 2 (A B)^(1/2))        A and B are the covariances

    A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), and the trace of its root is the sum of their roots.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    A, B = (np.cov(rows, rowvar=False).reshape(rows.shape[1], -1) for rows in (a, b))
    values, vectors = np.linalg.eigh(A)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T  # A^(1/2)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ B @ root), 0))
    apart = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return max(0.0, float(apart + np.trace(A) + np.trace(B) - 2 * roots.sum()))  # rounding can leave less than 0


def prepare(description: str, steps: int) -> tuple[argparse.Namespace, Digits, Digits, Classifier]:
    """What a program that draws digits begins with: options, digits to learn from, held-out ones, and the judge."""
    args = parse_arguments(description, "steps", steps, "updates of the weights")
    digits, held_out = load_digits(args.data)
    mg.manual_seed(args.seed)
    return args, digits, held_out, load_classifier(args.out / WEIGHTS, digits)


def print_table(
    classifier: Classifier,
    digits: Digits,
    held_out: Digits,
    samples: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
) -> None:
    """What the classifier says about the digits that were learned from, and about the samples of each name.

    samples: images (N, 1, H, W), and the labels (N,) that were asked for, or None.
    """
    print(f"\n{'':34}accuracy  confidence  coverage  distance")
    for name, (images, labels) in {"real digits": digits, **samples}.items():
        accuracy, confidence, coverage, distance = judge(classifier, images, held_out, labels)
        shown = "-" if labels is None else f"{accuracy:.1%}"
        print(f"{name:34}{shown:>8}{confidence:>12.3f}{coverage:>10.0%}{distance:>10.2f}")
    print()


def draw(panels: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> Path | str:
    """A picture with a panel for each title; see `draw_rows`. Returns its path, or why there is none."""

    def draw_panels() -> Path | None:
        figure = new_figure((14, 3.2))
        if figure is None:
            return None
        for axes, (title, rows) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            axes.set(title=title)
            draw_rows(axes, rows)
        return save_figure(figure, path)

    return attempt(draw_panels)


def draw_rows(axes: Any, rows: Mapping[str, np.ndarray]) -> None:
    """Draw the images (N, 1, H, W) of each name side by side, one row for each name."""
    images = np.pad(np.stack([*rows.values()])[:, :, 0], ((0, 0), (0, 0), (1, 1), (1, 1)))  # (R, N, H + 2, W + 2)
    R, N, H, W = images.shape
    axes.imshow(images.transpose(0, 2, 1, 3).reshape(R * H, N * W), cmap="gray_r", vmin=0, vmax=1)
    axes.set_yticks(np.arange(R) * H + (H - 1) / 2, rows.keys())
    axes.set_xticks([])
    axes.tick_params(length=0)
