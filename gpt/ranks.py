"""The ranks of a run: the processes that mpirun, srun or torchrun started. Without a launcher there is only one.

Every rank does the same work on its own rows of each batch. Rank 0 alone prints, and writes the run's folder. Here is
what the ranks must agree on: options, code and data before they start, weights at each estimate, and when to stop.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import minigrad as mg
from minigrad import nn
from minigrad.distributed import communicator, launcher

from .errors import RankError
from .options import check_device

CODE = ("*.py", "*.cu", "*.cuh")
THREADS = ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS")  # variables that set the number of threads


def connect(device: str) -> str:
    """Join the other ranks, if a launcher has started several, and return this rank's device.

    With several ranks and the device "cuda", each has a GPU of its own. Raises `DeviceError`, which names what is
    missing, and `DistributedError`.
    """
    check_device(device)
    joined = communicator(device)
    return joined.device if joined.size > 1 else device


class Ranks:
    """The ranks of a run, seen from one of them.

    device: the model's. `stopped_by` is the number of the signal that stops the run, or 0. It is the same on all ranks,
    whichever of them got the signal.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.communicator = communicator(device)
        self.rank, self.size = self.communicator.rank, self.communicator.size
        self.stopped_by = 0
        self.every = 1 if device == "cpu" else 10  # calls of `meet`, of which one sends something
        self._received = 0  # the number of the signal that this rank got
        self._meetings = 0

    @property
    def writes(self) -> bool:
        """Is this the rank that writes files?"""
        return self.rank == 0

    def start(self, facts: Mapping[str, Any]) -> None:
        """Check that all ranks have the same options and data, which `facts` names, and run the same code.

        Then divide the machine's cores among its ranks. Raises `RankError`, on all ranks, with the difference.
        """
        if self.size > 1:
            self.agree({**facts, **versions()})
            self._divide_cores()

    def agree(self, facts: Mapping[str, Any], when: str = "") -> None:
        """Raise `RankError`, on all ranks, if their facts are not the same. The message says which rank differs."""
        if self.size == 1:
            return
        shared = self.communicator.share(dict(facts))
        names = dict.fromkeys(name for theirs in shared for name in theirs)
        usual = {name: _most_frequent([theirs.get(name) for theirs in shared]) for name in names}
        for rank, theirs in enumerate(shared):
            wrong = [name for name in names if theirs.get(name) != usual[name]]
            if wrong:
                found = "; ".join(f"{name} is {theirs.get(name)!s:.60}, expected {usual[name]!s:.60}" for name in wrong)
                raise RankError(f"rank {rank} differs from the others{when}: {found}")

    def agree_on(self, step: int, module: nn.Module, **facts: Any) -> None:
        """Check that the ranks are at the same step, with the same weights and the same state of the random numbers."""
        if self.size > 1:
            state = {"weights": digest(module), "random numbers": mg.random.get_state(), **facts}
            self.agree({"step": step, **state}, f" at step {step}")

    def receive(self, number: int) -> None:
        """Note that this rank got the signal with this number. All ranks stop at their next meeting."""
        self._received = number
        if self.size == 1:
            self.stopped_by = number

    def meet(self, save: bool = False) -> bool:
        """Agree on whether to stop, in `stopped_by`, and return whether rank 0 wants to `save`.

        All ranks must call it equally often. It sends a few bytes. On GPUs only every tenth call does, since that waits
        for the GPU.
        """
        if self.size == 1:
            return save
        self._meetings += 1
        if self._meetings % self.every:
            return False
        said = np.zeros(self.size + 1, np.float32)  # the signal of each rank, and whether rank 0 wants to save
        said[self.rank] = self._received
        said[-1] = save and self.rank == 0
        array = mg.Tensor(said, device=self.communicator.device)
        self.communicator.all_reduce(array.data)
        *signals, wants_to_save = array.numpy().tolist()
        self.stopped_by = int(max(signals))
        return bool(wants_to_save)

    def stop(self) -> bool:
        """Has any rank got a signal that stops the run? All ranks must call it equally often."""
        self.meet()
        return bool(self.stopped_by)

    def first(self, text: str, unlike: str) -> str:
        """The text of the first rank, with the rank's number, that does not contain `unlike`; else that of rank 0."""
        if self.size == 1:
            return text
        texts = self.communicator.share(text)
        return next((f"on rank {rank}, {text}" for rank, text in enumerate(texts) if unlike not in text), texts[0])

    def _divide_cores(self) -> None:
        """Give each rank of this machine an equal number of the cores it may use, unless the environment sets one."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        place = [socket.gethostname(), cores]
        sharing = self.communicator.share(place).count(place)
        if not any(os.environ.get(name) for name in THREADS):
            mg.set_num_threads(max(1, len(cores) // sharing))


def _most_frequent(values: list[Any]) -> Any:
    """The value that most ranks have; of two that are equally frequent, that of the lower rank."""
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def versions() -> dict[str, Any]:
    """What decides which program runs, besides its options."""
    return {
        "version of Python": platform.python_version(),
        "version of NumPy": np.__version__,
        "version of minigrad": mg.__version__,
        "digest of the source files": digest_of_code(),
        "MINIGRAD_KERNELS": os.environ.get("MINIGRAD_KERNELS", ""),
    }


@functools.cache
def digest_of_code() -> str:
    """A digest of the source files of `minigrad`, of `gpt` and of the program that runs."""
    packages, program = [Path(mg.__file__).parent, Path(__file__).parent], Path(sys.argv[0])
    found = {f"{path.relative_to(x.parent)}": path for x in packages for name in CODE for path in x.rglob(name)}
    if program.is_file():
        found[program.name] = program
    hashed = hashlib.sha256()
    for name, path in sorted(found.items()):
        hashed.update(f"{name}\n".encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def digest(module: nn.Module) -> str:
    """A digest of the weights of a module, to the bit."""
    hashed = hashlib.blake2b(digest_size=8)
    for p in module.parameters():
        hashed.update(np.ascontiguousarray(p.numpy()).view(np.uint8).data)
    return hashed.hexdigest()


def command() -> list[str]:
    """The words before a program's name that start it as this one was: `mpirun -n 4 python`, or `python` alone.

    The launcher's other options are not known.
    """
    name, size = launcher()
    if size == 1:
        return ["python"]
    if name == "torchrun":
        return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(size))]
    return [name, "-n", str(size), "python"]
