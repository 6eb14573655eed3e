"""Figures, where matplotlib is installed."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigrad.serialization import write_atomically

NO_FIGURE = "none: matplotlib is not installed (pip install matplotlib)"


def new_figure(figsize: tuple[float, float] = (8, 5)) -> Any:
    """An empty figure of this size in inches; None without matplotlib."""
    try:
        return importlib.import_module("matplotlib.figure").Figure(figsize=figsize, layout="constrained")
    except ImportError:
        return None


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure to a PNG file, whole or not at all. Returns the path."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getvalue())
    return path


def attempt(draw: Callable[[], Path | None]) -> Path | str:
    """The path of a figure that a function draws, or why there is none: a program goes on without it."""
    try:
        return draw() or NO_FIGURE
    except OSError as error:
        return f"none: {error}"


def plot_losses(rows: list[dict[str, Any]], path: Path) -> Path | None:
    """Draw the loss curves of a run's metrics to a PNG file. Returns its path, or None without matplotlib."""
    figure = new_figure()
    if figure is None:
        return None
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for column, label, style in (
        ("loss", "training batch", {"alpha": 0.35, "linewidth": 1}),
        ("train_loss", "training (estimate)", {"marker": "o", "markersize": 3}),
        ("val_loss", "validation (estimate)", {"marker": "o", "markersize": 3}),
    ):
        found = [row for row in rows if column in row]
        axes.plot([row["iteration"] for row in found], [row[column] for row in found], label=label, **style)
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, path)
