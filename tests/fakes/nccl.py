"""A fake of `cupy.cuda.nccl`, as CuPy 14.2 has it, for ranks that are threads of one process.

It is at least as strict as the real one:

- arguments are positional or have CuPy's names; an address, a count, a number of a dtype or an operation, a root and a
  stream are whole numbers; an id is 128 bytes;
- addresses are aligned, and the memory behind them is on the GPU of the communicator;
- buffers are the same, in their place, or apart: where they overlap otherwise, NCCL's result is not defined;
- all ranks make the same calls in the same order, with the same counts: NCCL would hang or mix the numbers up;
- after `abort` or `destroy`, the communicator is a null pointer, with which every call is an error;
- two ranks do not share a GPU.

Half precision is added up in half precision, from rank 0 on.
"""

from __future__ import annotations

import ctypes
import itertools
import secrets
import threading
import types
from typing import Any

import ml_dtypes
import numpy as np

from tests.fakes import cupy as fake_cupy

CONSTANTS = {
    "NCCL_SUM": 0,
    "NCCL_PROD": 1,
    "NCCL_MAX": 2,
    "NCCL_MIN": 3,
    "NCCL_AVG": 4,
    "NCCL_INT8": 0,
    "NCCL_UINT8": 1,
    "NCCL_INT32": 2,
    "NCCL_UINT32": 3,
    "NCCL_INT64": 4,
    "NCCL_UINT64": 5,
    "NCCL_FLOAT16": 6,
    "NCCL_FLOAT32": 7,
    "NCCL_FLOAT64": 8,
    "NCCL_BFLOAT16": 9,
}
DTYPES = [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32, np.float64]
DTYPES += [ml_dtypes.bfloat16]
PATIENCE = 5  # seconds for the other ranks to make the same call

_groups: dict[bytes, Group] = {}


class NcclError(RuntimeError):
    """As cupy.cuda.nccl.NcclError."""

    NAMES = (
        "SUCCESS UNHANDLED_CUDA_ERROR SYSTEM_ERROR INTERNAL_ERROR INVALID_ARGUMENT INVALID_USAGE REMOTE_ERROR"
    ).split()

    def __init__(self, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(f"NCCL_ERROR_{self.NAMES[status]}: {why}")


class Group:
    """The ranks of one id, and the call that each of them has made."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.calls: dict[int, dict[int, Any]] = {}  # number of the call → rank → what it called
        self.results: dict[int, Any] = {}
        self.broken = ""

    def meet(self, number: int, rank: int, size: int, call: tuple[Any, ...], work: Any, data: Any) -> None:
        """Wait until all ranks have made call `number`; the last of them does the work. Fails if the calls differ."""
        with self.changed:
            made = self.calls.setdefault(number, {})
            made[rank] = (call, data)
            if len(made) == size:
                if len({repr(call) for call, _ in made.values()}) > 1:
                    self.broken = f"the ranks make different calls: {sorted(made.items())}"
                else:
                    work([made[rank][1] for rank in range(size)])
                self.results[number] = True
                self.changed.notify_all()
            if not self.changed.wait_for(lambda: number in self.results, PATIENCE):
                self.broken = f"only the ranks {sorted(made)} make call {number}, {call}: the real one hangs here"
            if self.broken:
                raise NcclError(5, self.broken)


class NcclCommunicator:
    """As cupy.cuda.nccl.NcclCommunicator."""

    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None) -> None:
        if type(commId) is not bytes:
            raise TypeError(f"Argument 'commId' has incorrect type (expected bytes, got {type(commId).__name__})")
        _whole(ndev, rank)
        assert len(commId) == 128
        if commId not in _groups or not 0 <= rank < ndev:
            raise NcclError(4, "no such id, or rank")
        self.group, self.ndev, self.rank, self.gpu = _groups[commId], ndev, rank, fake_cupy.Device().id
        self.numbers = itertools.count()
        self.comm, self.failed = 1, 0
        self.group.meet(next(self.numbers), rank, ndev, ("join", ndev), self._distinct, self.gpu)

    def _distinct(self, gpus: list[int]) -> None:
        if len({*gpus}) < len(gpus):
            self.group.broken = f"Duplicate GPU detected: {gpus}"

    def destroy(self) -> None:
        self.comm = 0

    def abort(self) -> None:
        self.comm = 0

    def device_id(self) -> int:
        self._check_alive()
        return self.gpu

    def rank_id(self) -> int:
        self._check_alive()
        return self.rank

    def size(self) -> int:
        self._check_alive()
        return self.ndev

    def check_async_error(self) -> None:
        self._check_alive()
        if self.failed:
            raise NcclError(self.failed, "noticed by check_async_error")

    def _check_alive(self) -> None:
        if not self.comm:
            raise NcclError(4, "comm is a null pointer")

    def _call(self, name: str, buffers: tuple[Any, ...], numbers: tuple[int, ...], stream: int, work: Any) -> None:
        self._check_alive()
        _whole(*numbers, stream)
        if stream not in [each.ptr for each in fake_cupy.streams()]:
            raise NcclError(1, "no such stream")
        fake_cupy.submit(
            lambda: self.group.meet(next(self.numbers), self.rank, self.ndev, (name, numbers), work, buffers)
        )

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        source, target = self._at(sendbuf, count, datatype), self._at(recvbuf, count, datatype)
        _apart_or_same(source, target, source)

        def work(buffers: list[Any]) -> None:
            total = _reduced([source for source, _ in buffers], op)
            for _, target in buffers:
                target[...] = total

        self._call("allReduce", (source, target), (count, datatype, op), stream, work)

    def reduceScatter(self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int) -> None:
        source = self._at(sendbuf, recvcount * self.ndev, datatype)
        target = self._at(recvbuf, recvcount, datatype)
        _apart_or_same(source, target, source[self.rank * recvcount :][:recvcount])

        def work(buffers: list[Any]) -> None:
            total = _reduced([source for source, _ in buffers], op)
            for (_, target), part in zip(buffers, np.split(total, len(buffers)), strict=True):
                target[...] = part

        self._call("reduceScatter", (source, target), (recvcount, datatype, op), stream, work)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        source = self._at(sendbuf, count, datatype)
        target = self._at(recvbuf, count * self.ndev, datatype)
        _apart_or_same(target, source, target[self.rank * count :][:count])

        def work(buffers: list[Any]) -> None:
            everything = np.concatenate([source for source, _ in buffers])
            for _, target in buffers:
                target[...] = everything

        self._call("allGather", (source, target), (count, datatype), stream, work)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        source, target = self._at(sendbuff, count, datatype), self._at(recvbuff, count, datatype)
        _apart_or_same(source, target, source)
        _whole(root)
        if not 0 <= root < self.ndev:
            raise NcclError(4, f"invalid root {root}")

        def work(buffers: list[Any]) -> None:
            sent = buffers[root][0].copy()
            for _, target in buffers:
                target[...] = sent

        self._call("broadcast", (source, target), (count, datatype, root), stream, work)

    def _at(self, address: int, count: int, datatype: int) -> np.ndarray:
        """The numbers at an address of the GPU."""
        _whole(address, count, datatype)
        if count < 0:
            raise OverflowError("can't convert negative value to size_t")
        if not 0 <= datatype < len(DTYPES):
            raise NcclError(4, f"invalid type {datatype}")
        dtype = np.dtype(DTYPES[datatype])
        if not address or address % dtype.itemsize:
            raise NcclError(1, f"{address} is no address of {dtype} on a GPU")
        return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)


def _whole(*numbers: Any) -> None:
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"an integer is required, got {type(number).__name__}")


def _apart_or_same(whole: np.ndarray, part: np.ndarray, place: np.ndarray) -> None:
    if np.shares_memory(whole, part) and part.ctypes.data != place.ctypes.data:
        raise NcclError(5, "buffers that overlap, but not in place")


def _reduced(buffers: list[np.ndarray], op: int) -> np.ndarray:
    if op not in (CONSTANTS["NCCL_SUM"], CONSTANTS["NCCL_AVG"]):
        raise NotImplementedError(op)
    total = buffers[0].copy()
    for buffer in buffers[1:]:
        total += buffer
    return total / total.dtype.type(len(buffers)) if op == CONSTANTS["NCCL_AVG"] else total


def get_unique_id() -> bytes:
    identity = secrets.token_bytes(128)
    _groups[identity] = Group()
    return identity


def install(monkeypatch: Any) -> None:
    """Let `cupy.cuda.nccl` of the fake CuPy, which `fake_cupy.install` has installed, be this one."""
    module = types.SimpleNamespace(
        available=True,
        get_unique_id=get_unique_id,
        get_build_version=lambda: 22501,
        NcclCommunicator=NcclCommunicator,
        NcclError=NcclError,
        **CONSTANTS,
    )
    monkeypatch.setattr(fake_cupy.cupy.cuda, "nccl", module, raising=False)
    _groups.clear()
