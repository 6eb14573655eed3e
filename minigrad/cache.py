"""The user's cache folder: downloads, and what the check of the CUDA kernels found."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$MINIGRAD_CACHE, else minigrad in $XDG_CACHE_HOME, else ~/.cache/minigrad. RuntimeError if there is no home."""
    chosen = os.environ.get("MINIGRAD_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minigrad"
