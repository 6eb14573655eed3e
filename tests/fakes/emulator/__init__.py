"""CUDA kernels on the CPU: `emulated()` makes minigrad's CUDA kernels run on NumPy arrays, through emulator.hpp.

The kernel's text is compiled by g++ as C++, with the emulator in front of it. Every array is handed over as a copy
between guard zones, so that a write beyond its ends is found; what the kernel wrote is copied back. What is compiled
lies in a temporary folder, or in the one that FOLDER_VARIABLE names in the environment, which processes can share.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad.kernels.cuda import launch

COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("emulator.hpp")
GUARD, GUARD_BYTE = 256, 0xFF  # NaN in every format, so that reading beyond the ends of an array shows, too

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels for the emulator")
FOLDER_VARIABLE = "MINIGRAD_TESTS_EMULATED"
_temporary = tempfile.TemporaryDirectory(prefix="minigrad-emulated-")
_folder = os.environ.get(FOLDER_VARIABLE) or _temporary.name


@contextlib.contextmanager
def emulated(order: int = 0) -> Iterator[None]:
    """Inside this context launches of CUDA kernels run here. `order` turns the order of the threads around."""
    launch.emulate, before = functools.partial(_run, order), launch.emulate
    try:
        yield
    finally:
        launch.emulate = before


def _compile(target: Path, *arguments: str) -> None:
    """Compile, unless the target is there; other processes see it whole or not at all."""
    if not target.exists():
        own = target.with_name(f"{os.getpid()}-{target.name}")
        options = ["-std=c++17", "-O1", "-fPIC", "-w"]
        built = subprocess.run([COMPILER or "g++", *options, "-o", own, *arguments], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr[:4000]
        own.replace(target)


@functools.cache
def _header() -> Path:
    """The emulator, compiled ahead: reading it takes longer than reading a kernel."""
    header = Path(_folder, HEADER.name)
    if not header.exists():
        shutil.copy(HEADER, header)
    _compile(header.with_name(f"{header.name}.gch"), "-x", "c++-header", str(header))
    return header


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    names = re.findall(r"__global__ (?:__launch_bounds__\(\w+\) )?void (\w+)\(", text)
    launchers = "".join(
        f'extern "C" const char *launch_{name}(const unsigned *grid, const unsigned *block, unsigned shared, '
        f"unsigned order, void **arguments) {{\n"
        f"    return emulator::launch({name}, grid, block, shared, order, arguments);\n}}\n"
        for name in names
    )
    stem = _header().parent / hashlib.sha256(text.encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(f'#include "{HEADER.name}"\n{text}\n{launchers}')
    _compile(stem.with_suffix(".so"), "-shared", str(stem.with_suffix(".cpp")))
    return ctypes.CDLL(f"{stem}.so")


def _run(order: int, kernel: launch.Kernel, grid: Any, threads: int, arguments: list[Any], shared_bytes: int) -> None:
    guarded: list[tuple[np.ndarray, ...]] = []
    values: list[Any] = []
    arguments = [getattr(argument, "_host", argument) for argument in arguments]  # the stand-in's arrays hold NumPy's
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if isinstance(argument, np.ndarray) and argument.dtype.names:  # a struct, by value
            values.append(ctypes.create_string_buffer(argument.tobytes()))
        elif isinstance(argument, np.ndarray):
            followed_by_strides = isinstance(following, np.ndarray) and "row" in (following.dtype.names or ())
            assert argument.flags.c_contiguous or followed_by_strides, f"{kernel.name}: an array that is not contiguous"
            guarded.append((argument, *_guarded(argument)))
            values.append(ctypes.c_void_p(guarded[-1][2].ctypes.data))
        elif isinstance(argument, np.uintp):
            values.append(ctypes.c_void_p(int(argument)))
        else:
            values.append(np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item()))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    entry = getattr(_library(kernel.text), f"launch_{kernel.name}")
    entry.restype = ctypes.c_char_p
    blocks = (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid)))
    error = entry(blocks, (ctypes.c_uint * 3)(threads, 1, 1), shared_bytes, order, pointers)
    assert not error, f"{kernel.name}: {error.decode()}"
    for array, memory, copy, copy_bytes in guarded:
        if array.flags.writeable:
            array[...] = copy
        copy_bytes[...] = GUARD_BYTE
        assert (memory == GUARD_BYTE).all(), f"{kernel.name} wrote outside of an array {array.shape}"


def _guarded(array: np.ndarray) -> tuple[np.ndarray, ...]:
    """Memory with a copy of the array in it, this copy, of the same strides, and its bytes; the rest is GUARD_BYTE."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.full(high - low + 2 * GUARD + 32, GUARD_BYTE, np.uint8)
    memory = memory[-memory.ctypes.data % 16 :]
    start = GUARD + low % 16 + array.ctypes.data - low  # aligned as the array is
    copy = np.ndarray(array.shape, array.dtype, memory, start, array.strides)
    copy_bytes = np.ndarray((*array.shape, array.itemsize), np.uint8, memory, start, (*array.strides, 1))
    copy[...] = array
    return memory, copy, copy_bytes
