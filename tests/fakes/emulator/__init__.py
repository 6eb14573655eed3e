"""An emulator of CUDA: inside `emulated()`, minigrad's CUDA kernels run on the CPU, on NumPy arrays.

The text of a kernel is compiled by g++ as C++, with emulator.hpp in front of it. It is stricter than a card: a barrier
that some thread never reaches and a wide access to an address that is not aligned are errors; running the threads in
another order shows races; every array is handed over as a copy between guard zones, so that a write beyond its ends is
found, and what the kernel wrote is copied back. It says nothing of speed, and little of how a card rounds.
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


@contextlib.contextmanager
def emulated(order: int = 0) -> Iterator[None]:
    """Inside this context the emulator runs CUDA kernels. With `order` 1 the threads run in the opposite order."""
    launch.emulate, before = functools.partial(_run, order), launch.emulate
    try:
        yield
    finally:
        launch.emulate = before


@contextlib.contextmanager
def noting_launches() -> Iterator[list[str]]:
    """Inside this context, inside of `emulated()`, the names of the kernels that run are added to the list."""
    names: list[str] = []
    before = launch.emulate

    def note(kernel: launch.Kernel, *arguments: Any) -> None:
        names.append(kernel.name)
        before(kernel, *arguments)

    launch.emulate = note
    try:
        yield names
    finally:
        launch.emulate = before


@functools.cache
def _folder() -> Path:
    """Where compiled kernels are kept from run to run, beside what Python compiles, with the header compiled ahead."""
    version = subprocess.run([COMPILER or "g++", "--version"], capture_output=True, text=True).stdout
    folder = Path(__file__).with_name("__pycache__") / _digest(version + HEADER.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{HEADER.name}.gch").exists():
        shutil.copy(HEADER, folder)
        _compile(folder / f"{HEADER.name}.gch", "-x", "c++-header", str(HEADER))
    return folder


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compile(target: Path, *arguments: str) -> None:
    """The target appears when it is complete: other processes may need it, or make it, at the same time."""
    part = target.with_suffix(f".{os.getpid()}{target.suffix}")
    options = ["-std=c++17", "-O1", "-fPIC", "-w"]
    built = subprocess.run([COMPILER or "g++", *options, "-o", part, *arguments], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:4000]
    part.replace(target)


@functools.cache
def library(text: str) -> ctypes.CDLL:
    """The compiled text of kernels, with a function `launch_NAME` for each."""
    names = re.findall(r"__global__ (?:__launch_bounds__\(\w+\) )?void (\w+)\(", text)
    launchers = "".join(
        f'extern "C" const char *launch_{name}(const unsigned *grid, const unsigned *block, unsigned shared, '
        f"unsigned order, void **arguments) {{\n"
        f"    return emulator::launch({name}, grid, block, shared, order, arguments);\n}}\n"
        for name in names
    )
    source = f'#include "{HEADER.name}"\n{text}\n{launchers}'
    target = _folder() / f"{_digest(source)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            code = Path(scratch, "kernel.cpp")
            code.write_text(source, "utf-8")
            _compile(target, "-shared", f"-I{_folder()}", str(code))
    return ctypes.CDLL(str(target))


def _run(order: int, kernel: launch.Kernel, grid: Any, threads: int, arguments: list[Any], shared_bytes: int) -> None:
    guarded: list[tuple[np.ndarray, ...]] = []
    values: list[Any] = []
    arguments = [getattr(argument, "_host", argument) for argument in arguments]  # the fake CuPy's arrays hold NumPy's
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
    entry = getattr(library(kernel.text), f"launch_{kernel.name}")
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
