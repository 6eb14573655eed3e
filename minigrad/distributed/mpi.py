"""`MPICommunicator`: MPI carries the bytes between processes on CPUs, of one machine or of many (mpi4py)."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

from ..backend import Array
from .communicator import Communicator, Operation, Work


class Started(Work):
    """A collective that the communicator's thread runs."""

    def __init__(self, future: Future[None]) -> None:
        self.future = future

    def wait(self) -> None:
        self.future.result()


class MPICommunicator(Communicator):
    """The ranks of `mpirun`. One thread makes all calls of MPI, one after another, while the main thread computes."""

    name = "MPI"

    def __init__(self) -> None:
        from mpi4py import MPI

        self.MPI: Any = MPI
        self.world: Any = MPI.COMM_WORLD
        self.rank, self.size = self.world.Get_rank(), self.world.Get_size()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="mpi")

    def start_all_reduce(self, array: Array, operation: Operation = "sum") -> Work:
        def run() -> None:
            self.world.Allreduce(self.MPI.IN_PLACE, array, op=self.MPI.SUM)
            if operation == "mean":
                array[...] /= self.size

        return Started(self.thread.submit(run))

    def start_reduce_scatter(self, array: Array, part: Array, operation: Operation = "sum") -> Work:
        def run() -> None:
            self.world.Reduce_scatter_block(array, part, op=self.MPI.SUM)
            if operation == "mean":
                part[...] /= self.size

        return Started(self.thread.submit(run))

    def all_gather(self, part: Array, array: Array) -> None:
        inside = part.base is not None and (part.base is array or part.base is array.base)
        source = self.MPI.IN_PLACE if inside else part
        self.thread.submit(self.world.Allgather, source, array).result()

    def broadcast(self, array: Array, root: int = 0) -> None:
        self.thread.submit(self.world.Bcast, array, root).result()

    def share(self, value: Any) -> list[Any]:
        return self.thread.submit(self.world.allgather, value).result()

    def barrier(self) -> None:
        self.thread.submit(self.world.Barrier).result()

    def abort(self, reason: str) -> NoReturn:
        print(f"error: rank {self.rank}: {reason}", flush=True)
        self.world.Abort(1)
        os._exit(1)

    def close(self) -> None:
        self.thread.shutdown()
