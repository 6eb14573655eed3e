"""Saving and loading tensors by name in the safetensors format, which holds plain numbers and no code."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .tensor import Tensor


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside this context, an error that names no file, such as that of a full disk, gets the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: first a temporary file beside it, which is then renamed.

    A file that is replaced keeps its mode. For a symbolic link, the file that it points to is written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path), open(temporary, "xb") as file:  # its mode follows the umask, as for any new file
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # named by write_atomically
        left.unlink(missing_ok=True)


def save(state: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (or arrays) by name to a safetensors file, with optional text as metadata.

    Raises TypeError for anything but tensors by name, and ValueError for a tensor named "__metadata__", the name under
    which the format keeps that text.
    """
    if not isinstance(state, Mapping):
        hint = "; write save(model.state_dict(), path)" if hasattr(state, "state_dict") else ""
        raise TypeError(f"save: expected a dict of tensors by name, got {type(state).__name__}{hint}")
    if "__metadata__" in state:
        raise ValueError('save: no tensor can be named "__metadata__": the format keeps its metadata under this name')
    arrays = {
        name: np.ascontiguousarray(Tensor(value).numpy()).reshape(np.shape(value)) for name, value in state.items()
    }
    write_atomically(path, safetensors.numpy.save(arrays, dict(metadata) if metadata else None))


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises FileNotFoundError if there is no such file, and ValueError if it is not a complete safetensors file, or if it
    has numbers of a dtype that tensors do not hold, such as float8.
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
            names = list(file.keys())
            return {name: _read(path, file, name) for name in names}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def _read(path: str | os.PathLike[str], file: Any, name: str) -> Tensor:
    try:
        return Tensor(file.get_tensor(name))
    except (AttributeError, TypeError) as error:  # a dtype that NumPy or tensors do not have
        stored = file.get_slice(name).get_dtype()
        raise ValueError(f"{path}: {name} is stored as {stored}, which cannot be read ({error})") from error
