"""Texts to train on: a file, Tiny Shakespeare, or what every Python carries; and batches of blocks of them."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.serialization import write_atomically

from .errors import ConfigError, DataError

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Text(NamedTuple):
    """A text, and what to call it."""

    name: str
    text: str


# Where texts come from


def load_text(path: str | os.PathLike[str] | None = None, say: Callable[[str], object] = print) -> Text:
    """The text to train on: the named file as it is; without a name, Tiny Shakespeare.

    Tiny Shakespeare is downloaded once and kept in `cache_directory()`; its SHA-256 is checked whenever it is read,
    and a damaged copy is downloaded again. If it cannot be had, `say` is told why and where to put the file, and the
    text is `language_reference()`.
    """
    if path is not None:
        return Text(str(path), read_text(path))
    cached = cache_directory() / "tinyshakespeare.txt"
    try:
        if not _is_intact(cached, TINY_SHAKESPEARE_SHA256):
            say(f"Downloading Tiny Shakespeare to {cached}")
            download(TINY_SHAKESPEARE, TINY_SHAKESPEARE_SHA256, cached)
        return Text("Tiny Shakespeare", read_text(cached))
    except DataError as error:
        say(
            f"Tiny Shakespeare could not be downloaded: {error}\n"
            f"Taking Python's language reference instead. For Tiny Shakespeare, put {TINY_SHAKESPEARE}\n"
            f"at {cached}, or name a text file of your own."
        )
        return Text("Python's language reference", language_reference())


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, its line ends as they are. Raises `DataError` if there is no text to be had."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from error
    except OSError as error:
        what = "a folder; wanted a text file" if os.path.isdir(path) else f"cannot be read ({_reason(error)})"
        raise DataError(f"{path}: {what}") from error
    if not text:
        raise DataError(f"{path}: the file is empty")
    return text


def language_reference() -> str:
    """Real text without a network: the parts of the language reference that Python's `help` shows.

    About half a million characters, mostly English; it differs a little from one version of Python to the next.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:  # some systems' minimal Python leaves it out
        raise DataError("this Python comes without its language reference (pydoc_data); name a text file") from error
    return "\n".join(topics[name] for name in sorted(topics))


def cache_directory() -> Path:
    """Where downloads are kept: $MINIGRAD_CACHE, else minigrad in $XDG_CACHE_HOME, else ~/.cache/minigrad."""
    chosen = os.environ.get("MINIGRAD_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minigrad"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep downloads in; set MINIGRAD_CACHE to a folder") from error


def download(url: str, sha256: str, path: str | os.PathLike[str], timeout: float = 30.0) -> None:
    """Fetch a small file and keep it at `path`, if it is the one whose SHA-256 is given.

    timeout: how many seconds the server may be silent.

    Raises `DataError` saying what went wrong; `path` then is what it was before: it is only ever replaced whole.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            content = response.read()
    except http.client.IncompleteRead as error:
        missing = f", {error.expected} short" if error.expected else ""
        raise DataError(f"{url}: the connection was cut after {len(error.partial)} bytes{missing}") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # no network, a time-out, no such scheme
        raise DataError(f"{url}: {_reason(error)}") from error
    received = hashlib.sha256(content).hexdigest()
    if received != sha256:
        raise DataError(f"{url}: not the file that was wanted: its SHA-256 is {received}; wanted {sha256}")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({_reason(error)})") from error


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _reason(error: Exception) -> str:
    """What went wrong, in the system's words and without its numbers."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__)


# Batches


class Dataset:
    """Token ids, the first part to train on and the rest to validate on, given out in random blocks.

    ids: integers (N,), an array or a memory map; not copied.
    block_size: T, the tokens in each block.
    train_fraction: how much of the text is for training.

    `train` and `val` are the two parts. Raises `DataError` if one of them is shorter than a block and the token after.
    """

    def __init__(self, ids: Any, block_size: int, train_fraction: float = 0.9) -> None:
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise DataError(f"wanted token ids, integers (N,); got {ids.shape} {ids.dtype}")
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}; wanted at least 1")
        if not 0 < train_fraction < 1:
            raise ConfigError(f"train_fraction is {train_fraction}; wanted above 0 and below 1")
        cut = int(train_fraction * len(ids))
        self.train, self.val = ids[:cut], ids[cut:]
        self.block_size = block_size
        if min(len(self.train), len(self.val)) < block_size + 1:
            raise DataError(
                f"the text is too short: of its {len(ids)} tokens {len(self.train)} are to train on and "
                f"{len(self.val)} to validate on; blocks of {block_size} want at least {block_size + 1} in each"
            )

    def batch(self, split: str, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Random blocks of "train" or "val", and for every token the one that comes after it: two int64 arrays (B, T).

        The blocks start anywhere and may overlap. The same state of `rng` gives the same batch.
        """
        if split not in ("train", "val"):
            raise ConfigError(f'split is {split!r}; wanted "train" or "val"')
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; wanted at least 1")
        ids = self.train if split == "train" else self.val
        starts = rng.integers(len(ids) - self.block_size, size=batch_size)
        blocks = sliding_window_view(ids, self.block_size + 1)[starts].astype(np.int64)  # (B, T + 1)
        return np.ascontiguousarray(blocks[:, :-1]), np.ascontiguousarray(blocks[:, 1:])
