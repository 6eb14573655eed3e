"""`communicator`: which ranks does this process belong to? mpirun and torchrun say so in environment variables."""

from __future__ import annotations

import functools
import os

from .communicator import Communicator

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@functools.cache
def communicator(device: str = "cpu") -> Communicator:
    """The communicator of this process, made at the first call. Without a launcher, or of one process: alone."""
    size = next((int(os.environ[name]) for name in MPI_SIZES if name in os.environ), 1)
    if size == 1:
        return Communicator()
    from .mpi import MPICommunicator

    return MPICommunicator()


def is_first() -> bool:
    """Is this rank 0, or a process without a launcher? The environment says so, before the ranks are connected."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "RANK")
    return launcher()[1] == 1 or next((os.environ[name] for name in names if name in os.environ), "0") == "0"
