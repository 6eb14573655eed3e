"""Turn text files into token files for `data.load_tokens`, in parallel, without loading whole files into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minigrad.serialization import naming, write_atomically

from ..errors import ConfigError, DataError, TokenError, reason
from .data import META, TRAIN, VAL, read_chunks
from .tokenizer import END_OF_TEXT, Tokenizer

Item = TypeVar("Item")
Result = TypeVar("Result")


def text_files(paths: Iterable[str | os.PathLike[str]], leave_out: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """The given files, and all files below the given folders, sorted within each folder.

    Below folders, files and folders whose names begin with a dot are skipped, and so are the files in `leave_out`.

    Raises `DataError` if a file is missing or empty, or if a folder has no files.
    """
    files: list[Path] = []
    others = {Path(path).resolve() for path in leave_out}
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            folder = path.resolve()
            below = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
            texts = (file for file in sorted(below) if folder / file not in others)
            found = [path / file for file in texts if not any(part.startswith(".") for part in file.parts)]
            if not found:
                raise DataError(f"{path}: there are no files in this folder")
        files += found
    for file in files:
        try:
            size = file.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{file}: there is no such file") from error
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({reason(error)})") from error
        if not file.is_file():
            raise DataError(f"{file}: is not a file")
        if not size:
            raise DataError(f"{file}: the file is empty")
    return files


def check_options(val_fraction: float, workers: int) -> None:
    """Raise `ConfigError` for bad values."""
    if not 0 < val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}; expected a number above 0 and below 1")
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1")


def prepare(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    out: str | os.PathLike[str],
    val_fraction: float = 0.1,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Write train.bin, val.bin and meta.json to the folder `out`, and return the content of meta.json.

    The ids of all files are concatenated, with the end-of-text token between files if the tokenizer has one. The last
    `val_fraction` of the ids go to val.bin. `workers` threads encode the chunks of `read_chunks` in parallel, as
    tiktoken releases the GIL. Existing files in `out` are replaced only after everything has succeeded.
    """
    check_options(val_fraction, workers)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with tempfile.TemporaryDirectory(dir=out, prefix=".prepare.") as folder:
        train, val = Path(folder, TRAIN), Path(folder, VAL)
        with naming(out / TRAIN), open(train, "wb+") as file:
            for ids in in_order(_encoder(tokenizer), _documents(files, progress), workers):
                file.write(ids.astype(dtype).tobytes())
            total = file.tell() // dtype.itemsize
            cut = int((1 - val_fraction) * total)
            if not 0 < cut < total:
                raise DataError(f"{total} tokens are too few to keep a fraction of {val_fraction} for validation")
            file.seek(cut * dtype.itemsize)
            with naming(out / VAL), open(val, "wb") as rest:
                shutil.copyfileobj(file, rest)
                rest.flush()
                os.fsync(rest.fileno())
            file.truncate(cut * dtype.itemsize)
            os.fsync(file.fileno())
        meta = {
            "tokenizer": tokenizer.state(),
            "dtype": dtype.name,
            "files": {
                path.name: {"tokens": path.stat().st_size // dtype.itemsize, "sha256": _sha256(path)}
                for path in (train, val)
            },
        }
        (out / META).unlink(missing_ok=True)  # so that it never describes other files
        os.replace(train, out / TRAIN)
        os.replace(val, out / VAL)
        write_atomically(out / META, json.dumps(meta).encode())
    return meta


def _documents(files: Sequence[Path], progress: Callable[[int], object]) -> Iterator[tuple[Path, int, str, bool]]:
    """Each chunk with its file, its position in the file, and whether it begins a file other than the first."""
    for i, path in enumerate(files):
        start = 0
        for chunk in read_chunks(path, progress):
            yield path, start, chunk, i > 0 and start == 0
            start += len(chunk)


def _encoder(tokenizer: Tokenizer) -> Callable[[tuple[Path, int, str, bool]], np.ndarray]:
    """A function that turns an item of `_documents` into ids."""
    mark = tokenizer.special_tokens.get(END_OF_TEXT)

    def encode(item: tuple[Path, int, str, bool]) -> np.ndarray:
        path, start, chunk, is_next = item
        try:
            ids = tokenizer.encode(chunk)
        except TokenError as error:
            raise DataError(f"{path}: from character {start} on: {error}") from error
        return ids if mark is None or not is_next else np.append(np.array([mark], ids.dtype), ids)

    return encode


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """map(function, items) on several threads, at most two items per thread ahead."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
