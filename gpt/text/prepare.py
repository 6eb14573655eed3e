"""Turn text files into token files for `data.load_tokens`, in parallel, without loading whole files into memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minigrad.serialization import naming, remove_unfinished, replace, sealed, write_atomically

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
    for name in (TRAIN, VAL, META):
        remove_unfinished(out / name)  # of a killed process
    with _unfinished(out / TRAIN) as train, _unfinished(out / VAL) as val:
        with naming(out / TRAIN):
            for ids in in_order(_encoder(tokenizer), _documents(files, progress), workers):
                train.file.write(ids.astype(dtype).tobytes())
            total = train.file.tell() // dtype.itemsize
            cut = int((1 - val_fraction) * total)
            if not 0 < cut < total:
                raise DataError(f"{total} tokens are too few to keep a fraction of {val_fraction} for validation")
            train.file.seek(cut * dtype.itemsize)
        with naming(out / VAL):
            shutil.copyfileobj(train.file, val.file)
        train.file.truncate(cut * dtype.itemsize)
        val_sha256, train_sha256 = val.flush(), train.flush()
        meta = {
            "tokenizer": tokenizer.state(),
            "dtype": dtype.name,
            "files": {
                TRAIN: {"tokens": cut, "sha256": train_sha256},
                VAL: {"tokens": total - cut, "sha256": val_sha256},
            },
        }
        (out / META).unlink(missing_ok=True)  # so that it never describes other files
        train.finish()
        val.finish()
        write_atomically(out / META, sealed(meta))
    return meta


class _Unfinished:
    """A file that gets its name when it is finished.

    On Linux it has no name until then, so that nothing is left of it if the process is killed. Where that is impossible
    it has a temporary name, which `remove_unfinished` knows.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            number, self.named = os.open(path.parent, os.O_RDWR | os.O_TMPFILE, 0o666), False
        except (AttributeError, OSError):
            number, self.named = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        self.file = os.fdopen(number, "wb+")

    def flush(self) -> str:
        """Write everything to the disk. Returns the SHA-256."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.seek(0)
            return hashlib.file_digest(self.file, "sha256").hexdigest()

    def finish(self) -> None:
        if not self.named:
            with open(os.devnull) as anything:  # os.link follows the link to the file only if a descriptor is given
                link = f"/proc/self/fd/{self.file.fileno()}"
                os.link(link, self.temporary, src_dir_fd=anything.fileno(), follow_symlinks=True)
        replace(self.temporary, self.path)


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[_Unfinished]:
    """A new file, which is closed at the end of this context, and removed if it is not finished by then."""
    new = _Unfinished(path)
    try:
        with new.file:
            yield new
    finally:
        new.temporary.unlink(missing_ok=True)


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
