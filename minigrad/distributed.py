"""Data parallelism: several processes share the rows of every batch.

NumPy gives up Python's interpreter lock while it computes and has to get it back after every call, so two threads that
make many short calls wait for each other. Two processes do not. On a few cores a model whose operations take less than
some milliseconds each trains faster with a process for each core than with threads inside its operations.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import operator
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import random
from .autograd import AutogradError, Function
from .in_place import mark_written
from .kernels.cpu import get_num_threads, in_pieces, set_num_threads, threads
from .modes import enable_grad, is_recording, no_grad
from .nn.module import Module, Parameter
from .tensor import Tensor

ALIGNMENT = 64  # bytes of a cache line: parameters do not share one


class WorkerError(RuntimeError):
    """A process of `DataParallel` failed or is gone; the message has its traceback."""


def can_share() -> bool:
    """Can this process be copied, with all that it holds? (macOS can, but its matrix library cannot.)

    A daemonic process, as those of multiprocessing's pools are, may not have processes of its own.
    """
    return hasattr(os, "fork") and sys.platform != "darwin" and not multiprocessing.current_process().daemon


class DataParallel:
    """The mean loss over the rows of a batch, and its gradients, by several processes on the CPU.

        parallel = DataParallel(model, lambda ids, targets: model(ids, targets)[1], processes=2)
        with parallel:
            loss = parallel(ids, targets)
            loss.backward()             # the gradients of model's parameters are in their `grad`, as ever
            optimizer.step()

    Let row r of n have the loss L_r. The mean over all rows is the mean of the parts' means, each with the weight of
    its number of rows n_i, and a derivative is linear:

        L = sum_i (n_i / n) L_i        dL/dw = sum_i (n_i / n) dL_i/dw

    So process i computes L_i for its rows alone and walks its own tape with n_i / n as the first gradient; the sum over
    the processes is the whole gradient. They are added up in one order, so that a result is the same bit for bit for
    the same number of processes.

    module: its parameters, in float32 or float64, are moved into memory that all processes share; an optimizer changes
    them for all. loss: a function of arrays (n, …) that returns the mean over their rows of something that depends on
    each row alone, a scalar tensor. processes: how many, this one included; each gets an equal part of the threads.
    Dropout draws from generators that are derived from this process's.

    The others are copies of this process from when the first loss was asked for: what was changed in the module since,
    but for the values of its parameters and `training`, they do not know. They end with the `with` block, and with
    `close`.

    Raises MemoryError if one of the processes runs out of memory, `WorkerError` if one fails in another way, ValueError
    for arrays with different numbers of rows, or with none, and for tensors that require gradients.
    """

    def __init__(self, module: Module, loss: Callable[..., Tensor], processes: int) -> None:
        if processes < 1:
            raise ValueError(f"DataParallel: processes is {processes}; wanted at least 1")
        if processes > 1 and not can_share():
            raise ValueError("DataParallel: this process cannot be copied; take processes=1")
        self.module, self.loss, self.processes = module, loss, processes
        self.params = list(module.parameters())
        elsewhere = {p.device for p in self.params} - {"cpu"}
        if processes > 1 and elsewhere:
            raise ValueError(f"DataParallel: wanted parameters on the CPU, got some on {', '.join(sorted(elsewhere))}")
        self.shared: list[Any] = []  # the parameters' arrays in the memory that all processes share
        self.workers: list[Worker] = []
        self.latest: Parts | None = None
        self.pool = threads.Pool(max(1, get_num_threads() // processes))

    def __call__(self, *batch: Any) -> Tensor:
        """The mean loss of a batch of arrays (n, …), all with the same number of rows. Of tensors the arrays are taken.

        No gradient would come back from the other processes, so tensors that require one are refused with ValueError.
        """
        if any(isinstance(x, Tensor) and x.requires_grad for x in batch):
            raise ValueError("DataParallel: wanted a batch of arrays, got a tensor that requires gradients")
        batch = tuple(x.data if isinstance(x, Tensor) else x for x in batch)
        rows = {len(array) for array in batch}
        if len(rows) != 1 or rows == {0}:
            raise ValueError(f"DataParallel: wanted arrays with rows, all of one number of rows, got {sorted(rows)}")
        if self.processes == 1:
            return self.loss(*batch)
        n = rows.pop()
        parts = [threads.stretch(n, i, min(n, self.processes)) for i in range(min(n, self.processes))]
        own, *weights = [(part.stop - part.start) / n for part in parts]
        recording = is_recording() and any(p.requires_grad for p in self.params)
        self.latest = None if recording else self.latest  # or what it kept would stay until the next is there
        with self.closed_on_error():
            self.start()
            state = recording, self.module.training, random.get_state()["cpu"]["state"]["state"]
            workers = self.workers[: len(weights)]
            for worker, part, weight in zip(workers, parts[1:], weights, strict=True):
                worker.ask("forward", [array[part] for array in batch], weight, *state)
            with threads.using(self.pool):
                loss = self.loss(*(array[parts[0]] for array in batch))
            mean = own * loss.item() + np.dot(weights, [worker.answer() for worker in workers])
        if recording:
            self.latest = Parts(loss, own, workers)
        return SharedLoss.apply(loss.dtype.type(mean), self, self.latest, *self.params)

    def __enter__(self) -> DataParallel:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the other processes, if they are not there yet, or afresh if a parameter has another array now."""
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
        """End the other processes. The next loss starts them again."""
        for worker in self.workers:
            worker.close()
        self.workers, self.latest = [], None

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """If something fails midway, forget the others: they may be about to answer a question that nobody asks."""
        try:
            yield
        except BaseException:
            self.close()
            raise


@dataclass(frozen=True, eq=False)
class Parts:
    """What the backward of a mean loss needs: this process's part of it, its weight, and who has the other parts."""

    loss: Tensor
    weight: float
    workers: list[Worker]


class SharedLoss(Function):
    """L = sum_i (n_i / n) L_i; see `DataParallel`. The gradients arrive in the parameters' `grad`."""

    @staticmethod
    def forward(ctx, mean, parallel, parts, *parameters):
        ctx.parallel, ctx.parts = parallel, parts
        return mean

    @staticmethod
    def backward(ctx, g):
        parallel, parts = ctx.parallel, ctx.parts
        if parts is not parallel.latest:
            raise AutogradError("DataParallel: the other processes have only the latest loss; this is an earlier one")
        with parallel.closed_on_error():
            for worker in parts.workers:
                worker.ask("backward", g, ctx.retained)
            with threads.using(parallel.pool):
                parts.loss.backward(g * g.dtype.type(parts.weight), retain_graph=ctx.retained)
            for worker in parts.workers:
                worker.add_gradients(worker.answer())
        return (None,) * len(ctx.needs_input_grad)


class Worker:
    """Another process, seen from this one: `ask` it something, and later get its `answer`."""

    def __init__(self, parallel: DataParallel) -> None:
        self.params, self.gradients, self.asked = parallel.params, shared_arrays(parallel.params), ""
        fork = multiprocessing.get_context("fork")
        self.connection, theirs = fork.Pipe()
        ours = [*(worker.connection for worker in parallel.workers), self.connection]
        server = Server(parallel, len(ours), self.gradients)
        self.process = fork.Process(target=server.serve, args=(theirs, ours), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the copy until it ignores Ctrl-C
        try:
            with warnings.catch_warnings():  # of locks that other threads may hold: the pool starts its threads afresh
                warnings.simplefilter("ignore", DeprecationWarning)
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def ask(self, what: str, *arguments: Any) -> None:
        self.asked = what
        try:
            self.connection.send((what, *arguments))
        except OSError as error:
            raise self.gone() from error

    def answer(self) -> Any:
        try:
            failure, value = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.gone() from error
        if isinstance(failure, MemoryError):
            raise failure
        if failure:
            raise WorkerError(f"DataParallel: a process failed in {self.asked}:\n{failure}")
        return value

    def gone(self) -> WorkerError:
        self.process.join(1)
        return WorkerError(
            f"DataParallel: a process ended in the middle of {self.asked}, with status {self.process.exitcode} "
            f"(-9: the system killed it, often because memory ran out)"
        )

    def add_gradients(self, present: list[int]) -> None:
        """Add this worker's gradients to the parameters'; it has those of the parameters with the given numbers."""
        jobs: list[tuple[Callable[..., Any], list[Any]]] = []
        for i in present:
            p = self.params[i]
            if p.grad is None:
                p.grad = self.gradients[i].copy()
            else:
                jobs.append((operator.iadd, [p.grad, self.gradients[i]]))
                mark_written(p.grad)
        in_pieces(jobs)

    def close(self) -> None:
        self.connection.close()  # at which the process ends
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Server:
    """The other end of a `Worker`, in its process."""

    def __init__(self, parallel: DataParallel, number: int, gradients: list[Any]) -> None:
        self.parallel, self.number, self.gradients = parallel, number, gradients
        self.loss: Tensor | None = None  # the latest that was recorded

    def serve(self, connection: Any, others: list[Any]) -> None:
        """Answer one question after another, until the pipe is closed."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for other in others:  # copies of the first process's ends: with them nobody would notice that it closed its own
            other.close()
        set_num_threads(self.parallel.pool.size)
        for p in self.parallel.params:
            p.grad = None
        with contextlib.suppress(EOFError, OSError), enable_grad():
            while True:
                what, *arguments = connection.recv()
                failure: str | MemoryError | None = None
                value = None
                try:
                    value = getattr(self, what)(*arguments)
                except MemoryError as error:
                    failure = MemoryError(str(error))
                except Exception:
                    failure = traceback.format_exc()
                connection.send((failure, value))

    def forward(self, batch: list[Any], weight: float, recording: bool, training: bool, words: list[int]) -> float:
        """The loss of these rows; if it is recorded, it is kept for the backward."""
        module, loss = self.parallel.module, self.parallel.loss
        if module.training != training:
            module.train(training)
        random.manual_seed(int(np.random.SeedSequence([*words, self.number]).generate_state(1, np.uint64)[0]))
        if not recording:
            with no_grad():
                return loss(*batch).item()
        self.loss = None  # whatever is left of the one before is in the way
        self.loss, self.weight = loss(*batch), weight
        return self.loss.item()

    def backward(self, g: Any, retain_graph: bool) -> list[int]:
        """Write the gradients of the latest loss to the shared memory. The numbers of the parameters that have one."""
        assert self.loss is not None
        self.loss.backward(g * g.dtype.type(self.weight), retain_graph=retain_graph)
        present = []
        for i, (p, shared) in enumerate(zip(self.parallel.params, self.gradients, strict=True)):
            if p.grad is not None:
                shared[...], p.grad = p.grad, None
                present.append(i)
        return present


def shared_arrays(params: list[Parameter]) -> list[Any]:
    """Arrays like the parameters, of zeros, in memory that stays common to this process and those copied from it."""
    sizes = [-(-p.data.nbytes // ALIGNMENT) * ALIGNMENT for p in params]
    memory, offset, arrays = mmap.mmap(-1, max(1, sum(sizes))), 0, []
    for p, size in zip(params, sizes, strict=True):
        arrays.append(np.frombuffer(memory, p.dtype, p.size, offset).reshape(p.shape))
        offset += size
    return arrays
