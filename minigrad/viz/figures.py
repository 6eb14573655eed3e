"""Figures with matplotlib, where it is installed: a new one, a saved one, and two arrays side by side."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..serialization import write_atomically

NO_FIGURE = "none: matplotlib is not installed (pip install matplotlib)"
WITH_NUMBERS = 12  # rows and columns up to which each cell shows its number


def new_figure(figsize: tuple[float, float] = (8, 5)) -> Any:
    """An empty figure of this size in inches; None without matplotlib. In an interactive session it can be shown."""
    try:
        if hasattr(sys, "ps1"):
            return importlib.import_module("matplotlib.pyplot").figure(figsize=figsize, layout="constrained")
        return importlib.import_module("matplotlib.figure").Figure(figsize=figsize, layout="constrained")
    except ImportError:
        return None


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure to a PNG file, whole or not at all. Returns the path."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(path, image.getvalue())
    return path


def draw_comparison(title: str, given: Any, right: Any, path: Path) -> Path | None:
    """Draw a wrong array, the right one and their difference as heat maps, to a PNG file.

    Returns the path, or None without matplotlib. The first two maps share their colors; the difference has its own. The
    largest difference is marked. If the shapes differ, there is no difference to draw. Axes before the last are laid
    out as rows. If Python runs interactively, the picture is also opened in a window.
    """
    given, right = (np.asarray(array, np.float64) for array in (given, right))
    maps = [("yours", given), ("right", right)]
    if given.shape == right.shape:
        maps.append(("difference: yours - right", given - right))
    rows, columns = (max(as_rows(array).shape[axis] for _, array in maps) for axis in (0, 1))
    figure = new_figure((min(15, max(8, len(maps) * (1.2 + 0.55 * columns))), min(9, max(2.6, 1.6 + 0.4 * rows))))
    if figure is None:
        return None
    figure.suptitle(title)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, array) in zip(panels, maps, strict=True):
        limit = largest(array) if name.startswith("difference") else max(largest(given), largest(right))
        draw_map(figure, axes, array, limit or 1)
        shape = "" if given.shape == right.shape else f", shape {array.shape}"
        axes.set_title(name + shape, fontsize="medium")
    if given.shape != right.shape:
        figure.supxlabel(f"the shapes differ: {given.shape} and {right.shape}", fontsize="medium")
    elif given.size:
        distance = np.abs(given - right)
        place = np.unravel_index(int(np.argmax(np.where(np.isnan(distance), np.inf, distance))), given.shape)
        for axes in panels:
            mark(axes, given.shape, place)
        at = f" at {tuple(map(int, place))}" if place else ""
        said = f"largest difference{at}: yours {given[place]:.4g}, right {right[place]:.4g}"
        figure.supxlabel(said, fontsize="medium")
    save_figure(figure, path)
    if figure.canvas.manager is not None:  # made by pyplot
        figure.show(warn=False)
    return path


def as_rows(array: Any) -> Any:
    """The array as a matrix: its last axis stays, the others become rows. An empty array is one gray cell."""
    if not array.size:
        return np.full((1, 1), np.nan)
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def largest(array: Any) -> float:
    """The largest finite size of an element."""
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0))


def draw_map(figure: Any, axes: Any, array: Any, limit: float) -> None:
    """One heat map, with white at 0, and with numbers if it is small. What is not finite is gray."""
    cells = as_rows(array)
    colors = importlib.import_module("matplotlib").colormaps["RdBu_r"].with_extremes(bad="0.6")
    shown = np.where(np.isfinite(cells), cells, np.nan)
    image = axes.imshow(shown, cmap=colors, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, format="%.3g")
    if array.ndim > 2:  # a line between the matrices that lie below each other
        for row in range(array.shape[-2], len(cells), array.shape[-2]):
            axes.axhline(row - 0.5, color="black", linewidth=1)
    for axis, count in ((axes.xaxis, cells.shape[1]), (axes.yaxis, len(cells))):
        axis.set_major_locator(importlib.import_module("matplotlib.ticker").MaxNLocator(integer=True))
        if count == 1:
            axis.set_ticks([0])
    if max(cells.shape) <= WITH_NUMBERS:
        for (row, column), value in np.ndenumerate(cells):
            color = "white" if abs(value) > 0.6 * limit else "black"
            number = f"{value if abs(value) > 1e-6 * limit else 0:.2g}"  # finite differences are not exact
            axes.text(column, row, number, ha="center", va="center", fontsize="x-small", color=color)


def mark(axes: Any, shape: tuple[int, ...], place: tuple[Any, ...]) -> None:
    """A frame around the element at `place` of an array of this shape."""
    flat = int(np.ravel_multi_index(place, shape)) if place else 0
    row, column = divmod(flat, shape[-1]) if shape else (0, 0)
    rectangle = importlib.import_module("matplotlib.patches").Rectangle
    axes.add_patch(rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2.5))
    axes.add_patch(rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="gold", linewidth=1.2))
