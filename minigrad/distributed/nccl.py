"""`NCCLCommunicator`: NCCL carries the bytes between GPUs."""

from .communicator import Communicator
from .control import Control


class NCCLCommunicator(Communicator):
    def __init__(self, control: Control, local_rank: int) -> None:
        raise NotImplementedError
