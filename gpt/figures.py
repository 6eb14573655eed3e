"""Figures, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigrad.viz.figures import NO_FIGURE, new_figure, save_figure


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
