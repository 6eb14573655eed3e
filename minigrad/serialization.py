"""Saving and loading tensors by name in the safetensors format, which holds plain numbers and no code.

A file contains its SHA-256, which is checked when it is read.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from .tensor import Tensor

PIECE = 1 << 20  # bytes that are read and hashed at a time


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside this context, an error that names no file, such as that of a full disk, gets the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Inside this context, a new binary file that replaces `path` at the end: it is written whole or not at all.

    It is a temporary file beside `path` until it is renamed. A file that is replaced keeps its mode. For a symbolic
    link, the file that it points to is written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path), open(temporary, "xb") as file:  # its mode follows the umask, as for any new file
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all; see `writing`."""
    with writing(path) as file:
        file.write(content)


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file in its folder, and flush the folder, so that the new name is there after a power failure."""
    os.replace(source, target)
    with contextlib.suppress(OSError):  # Windows cannot open a folder, and some file systems cannot flush one
        folder = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of processes that were killed while they wrote `path`."""
    path = Path(os.path.realpath(path))
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # named by writing
        left.unlink(missing_ok=True)


# Checksums: a file that we write contains the SHA-256 of itself, with this digest's 64 digits replaced by zeros. The
# digest has a key and a prefix, both by our name, so that damage to one of them does not make it look like a file
# without a digest.

KEY, PREFIX, BLANK = "minigrad.sha256", "minigrad:", "0" * 64
DIGEST = re.compile(rb'"minigrad\.sha256": ?"minigrad:([0-9a-f]{64})"')


class Digest:
    """The SHA-256 of a file that begins with `head`, and the one that it contains.

    stored: the digits that the file contains, from position `start` to `end`; None if it contains no digest.
    hash: updated with the rest of the file by the caller.

    Raises ValueError if a digest was there and is damaged.
    """

    def __init__(self, head: bytes) -> None:
        self.hash, self.stored, self.start, self.end = hashlib.sha256(), None, 0, 0
        if match := DIGEST.search(head):
            self.stored, (self.start, self.end) = match[1].decode(), match.span(1)
            head = BLANK.encode().join((head[: self.start], head[self.end :]))
        elif b'"minigrad.sha256"' in head or b'"minigrad:' in head:
            raise ValueError("damaged: its SHA-256 is incomplete")
        self.hash.update(head)

    def check(self) -> None:
        """Raise ValueError if the file contains another digest than it has."""
        if self.stored not in (None, self.hash.hexdigest()):
            raise ValueError(f"damaged: its SHA-256 is {self.hash.hexdigest()}, expected {self.stored}")


def sealed(content: Mapping[str, Any]) -> bytes:
    """A JSON object with a digest of itself, for `unsealed`."""
    text = json.dumps({**content, KEY: PREFIX + BLANK}).encode()
    digest = Digest(text)
    return digest.hash.hexdigest().encode().join((text[: digest.start], text[digest.end :]))


def unsealed(text: bytes) -> Any:
    """The content of a JSON file, without its digest. Raises ValueError if it is not JSON, or has another digest."""
    Digest(text).check()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if isinstance(content, dict):
        content.pop(KEY, None)
    return content


# Tensors

MOST_HEADER = 100_000_000  # bytes that the format allows
DTYPES = {  # their names in NumPy and in the format
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL"},
}


def save(state: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (or arrays) by name to a safetensors file, with optional text as metadata.

    The file contains its SHA-256, which `load` checks. Tensors are written one by one, so memory holds no second copy
    of all of them. Raises TypeError for anything but tensors by name, and ValueError for a tensor named "__metadata__",
    the name under which the format keeps the text, for metadata that is not text, for a dtype that the format does not
    have, and for more names and text than the format allows, 100 MB.
    """
    if not isinstance(state, Mapping):
        hint = "; write save(model.state_dict(), path)" if hasattr(state, "state_dict") else ""
        raise TypeError(f"save: expected a dict of tensors by name, got {type(state).__name__}{hint}")
    if "__metadata__" in state:
        raise ValueError('save: no tensor can be named "__metadata__": the format keeps its metadata under this name')
    if not all(isinstance(text, str) for item in (metadata or {}).items() for text in item):
        raise ValueError(f"save: metadata is {str(metadata):.100}; expected text by names")
    tensors = [(name, Tensor(value)) for name, value in state.items()]
    tensors.sort(key=lambda item: -item[1].dtype.itemsize)  # so that every element is aligned
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), KEY: PREFIX + BLANK}}
    offset = 0
    for name, tensor in tensors:
        if tensor.dtype.name not in DTYPES:
            raise ValueError(f"save: {name} is {tensor.dtype}; expected {', '.join(DTYPES)}")
        end = offset + tensor.size * tensor.dtype.itemsize
        header[name] = {"dtype": DTYPES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"save: the names and the metadata take {len(text):,} bytes; expected at most {MOST_HEADER:,}")
    head = len(text).to_bytes(8, "little") + text
    digest = Digest(head)
    with writing(path) as file:
        file.write(head)
        for _, tensor in tensors:
            array = tensor.numpy()
            content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            digest.hash.update(content)
            file.write(content)
        file.seek(digest.start)
        file.write(digest.hash.hexdigest().encode())


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises FileNotFoundError if there is no such file, and ValueError if it is not a complete safetensors file, if its
    content does not have the SHA-256 that `save` wrote into it, or if it has numbers of a dtype that tensors do not
    hold, such as float8. Files of other programs have no SHA-256, and are read without this check.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path}: is not a file")
    try:
        open(path, "rb").close()  # safetensors says "No such file" of every file that it cannot open
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            check_digest(path)
            names, metadata = list(file.keys()), file.metadata() or {}
            metadata.pop(KEY, None)
            return {name: _read(path, file, name) for name in names}, metadata
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def check_digest(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a safetensors file contains a SHA-256 and has another one."""
    with open(path, "rb") as file:
        size = file.read(8)
        try:
            digest = Digest(size + file.read(int.from_bytes(size, "little")))
            buffer = memoryview(bytearray(PIECE))
            while digest.stored is not None and (n := file.readinto(buffer)):
                digest.hash.update(buffer[:n])
            digest.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _read(path: str | os.PathLike[str], file: Any, name: str) -> Tensor:
    try:
        return Tensor(file.get_tensor(name))
    except (AttributeError, TypeError) as error:  # a dtype that NumPy or tensors do not have
        stored = file.get_slice(name).get_dtype()
        raise ValueError(f"{path}: {name} is stored as {stored}, which cannot be read ({error})") from error
    except ValueError as error:  # a shape that NumPy does not have: without elements, but with a huge dimension
        shape = file.get_slice(name).get_shape()
        raise ValueError(f"{path}: {name} has shape {shape}, which cannot be read ({error})") from error
