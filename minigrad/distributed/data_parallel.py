"""`DataParallel`: the mean loss over a batch, and its gradients, by several processes on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import random
from ..autograd import AutogradError
from ..kernels.cpu import get_num_threads, threads
from ..modes import is_recording
from ..nn.module import Module
from ..tensor import Tensor
from .shared_loss import ParallelLoss, SharedLoss
from .workers import Worker, shared_arrays


def can_share() -> bool:
    """Can this process be forked? On macOS it could, but Apple's matrix library does not work after a fork.

    A daemonic process, such as those of multiprocessing's pools, cannot start processes either.
    """
    return hasattr(os, "fork") and sys.platform != "darwin" and not multiprocessing.current_process().daemon


class DataParallel(ParallelLoss):
    """The mean loss over the rows of a batch, and its gradients, by several processes on the CPU.

        parallel = DataParallel(model, lambda ids, targets: model(ids, targets)[1], processes=2)
        with parallel:
            loss = parallel(ids, targets)
            loss.backward()             # accumulates the gradients of model's parameters in their `grad`, as usual
            optimizer.step()

    Each process computes the loss of some rows and walks its own tape; shared_loss.py has the formula. The gradients
    are added up in a fixed order, so the same number of processes gives the same result, bit for bit.

    module: its parameters, in float32 or float64, are moved into memory that all processes share, so an optimizer
    changes them for all. loss: a function of arrays (n, …) that returns a scalar tensor, the mean over the rows of
    something that depends on each row alone. processes: how many, including this one; each gets an equal part of the
    threads. Dropout draws from generators that are derived from this process's.

    The other processes are copies of this one from when the first loss was computed. Of later changes to the module
    they see only the values of the parameters and `training`. They end with the `with` block, or with `close`.

    Raises MemoryError if one of the processes runs out of memory, `WorkerError` if one fails in another way, is killed,
    or is stopped for 30 seconds, and ValueError for arrays with different numbers of rows or none, and for tensors that
    require gradients.
    """

    def __init__(self, module: Module, loss: Callable[..., Tensor], processes: int) -> None:
        if processes < 1:
            raise ValueError(f"DataParallel: expected at least 1 process, got {processes}")
        if processes > 1 and not can_share():
            raise ValueError("DataParallel: this process cannot be forked; use processes=1")
        super().__init__(module, loss)
        self.processes = processes
        elsewhere = {p.device for p in self.params} - {"cpu"}
        if processes > 1 and elsewhere:
            raise ValueError(f"DataParallel: expected parameters on the CPU, got {', '.join(sorted(elsewhere))}")
        self.shared: list[Any] = []  # the parameters' arrays in the memory that all processes share
        self.workers: list[Worker] = []
        self.latest: Parts | None = None
        self.pool = threads.Pool(max(1, get_num_threads() // processes))

    def __call__(self, *batch: Any) -> Tensor:
        """The mean loss of a batch of arrays (n, …), all with the same number of rows. Of tensors the arrays are taken.

        Raises ValueError for a tensor that requires gradients: none would come back from the other processes.
        """
        batch = self.arrays_of(batch)
        if self.processes == 1:
            return self.loss(*batch)
        n = len(batch[0])
        parts = [threads.stretch(n, i, min(n, self.processes)) for i in range(min(n, self.processes))]
        own, *weights = [(part.stop - part.start) / n for part in parts]
        recording = is_recording() and any(p.requires_grad for p in self.params)
        self.latest = None if recording else self.latest  # frees what it kept before the next loss
        with self.closed_on_error():
            self.start()
            workers = self.workers[: len(weights)]
            for i, (worker, part, weight) in enumerate(zip(workers, parts[1:], weights, strict=True), start=1):
                rows_of_part = [array[part] for array in batch]
                worker.ask("forward", rows_of_part, weight, recording, self.module.training, random.derived_seed(i))
            with threads.using(self.pool):
                loss = self.loss(*(array[parts[0]] for array in batch))
            mean = own * loss.item() + np.dot(weights, [worker.answer() for worker in workers])
        if recording:
            self.latest = Parts(loss, own, workers)
        return SharedLoss.apply(loss.dtype.type(mean), self, self.latest, *self.params)

    def start(self) -> None:
        """Start the other processes if they are not running, and restart them if a parameter has a new array."""
        still_shared = self.workers and all(p.data is array for p, array in zip(self.params, self.shared, strict=True))
        if self.processes == 1 or still_shared:
            return
        self.close()
        self.shared = shared_arrays(self.params)
        for p, array in zip(self.params, self.shared, strict=True):
            array[...] = p.data
            p.data = array
        for _ in range(self.processes - 1):
            self.workers.append(Worker(self))

    def close(self) -> None:
        """End the other processes. The next loss starts new ones."""
        for worker in self.workers:
            worker.close()
        self.workers, self.latest = [], None

    def walk(self, part: Parts, g: Any, retain_graph: bool) -> None:
        """Add the gradients of all processes to the parameters' `grad`."""
        if part is not self.latest:
            raise AutogradError("DataParallel: the other processes keep only the latest loss; this is an earlier one")
        with self.closed_on_error():
            for worker in part.workers:
                worker.ask("backward", g, retain_graph)
            with threads.using(self.pool):
                part.loss.backward(g * g.dtype.type(part.weight), retain_graph=retain_graph)
            for worker in part.workers:
                worker.add_gradients(worker.answer())


@dataclass(frozen=True, eq=False)
class Parts:
    """What the backward of a mean loss needs: this process's part, its weight, and the workers with the other parts."""

    loss: Tensor
    weight: float
    workers: list[Worker]
