"""Data parallelism: several processes share the rows of every batch.

NumPy releases Python's interpreter lock while it computes and takes it again after every call, so two threads that make
many short calls wait for each other. Two processes do not. On a few cores, a model whose operations take less than some
milliseconds each trains faster with one process for each core than with threads inside its operations.
"""

from .communicator import Communicator, Work
from .data_parallel import DataParallel, can_share
from .ddp import DistributedDataParallel
from .diloco import DiLoCo
from .launch import communicator
from .workers import WorkerError

__all__ = [
    "Communicator",
    "DataParallel",
    "DiLoCo",
    "DistributedDataParallel",
    "Work",
    "WorkerError",
    "can_share",
    "communicator",
]
