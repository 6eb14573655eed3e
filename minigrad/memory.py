"""How much memory is held and free, what an out-of-memory error says, and a setting of the C library's allocator."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any, NamedTuple

from .backend import cupy_for


def keep_freed_memory() -> None:
    """Ask the C library to keep the memory of freed arrays instead of returning it to the system.

    A training step, or generating a token, frees and allocates the same sizes over and over. Memory that is new from
    the system is cleared page by page, which can take a fifth of the time. The setting is for the whole process, so it
    is made where training or generating starts, by an optimizer or by `generate`, and not on import.
    MINIGRAD_KEEP_MEMORY=0 turns it off. Without glibc it does nothing.
    """
    if os.environ.get("MINIGRAD_KEEP_MEMORY", "1") == "0" or not sys.platform.startswith("linux"):
        return
    mallopt = _mallopt()
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


@functools.cache
def _mallopt() -> Any:
    """The C library's function of this name, or None. Loaded once: every `CDLL` is a cycle of objects."""
    return getattr(ctypes.CDLL(None), "mallopt", None)


class MemoryUse(NamedTuple):
    """Bytes on a device: held by this process, and free. None where the system does not report them."""

    held: int | None
    free: int | None


def memory_use(device: str = "cpu") -> MemoryUse:
    """How much memory this process holds on a device and how much is free. CuPy holds that of freed arrays, too."""
    if device == "cpu":
        return MemoryUse(_kilobytes("/proc/self/status", "VmRSS"), _kilobytes("/proc/meminfo", "MemAvailable"))
    cupy, index = cupy_for(device)
    with cupy.cuda.Device(index) as gpu:
        return MemoryUse(cupy.get_default_memory_pool().total_bytes(), gpu.mem_info[0])


def _kilobytes(file: str, name: str) -> int | None:
    """The number after `name:` in one of Linux's files of figures, in bytes."""
    try:
        with open(file, encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


def describe_out_of_memory(error: MemoryError) -> str:
    """One line: on which device memory ran out, and how much was requested, is held and is free.

    Without the figures if there is not enough memory for them either.
    """
    try:
        return _describe(error)
    except MemoryError:
        return "out of memory"


def _describe(error: MemoryError) -> str:
    requested = getattr(error, "_size", None)  # a number in CuPy's error; NumPy's message has it in words
    device = "cpu" if requested is None else "cuda"
    words = str(error) if requested is None else f"{_bytes(requested)} more were requested"
    held, free = memory_use(device)
    figures = [f"{_bytes(n)} {what}" for n, what in ((held, "are held by this process"), (free, "are free")) if n]
    return f"out of memory on the {'GPU' if device == 'cuda' else 'CPU'}: {'; '.join(filter(None, [words, *figures]))}"


def _bytes(n: float) -> str:
    """A number of bytes in a readable unit: "3.20 GiB"."""
    power = min(max(int(n).bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:.2f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if power else f"{n} bytes"
