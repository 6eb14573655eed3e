"""Figures, where matplotlib is installed."""

from __future__ import annotations

import importlib
import io
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
