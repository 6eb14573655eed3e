"""Random numbers: one seed, one generator for each device, and a state that can be saved and restored.

mg.manual_seed(1337)            # everything after this is the same in every run
state = mg.random.get_state()   # plain Python numbers and lists: fit for JSON
mg.random.set_state(state)      # continues exactly there
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from .backend import Array, check_device, get_array_module, to_device

_seed = 0
_cpu = np.random.Generator(np.random.SFC64(_seed))
_gpus: dict[str, Any] = {}  # a cupy.random.Generator for each GPU in use


def manual_seed(seed: int) -> None:
    """Start the generators of all devices afresh from `seed`."""
    global _seed, _cpu
    _seed = int(seed)
    _cpu = np.random.Generator(np.random.SFC64(_seed))
    _gpus.clear()


def generator(device: str = "cpu") -> Any:
    """The NumPy or CuPy random generator of a device."""
    if device == "cpu":
        return _cpu
    if device not in _gpus:
        check_device(device)
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            _gpus[device] = cupy.random.default_rng(_seed)
    return _gpus[device]


class _Mode(threading.local):
    blank = 0  # how many `blank` contexts this thread is inside


_mode = _Mode()


@contextlib.contextmanager
def blank() -> Iterator[None]:
    """Inside this context `normal` and `uniform` draw nothing and give zeros: for weights that are about to be read.

    The system hands out zeros only when they are first written to, so a layer that is not kept costs nothing.
    """
    _mode.blank += 1
    try:
        yield
    finally:
        _mode.blank -= 1


def normal(shape: tuple[int, ...], std: float = 1.0, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Normally distributed numbers with mean 0 and standard deviation `std`."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).standard_normal(shape, dtype=dtype) * np.dtype(dtype).type(std)


def uniform(shape: tuple[int, ...], low: float, high: float, dtype: Any = np.float32, device: str = "cpu") -> Array:
    """Numbers distributed evenly from `low` to `high`."""
    if _mode.blank:
        return _zeros(shape, dtype, device)
    return generator(device).random(shape, dtype=dtype) * np.dtype(dtype).type(high - low) + np.dtype(dtype).type(low)


def _zeros(shape: tuple[int, ...], dtype: Any, device: str) -> Array:
    return to_device(np.zeros(shape, dtype), device)


def dropout_mask(shape: tuple[int, ...], p: float, device: str = "cpu", source: Any = None) -> tuple[Array, float]:
    """A boolean mask that is False with probability p, and the scale 1 / P(True).

    Each element compares 16 random bits with a threshold, which is several times faster than drawing floats; p is
    thereby rounded to a multiple of 1/65536, and the scale belongs to the rounded value, so expectations stay exact.
    `source` is a NumPy bit generator to draw from in place of the CPU's.
    """
    dropped = round(p * 65536)  # of the 65536 values of 16 bits
    scale = 65536 / (65536 - dropped) if dropped < 65536 else 0.0
    n = int(np.prod(shape, dtype=np.int64))
    if device == "cpu":
        source = _cpu.bit_generator if source is None else source
        bits = source.random_raw(-(-n // 4)).view(np.uint16)[:n].reshape(shape)
    else:
        bits = generator(device).integers(0, 65536, size=shape, dtype=np.uint16)
    return (bits >= dropped) if dropped < 65536 else get_array_module(bits).zeros(shape, bool), scale


def seeds(n: int) -> list[int]:
    """Seeds for n generators of their own, drawn from the CPU's generator."""
    return [int(word) for word in _cpu.bit_generator.random_raw(n)]


def get_state() -> dict[str, Any]:
    """The seed and the state of the CPU's generator, as plain Python numbers and lists."""
    state: dict[str, Any] = dict(_cpu.bit_generator.state)
    state["state"] = {"state": [int(word) for word in state["state"]["state"]]}
    return {"seed": _seed, "cpu": state}


def set_state(state: dict[str, Any]) -> None:
    """Continue from what `get_state` returned."""
    manual_seed(state["seed"])
    _cpu.bit_generator.state = _cpu_state(state)


def _cpu_state(state: dict[str, Any]) -> dict[str, Any]:
    words = np.array(state["cpu"]["state"]["state"], np.uint64)
    return {**state["cpu"], "state": {"state": words}}


@contextlib.contextmanager
def replay(state: dict[str, Any]) -> Iterator[None]:
    """Inside this context the CPU draws again what it drew after `state`; then it goes on as if nothing had been."""
    before = _cpu.bit_generator.state
    _cpu.bit_generator.state = _cpu_state(state)
    try:
        yield
    finally:
        _cpu.bit_generator.state = before


def new_generator(seed: int | None) -> np.random.Generator:
    """A NumPy generator of its own for this seed; for None the CPU's generator itself."""
    return _cpu if seed is None else np.random.Generator(np.random.SFC64(seed))
