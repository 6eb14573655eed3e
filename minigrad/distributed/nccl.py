"""`NCCLCommunicator`: NCCL carries the bytes between GPUs, one GPU for each rank.

This file never ran on a card. Its calls were tested on a fake that checks them as `cupy.cuda.nccl` of CuPy 14.2 does,
whose signatures and constants it was compared with.

CuPy 14 or newer is needed: before, the id was a tuple and not bytes. NCCL itself is another package, nvidia-nccl-cu12
or nvidia-nccl-cu13. What is used of it is in `Binding`, so that another binding, such as nccl4py, needs another one of
these only. `cupyx.distributed` is not used: it can hang in a collective (CuPy issue 6912) and at exit (7863).
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from ..backend import Array, cupy_for
from ..kernels.cuda import graph
from .communicator import DistributedError, Operation, WatchedCommunicator, Work
from .control import Control


class Binding:
    """NCCL as `cupy.cuda.nccl` has it: plain addresses, counts, and the stream that runs the call.

    All functions but `new_id` are called by all ranks. They return before the GPU has done the work.
    """

    def __init__(self, cupy: Any) -> None:
        nccl = cupy.cuda.nccl
        if not nccl.available:
            version = cupy.cuda.runtime.runtimeGetVersion() // 1000
            raise DistributedError(f'CuPy does not find NCCL: pip install "nvidia-nccl-cu{version}>=2.18.1,<3"')
        self.nccl = nccl
        self.operations = {"sum": nccl.NCCL_SUM, "mean": nccl.NCCL_AVG}
        self.dtypes = {
            "float16": nccl.NCCL_FLOAT16,
            "bfloat16": nccl.NCCL_BFLOAT16,
            "float32": nccl.NCCL_FLOAT32,
            "float64": nccl.NCCL_FLOAT64,
            "int64": nccl.NCCL_INT64,
        }

    def new_id(self) -> bytes:
        return self.nccl.get_unique_id()

    def join(self, size: int, identity: bytes, rank: int) -> None:
        """Wait for all ranks. The current GPU is this rank's from now on."""
        self.ranks = self.nccl.NcclCommunicator(size, identity, rank)

    def all_reduce(self, array: Array, operation: Operation, stream: Any) -> None:
        address, dtype = array.data.ptr, self.dtypes[array.dtype.name]
        self.ranks.allReduce(address, address, array.size, dtype, self.operations[operation], stream.ptr)

    def reduce_scatter(self, array: Array, part: Array, operation: Operation, stream: Any) -> None:
        dtype, operation_number = self.dtypes[array.dtype.name], self.operations[operation]
        self.ranks.reduceScatter(array.data.ptr, part.data.ptr, part.size, dtype, operation_number, stream.ptr)

    def all_gather(self, part: Array, array: Array, stream: Any) -> None:
        self.ranks.allGather(part.data.ptr, array.data.ptr, part.size, self.dtypes[array.dtype.name], stream.ptr)

    def broadcast(self, array: Array, root: int, stream: Any) -> None:
        address, dtype = array.data.ptr, self.dtypes[array.dtype.name]
        self.ranks.broadcast(address, address, array.size, dtype, root, stream.ptr)

    def check(self) -> None:
        """Raise what went wrong on the GPU or on the network since the last call."""
        self.ranks.check_async_error()

    def abort(self) -> None:
        """Stop what runs, on this rank alone, and leave."""
        self.ranks.abort()

    def destroy(self) -> None:
        """Leave, after all work is done."""
        self.ranks.destroy()


class Started(Work):
    """A collective on the communicator's stream."""

    def __init__(self, communicator: NCCLCommunicator, done: Any) -> None:
        self.communicator, self.done = communicator, done

    def wait(self) -> None:
        self.communicator.let_current_stream_wait(self.done)


class NCCLCommunicator(WatchedCommunicator):
    """Ranks with one GPU each.

    Collectives run on a stream of their own, beside the computation. Each begins after what the current stream had been
    given when it was started; `Work.wait` lets the current stream wait for it, never the host. Half precision is added
    up by NCCL in half precision. A step that contains collectives is not captured as a CUDA graph.
    """

    name = "NCCL"

    def __init__(self, control: Control, local_rank: int, binding: type[Binding] = Binding) -> None:
        cupy, index = gpu_of(local_rank)
        super().__init__(f"cuda:{index}", control, local_rank)
        self.cupy, self.gpu = cupy, cupy.cuda.Device(index)
        self.gpu.use()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.running: collections.deque[tuple[Any, Callable[[], None]]] = collections.deque()
        self.lock = threading.Lock()
        self.library: Binding | None = binding(cupy)
        identity = control.share(list(self.library.new_id()) if self.rank == 0 else None)[0]
        with control.inside("the start of NCCL"):
            self.library.join(self.size, bytes(identity), self.rank)
        control.each_beat = self.look

    def start(self, call: str, run: Callable[[], None]) -> Work:
        graph.refuse("a collective of NCCL")
        self.control.enter(call)
        with self.gpu:
            self.stream.wait_event(self._event_on(self.cupy.cuda.get_current_stream()))
            run()
            done = self._event_on(self.stream)
        with self.lock:
            self.running.append((done, run))  # `run` keeps the arrays, whose memory CuPy would use again otherwise
        return Started(self, done)

    def _event_on(self, stream: Any) -> Any:
        return stream.record(self.cupy.cuda.Event(disable_timing=True))

    def let_current_stream_wait(self, event: Any) -> None:
        with self.gpu:
            self.cupy.cuda.get_current_stream().wait_event(event)
        self.look()

    def look(self) -> None:
        """Note which collectives are complete. A failure of NCCL ends the job. Called once a second by `control`."""
        try:
            with self.lock:
                if self.library is None:
                    return
                self.library.check()
                while self.running and self.running[0][0].done:
                    self.running.popleft()
                    self.control.leave()
        except Exception as error:  # NcclError, or an error of CUDA
            with contextlib.suppress(Exception):
                self._binding().abort()
            self.control.fail(f"NCCL failed: {error}")

    def _binding(self) -> Binding:
        if self.library is None:
            raise DistributedError("the communicator is closed")
        return self.library

    def run_all_reduce(self, array: Array, operation: Operation) -> None:
        self._binding().all_reduce(array, operation, self.stream)

    def run_reduce_scatter(self, array: Array, part: Array, operation: Operation) -> None:
        self._binding().reduce_scatter(array, part, operation, self.stream)

    def run_all_gather(self, part: Array, array: Array) -> None:
        self._binding().all_gather(part, array, self.stream)

    def run_broadcast(self, array: Array, root: int) -> None:
        self._binding().broadcast(array, root, self.stream)

    def share(self, value: Any) -> list[Any]:
        return self.control.share(value)

    def close(self) -> None:
        with self.gpu:
            self.stream.synchronize()
        self.look()
        with self.lock:
            library, self.library = self.library, None
        if library is not None:
            library.destroy()
        self.control.close()


def gpu_of(local_rank: int) -> tuple[Any, int]:
    """CuPy, and the number of the GPU for this rank of its machine. Raises `DeviceError` if there are too few.

    A launcher may hide all GPUs but one from each rank, by CUDA_VISIBLE_DEVICES. Then that one is taken.
    """
    cupy, _ = cupy_for("cuda:0")
    hidden = cupy.cuda.runtime.getDeviceCount() == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    return cupy_for("cuda:0" if hidden else f"cuda:{local_rank}")
