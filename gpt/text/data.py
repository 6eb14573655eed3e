"""Training data: a text file, Tiny Shakespeare, Python's language reference, or token files; and batches of it."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.backend import Array, as_array, get_array_module
from minigrad.serialization import unsealed

from ..download import cache_directory, download
from ..errors import ConfigError, DataError, TokenError, reason
from .tokenizer import CharTokenizer, Tokenizer, from_state

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_SIZE = 1_115_394  # bytes


CHUNK = 1 << 20  # bytes read at a time
LIMIT = 1 << 24  # characters without a safe place to cut; beyond it they are cut anywhere


# Texts


@dataclasses.dataclass(frozen=True)
class Text:
    """A text and its name.

    content: UTF-8. It is decoded in chunks: one emoji makes a string of four bytes per character.
    """

    name: str
    content: bytes

    def chunks(self) -> Iterator[str]:
        """The text in the chunks of `read_chunks`. Raises `DataError` if it is not UTF-8."""
        return _chunks(io.BytesIO(self.content), self.name, lambda count: None)

    @property
    def text(self) -> str:
        return "".join(self.chunks())

    @property
    def data_id(self) -> str:
        """The SHA-256, which identifies the text."""
        return hashlib.sha256(self.content).hexdigest()

    def encode(self, tokenizer: Tokenizer) -> np.ndarray:
        """The ids of the text (T,). Raises `TokenError` as the tokenizer does."""
        ids, dtype, start = bytearray(), np.dtype(np.uint8), 0
        for chunk in self.chunks():
            try:
                more = tokenizer.encode(chunk)
            except TokenError as error:
                raise TokenError(f"{self.name}: from character {start} on: {error}" if start else str(error)) from error
            ids += more.tobytes()
            dtype = more.dtype
            start += len(chunk)
        return np.frombuffer(ids, dtype)


def load_text(path: str | os.PathLike[str] | None = None, say: Callable[[str], object] = print) -> Text:
    """Read the text to train on: the file at `path`, or Tiny Shakespeare if there is none.

    Tiny Shakespeare is downloaded once and kept in `cache_directory()`. Its SHA-256 is checked whenever it is read,
    and a damaged copy is downloaded again. If the download fails, `say` is told why and where to put the file, and the
    text is `language_reference()`.
    """
    if path is not None:
        return Text(str(path), _read(path))
    cached = cache_directory() / "tinyshakespeare.txt"
    try:
        if not _is_intact(cached, TINY_SHAKESPEARE_SHA256):
            say(f"Downloading Tiny Shakespeare to {cached}")
            download(TINY_SHAKESPEARE, TINY_SHAKESPEARE_SHA256, cached, size=TINY_SHAKESPEARE_SIZE)
        return Text("Tiny Shakespeare", _read(cached))
    except DataError as error:
        say(
            f"Tiny Shakespeare could not be downloaded: {error}\n"
            f"Using Python's language reference instead. To use Tiny Shakespeare, save {TINY_SHAKESPEARE}\n"
            f"as {cached}, or name a text file of your own."
        )
        return Text("Python's language reference", language_reference().encode())


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with line endings unchanged and without a byte order mark.

    Raises `DataError` if it cannot be read or is empty.
    """
    return Text(str(path), _read(path)).text


def _read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a text file, without a byte order mark."""
    if not os.fspath(path):
        raise DataError("the file name is empty; expected the name of a text file")
    try:
        content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not content:
        raise DataError(f"{path}: the file is empty")
    return content


def _unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file")
    what = "is a folder; expected a text file" if os.path.isdir(path) else f"cannot be read ({reason(error)})"
    return DataError(f"{path}: {what}")


def read_chunks(path: str | os.PathLike[str], progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks. Encoding the chunks one by one gives the ids of the whole text.

    A chunk ends before a space or line break that follows another character: GPT-2's tokenizer always begins a new
    piece there. If there is no such place within LIMIT characters, the chunk ends anywhere, and the ids around the cut
    may differ; they still decode to the same text. A byte order mark at the start of the file is left out.

    progress: called with the number of bytes after each read.

    Raises `DataError` if the file cannot be read or is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            yield from _chunks(file, str(path), progress)
    except OSError as error:
        raise _unreadable(path, error) from error


def _chunks(file: BinaryIO, name: str, progress: Callable[[int], object]) -> Iterator[str]:
    text, rest, position = "", b"", 0  # text not yet yielded; bytes of an incomplete character; their place in the file
    try:
        while True:
            content = file.read(CHUNK)
            progress(len(content))
            more, used = codecs.utf_8_decode(rest + content, "strict", not content)
            more = more if position else more.removeprefix("\ufeff")
            text, rest, position = text + more, (rest + content)[used:], position + used
            if not content:
                break
            cut = _last_cut(text) or (len(text) if len(text) >= LIMIT else 0)
            if cut:
                yield text[:cut]
                text = text[cut:]
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], position + error.start
        raise DataError(f"{name}: not UTF-8 text (byte {byte:#04x} at {place})") from error
    if text:
        yield text


def _last_cut(text: str) -> int:
    """The index of the last space or line break that follows another character; 0 if there is none."""
    found = re.search(r"[ \n](?=\S)", text[::-1])
    return len(text) - found.end() if found else 0


def language_reference() -> str:
    """Real text that needs no network: the parts of the language reference that Python's `help` shows.

    It is about half a million characters, mostly English, and differs slightly between versions of Python.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:  # the minimal Python of some systems leaves it out
        raise DataError("this Python has no language reference (pydoc_data); name a text file") from error
    return "\n".join(topics[name] for name in sorted(topics))


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


# Token ids

TRAIN, VAL, META = "train.bin", "val.bin", "meta.json"


class Tokens(NamedTuple):
    """Token ids for training and validation, both (N,), and the tokenizer that made them."""

    about: str  # a description: the name and the size
    train: np.ndarray | StoredIds
    val: np.ndarray | StoredIds
    tokenizer: Tokenizer
    data_id: str  # identifies the data


def load_data(
    path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    say: Callable[[str], object] = print,
    check: Callable[[str], object] = lambda data_id: None,
) -> Tokens:
    """Load the training data: token files if `path` is a folder or a .bin file, otherwise a text; see `load_text`.

    tokenizer: the model's. Without one, the tokens of a text are its distinct characters.
    check: called with the data's id before the tokenizer is used; may raise.

    The last tenth of a text is for validation. Raises `DataError` for token files of another tokenizer.
    """
    if path is not None and (os.path.isdir(path) or Path(path).suffix == ".bin"):
        tokens = load_tokens(path)
        check(tokens.data_id)
        if tokenizer is not None and tokenizer.state() != tokens.tokenizer.state():
            raise DataError(f"{path}: these tokens were made with another tokenizer than the model's")
        return tokens
    text = load_text(path, say)
    check(text.data_id)
    size = 0
    characters: set[str] = set()
    for chunk in text.chunks():
        size += len(chunk)
        characters.update(chunk)
    tokenizer = tokenizer or CharTokenizer("".join(sorted(characters)))
    about = f"{text.name}: {size:,} characters, {len(characters)} distinct"
    return Tokens(about, *_split(text.encode(tokenizer), 0.9), tokenizer, text.data_id)


def load_tokens(path: str | os.PathLike[str]) -> Tokens:
    """Open the token files that examples/prepare_data.py wrote to a folder. The ids stay on disk, see `StoredIds`.

    train.bin and val.bin contain only ids, as little-endian uint16 or uint32. meta.json has the dtype, the tokenizer,
    and the number of ids and the SHA-256 of each file, which are checked. If `path` is one .bin file of the folder, the
    last tenth of that file is for validation.

    Raises `DataError` if a file is missing, is damaged, or does not match meta.json.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    folder, names = (path, [TRAIN, VAL]) if path.is_dir() else (path.parent, [path.name])
    try:
        content = (folder / META).read_bytes()
        match unsealed(content):
            case {"tokenizer": state, "dtype": "uint16" | "uint32" as dtype, "files": dict(files)}:
                tokenizer = from_state(state)
            case _:
                raise DataError("not written by examples/prepare_data.py")
    except OSError as error:
        raise DataError(
            f"{folder / META}: cannot be read ({reason(error)}); expected a folder made by examples/prepare_data.py"
        ) from error
    except ValueError as error:
        raise DataError(f"{folder / META}: {error}") from error
    parts = [_open_ids(folder / name, np.dtype(dtype).newbyteorder("<"), files.get(name)) for name in names]
    train, val = parts if len(parts) == 2 else _split(parts[0], 0.9)
    about = f"{path}: {len(train) + len(val):,} tokens, vocabulary of {tokenizer.vocab_size:,}"
    return Tokens(about, train, val, tokenizer, hashlib.sha256(content + " ".join(names).encode()).hexdigest())


class _OpenFile:
    """A file that is read at any position, and closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, position: int, buffer: memoryview) -> int:
        """Read from this position on until the buffer is full or the file ends. Returns the number of bytes read."""
        done = 0
        try:
            while done < len(buffer) and (n := self._read_some(position + done, buffer[done:])):
                done += n
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({reason(error)})") from error
        return done

    def _read_some(self, position: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):  # does not move the position, which forked processes share
            return os.preadv(self.descriptor, [buffer], position)
        os.lseek(self.descriptor, position, os.SEEK_SET)
        content = os.read(self.descriptor, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def sha256(self) -> str:
        digest, buffer, position = hashlib.sha256(), memoryview(bytearray(1 << 20)), 0
        while n := self.read(position, buffer):
            digest.update(buffer[:n])
            position += n
        return digest.hexdigest()


class StoredIds:
    """Ids in an open file, (N,), which are read when they are used: with `blocks`, or as an array with `numpy.asarray`.

    Slices are `StoredIds` too. They are read with system calls, not through a memory map: if the file has become
    shorter, `DataError` is raised, where a map would end the process.
    """

    def __init__(self, file: _OpenFile, dtype: np.dtype, start: int, length: int) -> None:
        self.file, self.dtype, self.start, self.length = file, dtype, start, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: Any) -> Any:
        """A slice without a step as `StoredIds`; anything else as from an array of all ids."""
        if isinstance(part, slice) and part.step is None:
            start, stop, _ = part.indices(self.length)
            return StoredIds(self.file, self.dtype, self.start + start, max(0, stop - start))
        return np.asarray(self)[part]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        ids = np.empty(self.length, self.dtype)
        self._read(0, ids)
        return ids if dtype is None else ids.astype(dtype)

    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The ids from each start on: (B, length)."""
        ids = np.empty((len(starts), length), self.dtype)
        for start, row in zip(starts.tolist(), ids, strict=True):
            self._read(start, row)
        return ids

    def _read(self, start: int, ids: np.ndarray) -> None:
        position = (self.start + start) * self.dtype.itemsize
        n = self.file.read(position, ids.view(np.uint8).data)
        if n < ids.nbytes:
            raise DataError(f"{self.file.path}: has become shorter while it was in use")


def _open_ids(path: Path, dtype: np.dtype, about: Any) -> StoredIds:
    """The ids in a file (N,), compared with its entry in meta.json."""
    try:
        file = _OpenFile(path)
        size = os.fstat(file.descriptor).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    match about:
        case {"tokens": int(length)} if size == length * dtype.itemsize > 0:
            pass
        case {"tokens": length}:
            raise DataError(f"{path}: {size} bytes; {META} says {length!s:.100} tokens of {dtype.itemsize} bytes")
        case _:
            raise DataError(f"{path}: {META} does not say how many tokens it has")
    if "sha256" in about and about["sha256"] != (digest := file.sha256()):
        raise DataError(f"{path}: damaged: its SHA-256 is {digest}; {META} says {about['sha256']!s:.100}")
    return StoredIds(file, dtype, 0, length)


# Batches

MOST_TOKENS_ON_GPU = 2**26  # in one split: 256 MiB


class Dataset:
    """Token ids, the first part for training and the rest for validation, and random batches of blocks of them.

    ids: integers (N,), an array, a memory map or `StoredIds`; not copied.
    block_size: T, the number of tokens in each block.
    train_fraction: the part of the ids that is for training.

    `train` and `val` are the two parts. Raises `DataError` if one of them has fewer than T + 1 ids.
    """

    def __init__(self, ids: Any, block_size: int, train_fraction: float = 0.9) -> None:
        ids = _as_ids(ids)
        if not 0 < train_fraction < 1:
            raise ConfigError(f"train_fraction is {train_fraction}; expected a number above 0 and below 1")
        self._set_up(*_split(ids, train_fraction), block_size, None)

    @classmethod
    def of_parts(cls, train: Any, val: Any, block_size: int, vocab_size: int | None = None) -> Dataset:
        """A dataset from two arrays of ids. `batch` raises `DataError` when it reads an id of vocab_size or more."""
        dataset = cls.__new__(cls)
        dataset._set_up(_as_ids(train), _as_ids(val), block_size, vocab_size)
        return dataset

    def _set_up(self, train: Any, val: Any, block_size: int, vocab_size: int | None) -> None:
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}; expected at least 1")
        self.train, self.val, self.block_size, self.vocab_size = train, val, block_size, vocab_size
        self._copies: dict[tuple[str, str], Array] = {}  # on GPUs, by split and device
        if min(len(train), len(val)) < block_size + 1:
            raise DataError(
                f"the text is too short: {len(train)} of its {len(train) + len(val)} tokens are for training and "
                f"{len(val)} for validation; blocks of {block_size} need at least {block_size + 1} in each part"
            )

    def batch(self, split: str, batch_size: int, rng: np.random.Generator, device: str = "cpu") -> tuple[Array, Array]:
        """Random blocks of "train" or "val", and the token that follows each of their tokens: two arrays (B, T).

        The blocks start anywhere and may overlap. The same state of `rng` gives the same batch on every device: int64
        on the CPU, int32 on a GPU. A split of at most MOST_TOKENS_ON_GPU tokens is copied to a GPU once; then each
        batch copies only the starts of its blocks. Nothing waits for a GPU: CuPy copies through pinned memory.
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
        if isinstance(ids, StoredIds):
            blocks = ids.blocks(starts, self.block_size + 1)
        else:
            blocks = sliding_window_view(ids, self.block_size + 1)[starts]
        blocks = blocks.astype(np.int64)  # (B, T + 1)
        if self.vocab_size is not None and blocks.max() >= self.vocab_size:
            b, t = np.argwhere(blocks >= self.vocab_size)[0]
            raise self._unknown(split, int(starts[b] + t))
        if device != "cpu":
            blocks = blocks.astype(np.int32)
        ids, targets = (np.ascontiguousarray(part) for part in (blocks[:, :-1], blocks[:, 1:]))
        return as_array(ids, device=device), as_array(targets, device=device)

    def _on_gpu(self, split: str, ids: Any, device: str) -> Array:
        """All tokens of a split, int32, on a GPU. All ids are checked first, as batches are not checked there."""
        if (split, device) not in self._copies:
            ids = np.asarray(ids)
            if self.vocab_size is not None and ids.max() >= self.vocab_size:
                raise self._unknown(split, int(np.argmax(ids >= self.vocab_size)))
            self._copies[split, device] = as_array(np.asarray(ids, np.int32), device=device)
        return self._copies[split, device]

    def _unknown(self, split: str, place: int) -> DataError:
        ids = self.train if split == "train" else self.val
        return DataError(
            f'the id {ids[place : place + 1][0]} at position {place} of "{split}" is not in the vocabulary, '
            f"which has {self.vocab_size} tokens"
        )


def _as_ids(ids: Any) -> Any:
    if isinstance(ids, StoredIds):
        return ids
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise DataError(f"expected token ids, integers (N,), got {ids.shape} {ids.dtype}")
    return ids


def _split(ids: Any, train_fraction: float) -> tuple[Any, Any]:
    cut = int(train_fraction * len(ids))
    return ids[:cut], ids[cut:]
