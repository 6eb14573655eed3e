"""Several processes share the work of one training run.

`DataParallel`: several processes of one machine share the rows of every batch. NumPy releases Python's interpreter lock
while it computes and takes it again after every call, so two threads that make many short calls wait for each other.
Two processes do not. On a few cores, a model whose operations take less than some milliseconds each trains faster with
one process for each core than with threads inside its operations.

`communicator`: the same program runs as several ranks, on one machine or many, over MPI or NCCL.
"""

from .communicator import Communicator, DistributedError, Work
from .data_parallel import DataParallel, can_share
from .ddp import DistributedDataParallel
from .launch import communicator
from .workers import WorkerError
from .zero import ZeroRedundancyOptimizer

__all__ = [
    "Communicator",
    "DataParallel",
    "DistributedDataParallel",
    "DistributedError",
    "Work",
    "WorkerError",
    "ZeroRedundancyOptimizer",
    "can_share",
    "communicator",
]
