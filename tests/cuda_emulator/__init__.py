"""CUDA kernels on the CPU: `emulated()` makes minigrad's CUDA kernels run on NumPy arrays, through emulator.hpp.

The kernel's text is compiled by g++ as C++, with the emulator in front of it. Every array is handed over as a copy
between guard zones, so that a write beyond its ends is found; what the kernel wrote is copied back.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
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
GUARD, GUARD_BYTE = 256, 0xA5

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels for the emulator")
_folder = tempfile.TemporaryDirectory(prefix="minigrad-emulated-")


@contextlib.contextmanager
def emulated(order: int = 0) -> Iterator[None]:
    """Inside this context launches of CUDA kernels run here. `order` turns the order of the threads around."""
    launch.emulate, before = functools.partial(_run, order), launch.emulate
    try:
        yield
    finally:
        launch.emulate = before


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    names = re.findall(r"__global__ void (\w+)\(", text)
    launchers = "".join(
        f'extern "C" const char *launch_{name}(const unsigned *grid, const unsigned *block, unsigned shared, '
        f"unsigned order, void **arguments) {{ return emulator::launch({name}, grid, block, shared, order, arguments); }}\n"
        for name in names
    )
    stem = Path(_folder.name) / hashlib.sha256(text.encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(f'#include "{HEADER}"\n{text}\n{launchers}')
    built = subprocess.run(
        [COMPILER or "g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-o", f"{stem}.so", f"{stem}.cpp"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[:4000]
    return ctypes.CDLL(f"{stem}.so")


def _run(order: int, kernel: launch.Kernel, grid: Any, threads: int, arguments: list[Any], shared_bytes: int) -> None:
    guarded: list[tuple[np.ndarray, np.ndarray]] = []
    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous, f"{kernel.name}: an array that is not contiguous"
            copy = np.full(argument.nbytes + 2 * GUARD + 16, GUARD_BYTE, np.uint8)
            copy = copy[-copy.ctypes.data % 16 :]  # aligned, as an allocation on the card is
            copy[GUARD : GUARD + argument.nbytes] = np.frombuffer(argument.tobytes(), np.uint8)
            guarded.append((argument, copy))
            values.append(ctypes.c_void_p(copy.ctypes.data + GUARD))
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
    for array, copy in guarded:
        outside = np.concatenate([copy[:GUARD], copy[GUARD + array.nbytes :]])
        assert (outside == GUARD_BYTE).all(), f"{kernel.name} wrote beyond the ends of an array {array.shape}"
        inside = copy[GUARD : GUARD + array.nbytes]
        if array.flags.writeable:
            array[...] = np.frombuffer(inside.tobytes(), array.dtype).reshape(array.shape)
