"""A communicator of one of several ranks, for tests in one process: the other ranks have only zeros."""

from minigrad.distributed import Communicator, Work


class FakeCommunicator(Communicator):
    """What is started is noted in `events`: the lengths of the arrays of all-reduces."""

    def __init__(self, size=2, rank=0, events=None, device="cpu"):
        super().__init__(device)
        self.size, self.rank, self.events = size, rank, [] if events is None else events

    def start_all_reduce(self, array, operation="sum"):
        self.events.append(array.size)
        return Work()

    def start_reduce_scatter(self, array, part, operation="sum"):
        part[...] = array[self.rank * part.size : (self.rank + 1) * part.size]
        return Work()

    def start_all_gather(self, part, array):
        return Work()  # the others' parts stay as they are

    def broadcast(self, array, root=0):
        pass

    def share(self, value):
        return [value] * self.size
