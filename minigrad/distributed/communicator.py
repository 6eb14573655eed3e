"""`Communicator`: what the processes of one training run, its ranks, can do together.

Every rank runs the same program on its own share of each batch. The ranks are numbered from 0 to size - 1. A collective
is a function that all of them call in the same order, with arrays of the same size and dtype:

    all_reduce        every rank gets the sum (or mean) of all ranks' arrays
    reduce_scatter    the same sum, of which rank r gets only the r-th of `size` equal parts
    all_gather        every rank gets the ranks' arrays one after the other: it undoes reduce_scatter
    broadcast         every rank gets the array of one of them
    barrier           every rank waits until all have arrived

The class in this file is the communicator of a process that is alone: its collectives leave the arrays as they are.
`mpi.py` and `nccl.py` have the others. The bytes are carried by MPI or NCCL, never by code of this project.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ..backend import Array, device_of, is_array

if TYPE_CHECKING:
    from .control import Control

Operation = Literal["sum", "mean"]
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64")


class DistributedError(RuntimeError):
    """The ranks cannot work together: a launcher, a library or another rank is the reason, which the message names."""


class Work:
    """A collective that was started. Its arrays must not be touched until `wait` has returned.

    On a GPU, `wait` lets the current stream wait, not the host.
    """

    seconds = 0.0  # how long the communicator was busy with it; known after `wait`, and not on a GPU

    def wait(self) -> None:
        """Wait until the collective is complete. Raises what the collective raised."""


class Communicator:
    """A process that is alone: rank 0 of 1. The base class of all communicators.

    Arrays are contiguous and have one axis. Their dtype is float32, float64, float16, bfloat16, or int64 (for counts;
    no means), the same on all ranks, and they are on `device`. Other arrays raise TypeError or ValueError, before any
    rank has waited for another.

    Collectives run one after another, in the order in which they were started. A subclass says how: it overrides
    `start` and the four methods after it.
    """

    name = "alone"  # the engine that carries the bytes: "MPI" or "NCCL"
    rank = 0
    size = 1
    local_rank = 0  # the rank among the processes of the same machine

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.bytes = 0  # of all arrays that this rank has given to collectives, each counted once

    # Collectives

    def all_reduce(self, array: Array, operation: Operation = "sum") -> None:
        """Replace `array` (n,) on every rank by the sum, or the mean, over the ranks: the same bits on all of them."""
        self.start_all_reduce(array, operation).wait()

    def start_all_reduce(self, array: Array, operation: Operation = "sum") -> Work:
        """Start `all_reduce` and return at once."""
        call = self._checked("all_reduce", array, operation=operation)
        return self.start(f"{call} ({operation})", lambda: self.run_all_reduce(array, operation))

    def reduce_scatter(self, array: Array, part: Array, operation: Operation = "sum") -> None:
        """Write the r-th of the `size` equal parts of the sum of `array` (size n,) over the ranks to `part` (n,).

        What `array` holds afterwards is not defined.
        """
        self.start_reduce_scatter(array, part, operation).wait()

    def start_reduce_scatter(self, array: Array, part: Array, operation: Operation = "sum") -> Work:
        """Start `reduce_scatter` and return at once."""
        call = self._checked("reduce_scatter", array, part, operation)
        return self.start(f"{call} ({operation})", lambda: self.run_reduce_scatter(array, part, operation))

    def all_gather(self, part: Array, array: Array) -> None:
        """Write the ranks' `part` (n,) one after the other to `array` (size n,). `part` may be a view of its place."""
        self.start_all_gather(part, array).wait()

    def start_all_gather(self, part: Array, array: Array) -> Work:
        """Start `all_gather` and return at once."""
        call = self._checked("all_gather", array, part)
        return self.start(call, lambda: self.run_all_gather(part, array))

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace `array` (n,) on every rank by that of the rank `root`."""
        call = self._checked("broadcast", array)
        if not 0 <= root < self.size:
            raise ValueError(f"broadcast: expected a root from 0 to {self.size - 1}, got {root}")
        self.start(f"{call} from rank {root}", lambda: self.run_broadcast(array, root)).wait()

    def share(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. They are small, and such as JSON can hold."""
        return [value]

    def barrier(self) -> None:
        """Wait until every rank has arrived here."""
        self.share(None)

    def _checked(self, call: str, array: Array, part: Array = None, operation: str = "sum") -> str:
        """A description of the call, such as "all_reduce of 1000 float32". Raises an error for bad arguments."""
        for given in [array] if part is None else [array, part]:
            if not is_array(given):
                raise TypeError(f"{call}: expected an array, got {type(given).__name__}")
            if given.ndim != 1 or not given.flags.c_contiguous:
                of = "" if given.flags.c_contiguous else ", not contiguous"
                raise ValueError(f"{call}: expected a contiguous array of one axis, got shape {given.shape}{of}")
            if given.dtype.name not in DTYPES or not given.dtype.isnative:
                raise TypeError(f"{call}: expected an array of {', '.join(DTYPES)}, got {given.dtype}")
            if self.size > 1 and device_of(given) != self.device:
                raise ValueError(f"{call}: {self.name} expected an array on {self.device}, got {device_of(given)}")
        if not getattr(array.flags, "writeable", True):  # CuPy's arrays all are
            raise ValueError(f"{call}: expected a writable array")
        if part is not None and (part.dtype != array.dtype or part.size * self.size != array.size):
            raise ValueError(
                f"{call}: expected an array of {self.size} times the part, got {array.size} {array.dtype} "
                f"and {part.size} {part.dtype}"
            )
        if operation not in ("sum", "mean"):
            raise ValueError(f'{call}: expected the operation "sum" or "mean", got {operation!r}')
        if operation == "mean" and array.dtype.kind == "i":
            raise TypeError(f"{call}: expected floats for a mean, got {array.dtype}")
        self.bytes += array.nbytes
        return f"{call} of {array.size} {array.dtype}"

    # How collectives run. Overridden by the communicators of several ranks

    def start(self, call: str, run: Callable[[], None]) -> Work:
        """Run a collective, now or soon, after those that were started before. `call` describes it."""
        run()
        return Work()

    def run_all_reduce(self, array: Array, operation: Operation) -> None:
        """`all_reduce` of checked arguments."""

    def run_reduce_scatter(self, array: Array, part: Array, operation: Operation) -> None:
        """`reduce_scatter` of checked arguments."""
        part[...] = array

    def run_all_gather(self, part: Array, array: Array) -> None:
        """`all_gather` of checked arguments."""
        if part is not array:
            array[...] = part

    def run_broadcast(self, array: Array, root: int) -> None:
        """`broadcast` of checked arguments."""

    # Beginning and end

    def busy(self, label: str) -> contextlib.AbstractContextManager[None]:
        """A context for long work of this rank, such as "saving", while the others wait. It is not taken for hung."""
        return contextlib.nullcontext()

    def made_progress(self) -> None:
        """Say that this rank has made a step. While it does, it is not taken for hung, though others wait for it."""

    def abort(self, reason: str) -> NoReturn:
        """End all ranks at once with status 1. The message names this rank and the reason."""
        sys.exit(f"error: {reason}")

    def close(self) -> None:
        """Wait for what was started, and leave: this rank needs the others no more. Called when a program ends."""


class WatchedCommunicator(Communicator):
    """The base class of the communicators of several ranks, which `control` watches."""

    def __init__(self, device: str, control: Control, local_rank: int) -> None:
        super().__init__(device)
        self.control, self.rank, self.size, self.local_rank = control, control.rank, control.size, local_rank

    def busy(self, label: str) -> contextlib.AbstractContextManager[None]:
        return self.control.busy(label)

    def made_progress(self) -> None:
        self.control.made_progress()

    def abort(self, reason: str) -> NoReturn:
        self.control.fail(reason)
