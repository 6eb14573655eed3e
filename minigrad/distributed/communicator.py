"""`Communicator`: what the processes of one training run, its ranks, can do together.

Every rank runs the same program on its own share of each batch. The ranks are numbered from 0 to size - 1. A collective
is a function that all of them call in the same order, with arrays of the same size and dtype:

    all_reduce        every rank gets the sum (or mean) of all ranks' arrays
    reduce_scatter    the same sum, of which rank r gets only the r-th of `size` equal parts
    all_gather        every rank gets the ranks' arrays one after the other: it undoes reduce_scatter
    broadcast         every rank gets the array of one of them
    barrier           every rank waits until all have arrived

The class in this file is the communicator of a process that is alone: its collectives leave the arrays as they are.
`mpi.py` and `nccl.py` have the others. The bytes are carried by MPI or NCCL, never by code of this project.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, NoReturn

from ..backend import Array

Operation = Literal["sum", "mean"]


class Work:
    """A collective that was started. Its arrays must not be touched until `wait` has returned."""

    def wait(self) -> None:
        """Wait until the collective is complete. Raises what the collective raised."""


class Communicator:
    """A process that is alone: rank 0 of 1. The base class of the communicators of several ranks.

    Arrays are contiguous and of one axis, float32 or float64 (and on GPUs float16 and bfloat16), all on `device`.
    """

    name = "alone"  # the engine that carries the bytes: "MPI" or "NCCL"
    rank = 0
    size = 1
    device = "cpu"

    def all_reduce(self, array: Array, operation: Operation = "sum") -> None:
        """Replace `array` (n,) on every rank by the sum, or the mean, over the ranks."""
        self.start_all_reduce(array, operation).wait()

    def start_all_reduce(self, array: Array, operation: Operation = "sum") -> Work:
        """Start `all_reduce` and return at once. Collectives run one after another, in the order of their start."""
        return Work()

    def reduce_scatter(self, array: Array, part: Array, operation: Operation = "sum") -> None:
        """Write the r-th of the `size` equal parts of the sum of `array` (size n,) over the ranks to `part` (n,)."""
        self.start_reduce_scatter(array, part, operation).wait()

    def start_reduce_scatter(self, array: Array, part: Array, operation: Operation = "sum") -> Work:
        """Start `reduce_scatter` and return at once."""
        part[...] = array
        return Work()

    def all_gather(self, part: Array, array: Array) -> None:
        """Write the ranks' `part` (n,) one after the other to `array` (size n,). `part` may be a view of its place."""
        if part is not array:
            array[...] = part

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace `array` on every rank by that of the rank `root`."""

    def share(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. They are small and such as JSON can hold."""
        return [value]

    def barrier(self) -> None:
        """Wait until every rank has arrived here."""

    def abort(self, reason: str) -> NoReturn:
        """End all ranks at once with status 1. The message names this rank and the reason."""
        sys.exit(f"error: rank {self.rank}: {reason}")

    def close(self) -> None:
        """Say goodbye: this rank is about to end as it should."""
