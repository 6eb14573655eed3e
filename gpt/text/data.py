"""What to train on: a text file, Tiny Shakespeare, what every Python carries, or token files; and batches of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.backend import Array, as_array, get_array_module

from ..download import cache_directory, download
from ..errors import ConfigError, DataError, reason
from .tokenizer import CharTokenizer, Tokenizer, from_state

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
    if not os.fspath(path):
        raise DataError("the name of the file is empty; expected that of a text file")
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})") from error
    except OSError as error:
        what = "a folder; expected a text file" if os.path.isdir(path) else f"cannot be read ({reason(error)})"
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


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


# Token ids

TRAIN, VAL, META = "train.bin", "val.bin", "meta.json"


class Tokens(NamedTuple):
    """Token ids to train on and to validate on (N,), and the tokenizer that made them."""

    about: str  # in words: which, how many
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    data_id: str  # tells this data from other data


def load_data(
    path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    say: Callable[[str], object] = print,
    check: Callable[[str], object] = lambda data_id: None,
) -> Tokens:
    """What to train on: the token files that a folder or a .bin file stands for, else a text; see `load_text`.

    tokenizer: that of the model; if there is none yet, a text's tokens are its distinct characters.
    check: called with what tells this data from other data before it meets the tokenizer; may raise.

    The last tenth of a text is to validate on. Raises `DataError` for token files of another tokenizer.
    """
    if path is not None and (os.path.isdir(path) or Path(path).suffix == ".bin"):
        tokens = load_tokens(path)
        check(tokens.data_id)
        if tokenizer is not None and tokenizer.state() != tokens.tokenizer.state():
            raise DataError(f"{path}: these tokens were made by another tokenizer than the model's")
        return tokens
    name, text = load_text(path, say)
    data_id = hashlib.sha256(text.encode()).hexdigest()
    check(data_id)
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    about = f"{name}: {len(text):,} characters, {len(set(text))} distinct"
    return Tokens(about, *_split(tokenizer.encode(text), 0.9), tokenizer, data_id)


def load_tokens(path: str | os.PathLike[str]) -> Tokens:
    """The token files that examples/prepare_data.py wrote to a folder. Their ids stay on the disk.

    train.bin and val.bin are nothing but ids, little-endian uint16 or uint32; meta.json says which, how many, and by
    which tokenizer. If one .bin file of the folder is named, the last tenth of that file is to validate on.

    Raises `DataError` if a file is missing, damaged, or not what meta.json says.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    folder, names = (path, [TRAIN, VAL]) if path.is_dir() else (path.parent, [path.name])
    try:
        content = (folder / META).read_bytes()
        match json.loads(content):
            case {"tokenizer": state, "dtype": "uint16" | "uint32" as dtype, "files": dict(files)}:
                tokenizer = from_state(state)
            case _:
                raise DataError("not what examples/prepare_data.py writes")
    except OSError as error:
        raise DataError(
            f"{folder / META}: cannot be read ({reason(error)}); expected a folder that examples/prepare_data.py made"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / META}: {error}") from error
    parts = [_memory_map(folder / name, np.dtype(dtype).newbyteorder("<"), files.get(name)) for name in names]
    train, val = parts if len(parts) == 2 else _split(parts[0], 0.9)
    about = f"{path}: {len(train) + len(val):,} tokens out of {tokenizer.vocab_size:,}"
    return Tokens(about, train, val, tokenizer, hashlib.sha256(content + " ".join(names).encode()).hexdigest())


def _memory_map(path: Path, dtype: np.dtype, about: Any) -> np.ndarray:
    """The ids in a file (N,), read where and when they are wanted. about: what meta.json says of the file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            match about:
                case {"tokens": int(length)} if size == length * dtype.itemsize > 0:
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                case {"tokens": length}:
                    raise DataError(f"{path}: {size} bytes; {META} says {length} tokens of {dtype.itemsize} bytes")
                case _:
                    raise DataError(f"{path}: {META} does not say how many tokens it has")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    if hasattr(content, "madvise"):
        content.madvise(mmap.MADV_RANDOM)  # blocks start anywhere: what follows them on the disk is not wanted
    return np.frombuffer(content, dtype)


# Batches

MOST_TOKENS_ON_GPU = 2**26  # of a split: 256 MiB


class Dataset:
    """Token ids, the first part to train on and the rest to validate on, given out in random blocks.

    ids: integers (N,), an array or a memory map; not copied.
    block_size: T, the tokens in each block.
    train_fraction: how much of the text is for training.

    `train` and `val` are the two parts. Raises `DataError` if one of them is shorter than a block and the token after.
    """

    def __init__(self, ids: Any, block_size: int, train_fraction: float = 0.9) -> None:
        ids = _as_ids(ids)
        if not 0 < train_fraction < 1:
            raise ConfigError(f"train_fraction is {train_fraction}; expected above 0 and below 1")
        self._set_up(*_split(ids, train_fraction), block_size, None)

    @classmethod
    def of_parts(cls, train: Any, val: Any, block_size: int, vocab_size: int | None = None) -> Dataset:
        """The dataset of two arrays of ids. Ids from vocab_size on are refused by the batch that comes upon them."""
        dataset = cls.__new__(cls)
        dataset._set_up(_as_ids(train), _as_ids(val), block_size, vocab_size)
        return dataset

    def _set_up(self, train: np.ndarray, val: np.ndarray, block_size: int, vocab_size: int | None) -> None:
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}; expected at least 1")
        self.train, self.val, self.block_size, self.vocab_size = train, val, block_size, vocab_size
        self._copies: dict[tuple[str, str], Array] = {}  # on GPUs, by split and device
        if min(len(train), len(val)) < block_size + 1:
            raise DataError(
                f"the text is too short: of its {len(train) + len(val)} tokens {len(train)} are to train on and "
                f"{len(val)} to validate on; blocks of {block_size} want at least {block_size + 1} in each"
            )

    def batch(self, split: str, batch_size: int, rng: np.random.Generator, device: str = "cpu") -> tuple[Array, Array]:
        """Random blocks of "train" or "val", and for every token the one that comes after it: two arrays (B, T).

        The blocks start anywhere and may overlap. The same state of `rng` gives the same batch on every device: int64
        on the CPU, int32 on a GPU. All tokens of a split are brought to a GPU once if there are not too many; of a
        batch then only the starts of its blocks are. Nothing waits for a GPU: CuPy copies through pinned memory.
        """
        if split not in ("train", "val"):
            raise ConfigError(f'split is {split!r}; expected "train" or "val"')
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        ids = self.train if split == "train" else self.val
        starts = rng.integers(len(ids) - self.block_size, size=batch_size)
        if device != "cpu" and len(ids) <= MOST_TOKENS_ON_GPU:
            tokens = self._on_gpu(split, ids, device)
            xp = get_array_module(tokens)
            places = as_array(starts, device=device)[:, None] + xp.arange(self.block_size)  # (B, T)
            return tokens[places], tokens[places + 1]
        blocks = sliding_window_view(ids, self.block_size + 1)[starts].astype(np.int64)  # (B, T + 1)
        if self.vocab_size is not None and blocks.max() >= self.vocab_size:
            b, t = np.argwhere(blocks >= self.vocab_size)[0]
            raise self._unknown(split, int(starts[b] + t))
        if device != "cpu":
            blocks = blocks.astype(np.int32)
        ids, targets = (np.ascontiguousarray(part) for part in (blocks[:, :-1], blocks[:, 1:]))
        return as_array(ids, device=device), as_array(targets, device=device)

    def _on_gpu(self, split: str, ids: np.ndarray, device: str) -> Array:
        """All tokens of a split, int32, on a GPU. There nobody looks at single ids, so all are checked before."""
        if (split, device) not in self._copies:
            if self.vocab_size is not None and ids.max() >= self.vocab_size:
                raise self._unknown(split, int(np.argmax(ids >= self.vocab_size)))
            self._copies[split, device] = as_array(np.asarray(ids, np.int32), device=device)
        return self._copies[split, device]

    def _unknown(self, split: str, place: int) -> DataError:
        ids = self.train if split == "train" else self.val
        return DataError(
            f'the id {ids[place]} at position {place} of "{split}" is not in the vocabulary, '
            f"which has {self.vocab_size} tokens"
        )


def _as_ids(ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise DataError(f"expected token ids, integers (N,); got {ids.shape} {ids.dtype}")
    return ids


def _split(ids: np.ndarray, train_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    cut = int(train_fraction * len(ids))
    return ids[:cut], ids[cut:]
