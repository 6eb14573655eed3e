"""The processes beside the first one: `Worker` is this end of the pipe to one, and `Server` the other end."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import operator
import os
import signal
import socket
import struct
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import random
from ..hooks import forget_hooks
from ..in_place import mark_written
from ..kernels.cpu import in_pieces, set_num_threads
from ..modes import enable_grad, no_grad
from ..nn.module import Parameter
from ..tensor import Tensor

if TYPE_CHECKING:
    from .data_parallel import DataParallel

ALIGNMENT = 64  # bytes of a cache line, which no two parameters share
PATIENCE = 30  # seconds after which a stopped process counts as failed; Ctrl-Z stops and continues all of them
# Sent to all processes of a run, by a terminal or a scheduler. The first process handles them and ends the others.
FOR_THE_FIRST = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)}


class WorkerError(RuntimeError):
    """A process of `DataParallel` failed or ended. The message contains its traceback."""


class Worker:
    """Another process, seen from this one: `ask` it something, and read its `answer` later."""

    def __init__(self, parallel: DataParallel) -> None:
        self.params, self.gradients, self.asked = parallel.params, shared_arrays(parallel.params), ""
        fork = multiprocessing.get_context("fork")
        self.connection, theirs = fork.Pipe()
        ours = [*(worker.connection for worker in parallel.workers), self.connection]
        server = Server(parallel, self.gradients)
        self.process = fork.Process(target=server.serve, args=(theirs, ours), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_FIRST)  # in the fork until it ignores them
        try:
            with warnings.catch_warnings():  # about locks of other threads; the pool starts new ones
                warnings.simplefilter("ignore", DeprecationWarning)
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.pid: Any = self.process.pid
        self.at_exit = Finalize(self, self.process.kill, exitpriority=0)  # if it was not closed by then
        with socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:  # a stopped process reads nothing
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", PATIENCE, 0))

    def ask(self, what: str, *arguments: Any) -> None:
        self.asked = what
        try:
            self.connection.send((what, *arguments))
        except OSError as error:
            raise self.gone() from error

    def answer(self) -> Any:
        stopped = 0  # seconds; they are counted, so that those in which this process was stopped, too, are left out
        while not self.connection.poll(1):
            stopped = stopped + 1 if self.is_stopped() else 0
            if stopped >= PATIENCE:
                raise self.gone()
        try:
            failure, value = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.gone() from error
        if isinstance(failure, MemoryError):
            raise failure
        if failure:
            raise WorkerError(f"DataParallel: a process failed in {self.asked}:\n{failure}")
        return value

    def is_stopped(self) -> bool:
        """Is the process stopped by a signal, such as SIGSTOP, and not yet continued?"""
        try:
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except OSError:  # it has ended, and its end of the pipe is closed
            return False

    def gone(self) -> WorkerError:
        """The error for a process that has ended, or that has been stopped for too long."""
        self.process.join(1)
        status = self.process.exitcode
        if status is None:
            how = f"was stopped for {PATIENCE} s" if self.is_stopped() else "does not read what it is asked"
        elif status < 0:
            how = f"was killed by {_signal_name(-status)}"
            how += ", which the system sends when memory runs out" if -status == signal.SIGKILL else ""
        else:
            how = f"ended with status {status}"
        return WorkerError(f"DataParallel: a process {how} (in {self.asked})")

    def add_gradients(self, present: list[int]) -> None:
        """Add this worker's gradients to the parameters' `grad`. It has those of the parameters numbered `present`."""
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
        self.at_exit.cancel()
        self.connection.close()  # upon which the process ends
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class Server:
    """The other end of a `Worker`, in its process."""

    def __init__(self, parallel: DataParallel, gradients: list[Any]) -> None:
        self.parallel, self.gradients = parallel, gradients
        self.loss: Tensor | None = None  # the latest recorded loss

    def serve(self, connection: Any, others: list[Any]) -> None:
        """Answer requests until the pipe is closed."""
        for number in FOR_THE_FIRST:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_FIRST)
        for other in others:  # inherited from the first process; open, they would hide that it closed its own
            other.close()
        set_num_threads(self.parallel.pool.size)
        forget_hooks()  # the first process calls them, when all gradients have been added up
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

    def forward(self, batch: list[Any], weight: float, recording: bool, training: bool, seed: int) -> float:
        """The loss of these rows. If it is recorded, it is kept for the backward."""
        module, loss = self.parallel.module, self.parallel.loss
        if module.training != training:
            module.train(training)
        random.manual_seed(seed)
        if not recording:
            with no_grad():
                return loss(*batch).item()
        self.loss = None  # frees the one before
        self.loss, self.weight = loss(*batch), weight
        return self.loss.item()

    def backward(self, g: Any, retain_graph: bool) -> list[int]:
        """Write the gradients of the latest loss to the shared memory. Returns which parameters have one."""
        assert self.loss is not None
        self.loss.backward(g * g.dtype.type(self.weight), retain_graph=retain_graph)
        present = []
        for i, (p, shared) in enumerate(zip(self.parallel.params, self.gradients, strict=True)):
            if p.grad is not None:
                shared[...], p.grad = p.grad, None
                present.append(i)
        return present


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def shared_arrays(params: list[Parameter]) -> list[Any]:
    """Zeros of the parameters' shapes and dtypes, in memory that this process shares with those forked from it."""
    sizes = [-(-p.data.nbytes // ALIGNMENT) * ALIGNMENT for p in params]
    memory, offset, arrays = mmap.mmap(-1, max(1, sum(sizes))), 0, []
    for p, size in zip(params, sizes, strict=True):
        arrays.append(np.frombuffer(memory, p.dtype, p.size, offset).reshape(p.shape))
        offset += size
    return arrays
