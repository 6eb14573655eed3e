"""A program for several ranks that make collectives, and of which one fails in a way that the arguments name."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time

import numpy as np

from minigrad.distributed import communicator, launch


def fail(kind: str, ranks) -> None:
    if kind == "raises":
        raise ZeroDivisionError("a test")
    if kind == "raises in a thread":
        threading.Thread(target=fail, args=("raises", ranks)).start()
        time.sleep(100)
    if kind == "exits":
        sys.exit(3)
    if kind == "leaves":
        sys.exit()
    if kind == "aborts":
        ranks.abort("the loss is not finite")
    if kind == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "keeps the lock":
        ctypes.PyDLL(None).sleep(100)
    while kind == "loops":
        pass
    if kind == "calls another":
        ranks.broadcast(np.ones(3))


class Collective:
    """Ranks that torchrun has started, without NCCL: their only collective is `share`."""

    def __init__(self) -> None:
        control = launch.join_torchrun()
        atexit.register(control.close)
        self.rank, self.abort, self.busy = control.rank, control.fail, control.busy
        self.all_reduce = control.share


def main() -> None:
    kind, rank = sys.argv[1], int(sys.argv[2])
    ranks = Collective() if "MASTER_PORT" in os.environ else communicator()
    array = np.ones(10)
    for step in range(5):
        ranks.all_reduce(array.tolist() if isinstance(ranks, Collective) else array)
        if step == 1 and ranks.rank == 0:
            with ranks.busy("saving"):  # longer than the patience of these tests, which is no failure
                time.sleep(float(sys.argv[3]))
        if step == 2 and ranks.rank == rank:
            fail(kind, ranks)
    print(f"rank {ranks.rank} is done")


if __name__ == "__main__":
    main()
