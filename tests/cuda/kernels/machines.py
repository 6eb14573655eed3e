"""The two machines that run a kernel on NumPy arrays: the emulator, and a card.

Tests of kernels take the fixture `machine`, and run once on each. `with machine():` says where kernels run; `order` is
the order of the emulator's threads. A card has no such order: there, the two are two runs, which must give the same
bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad.kernels.cuda import launch

GUARD, GUARD_BYTE = 256, 0xFF  # NaN in every format


@contextlib.contextmanager
def card(order: int = 0) -> Iterator[None]:
    """Inside this context kernels that are given NumPy arrays run on the card, on copies between guard zones."""
    launch.emulate, before = _run, launch.emulate
    try:
        yield
    finally:
        launch.emulate = before


@functools.cache
def _compiled(text: str) -> Any:
    return importlib.import_module("cupy").RawModule(code=text, options=("-std=c++17",))


def _run(kernel: launch.Kernel, grid: Any, threads: int, arguments: list[Any], shared_bytes: int) -> None:
    cupy = importlib.import_module("cupy")
    copies, given = [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray) and not argument.dtype.names:
            low, high = np.lib.array_utils.byte_bounds(argument)
            memory = np.full(high - low + 2 * GUARD, GUARD_BYTE, np.uint8)
            memory[GUARD:-GUARD] = np.frombuffer((ctypes.c_char * (high - low)).from_address(low), np.uint8)
            copies.append((argument, argument.ctypes.data - low, cupy.asarray(memory)))
            given.append(np.uintp(copies[-1][2].data.ptr + GUARD + copies[-1][1]))
        else:
            given.append(argument)
    function = _compiled(kernel.text).get_function(kernel.name)
    if shared_bytes > 48 * 1024:
        function.max_dynamic_shared_size_bytes = shared_bytes
    function(grid, (threads,), given, shared_mem=shared_bytes)
    for array, start, on_gpu in copies:
        memory = on_gpu.get()
        copy = np.ndarray(array.shape, array.dtype, memory, GUARD + start, array.strides)
        if array.flags.writeable:
            array[...] = copy
        outside = np.concatenate([memory[:GUARD], memory[-GUARD:]])
        assert (outside == GUARD_BYTE).all(), f"{kernel.name} wrote outside of an array {array.shape}"
