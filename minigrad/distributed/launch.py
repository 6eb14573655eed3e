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
