"""Compiling and launching the kernels of the .cu files beside this one.

A kernel is compiled the first time it is used with certain constants (the type of the arrays, the number of channels,
…), for the card at hand; CuPy keeps the result on disk. What the constants name stands as `#define`s before the text
of common.cuh and of the file itself: one text, since CuPy's disk cache does not look into included files.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import address, get_array_module

FOLDER = Path(__file__).parent
SCALARS = {"float32": "SCALAR_FLOAT32", "float16": "SCALAR_FLOAT16", "bfloat16": "SCALAR_BFLOAT16"}
WARP = 32
ACCESS_BYTES = 16  # the widest access to memory that a thread can make

emulate: Any = None  # tests set it: called in place of the card, for NumPy arrays


class Kernel:
    """A function of a .cu file, with constants: `Kernel("layer_norm.cu", "layer_norm_forward", dtype, CHANNELS=768)`.

    Call it with the numbers of blocks and of threads in a block, and the arguments: arrays (or None for a null
    pointer), ints for `int`, floats for `float`, NumPy numbers for other types.
    """

    def __init__(self, file: str, name: str, dtype: Any, **constants: int) -> None:
        self.file, self.name = file, name
        self.constants = ((SCALARS[str(dtype)], 1), *constants.items())

    def __call__(self, blocks: int | Sequence[int], threads: int, *arguments: Any, shared_bytes: int = 0) -> None:
        grid = (blocks,) if isinstance(blocks, int) else tuple(blocks)
        if 0 in grid:
            return
        given = [_argument(a) for a in arguments]
        if emulate is not None:
            emulate(self, grid, threads, given, shared_bytes)
            return
        device = importlib.import_module("cupy").cuda.Device().id
        _function(self.file, self.name, self.constants, shared_bytes, device)(
            grid, (threads,), given, shared_mem=shared_bytes
        )

    @property
    def text(self) -> str:
        """What is compiled."""
        return source(self.file, self.constants)


def _argument(value: Any) -> Any:
    if value is None:
        return np.uintp(0)
    if isinstance(value, int):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value


def source(file: str, constants: Any) -> str:
    """The text of a .cu file behind its constants and common.cuh, with the text of what it includes in place."""
    defines = "".join(f"#define {name} {value}\n" for name, value in dict(constants).items())
    return defines + (FOLDER / "common.cuh").read_text("utf-8") + _text(file)


def _text(file: str) -> str:
    text = (FOLDER / file).read_text("utf-8")
    return re.sub(r'^#include "(\w+\.cuh)"\n', lambda found: _text(found[1]), text, flags=re.MULTILINE)


@functools.cache
def _module(file: str, constants: Any, device: int) -> Any:
    return importlib.import_module("cupy").RawModule(code=source(file, constants), options=("-std=c++17",))


@functools.cache
def _function(file: str, name: str, constants: Any, shared_bytes: int, device: int) -> Any:
    function = _module(file, constants, device).get_function(name)
    if shared_bytes > 48 * 1024:  # more must be asked for
        function.max_dynamic_shared_size_bytes = shared_bytes
    return function


def packed(x: Any) -> Any:
    """x as most kernels read arrays: without gaps, from where a wide access can start. A copy, if x does not lie so."""
    if x is None:
        return None
    x = get_array_module(x).ascontiguousarray(x)
    return x if address(x) % ACCESS_BYTES == 0 else x.copy()


def width(dtype: Any, *lengths: int) -> int:
    """How many neighboring elements a thread reads at once, from rows of these lengths: up to 16 bytes."""
    size = np.dtype(dtype).itemsize
    return next(w for w in (8, 4, 2, 1) if w * size <= ACCESS_BYTES and all(n % w == 0 for n in lengths))


def multiprocessors() -> int:
    """How many multiprocessors the card at hand has; the emulator has 3."""
    return 3 if emulate is not None else _multiprocessors(importlib.import_module("cupy").cuda.Device().id)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(importlib.import_module("cupy").cuda.Device(device).attributes["MultiProcessorCount"])


def compute_capability() -> int:
    """80 for a card of compute capability 8.0: that of the card at hand; the emulator has 80."""
    return 80 if emulate is not None else _compute_capability(importlib.import_module("cupy").cuda.Device().id)


@functools.cache
def _compute_capability(device: int) -> int:
    return int(importlib.import_module("cupy").cuda.Device(device).compute_capability)
