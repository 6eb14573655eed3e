"""A whole training step as a CUDA graph: recorded once, then replayed with a single call.

The hundreds of kernels of a step take the host longer to launch, one by one, than a card takes to run small ones. CUDA
can capture what a stream is given instead of running it, and run all of it again, on the same memory, whenever asked.

What a graph cannot know is what the host decides at each step: the learning rate, the number of the step, the numbers
of random draws. Such numbers lie on the card, in arrays that `upload` makes and that are filled before every replay;
what the host itself counts is counted by `each_step`. Outside of a capture both do what they say at once, so that code
that uses them runs the same way with a graph and without one, and to the same bits.

Nothing runs while a step is captured, neither on the card nor in `each_step`: where that fails, nothing has changed.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...random import counter

# The kernels without which a training step is no graph: what would run in their place computes on the host, waits for
# the card, or goes through cuBLAS, which cannot be captured as CuPy calls it
NEEDED = "Linear", "BatchedAttention", "Embedding", "AdamW", "ClipGradNorm"

EAGER_STEPS = 3  # before the capture: they compile the kernels, make the optimizer's arrays and fill the memory pool


class CaptureError(RuntimeError):
    """A step does something that a graph cannot repeat."""


class Recording:
    """What a replay consists of: things to do on the host, numbers to bring to the card, and the graph itself."""

    def __init__(self) -> None:
        self.actions: list[Callable[[], None]] = []
        self.uploads: list[tuple[Any, Callable[[], np.ndarray]]] = []  # before every replay
        self.constants: list[tuple[Any, np.ndarray]] = []  # before the first
        self.pool = importlib.import_module("cupy").cuda.MemoryPool()  # for both
        self.kept: list[Any] = []  # their arrays
        self.inputs: tuple[Any, ...] = ()
        self.outputs: Any = None
        self.graph: Any = None
        self.draws = 0  # of random numbers, in a step

    def replay(self, inputs: tuple[Any, ...]) -> Any:
        xp = importlib.import_module("cupy")
        for own, given in zip(self.inputs, inputs, strict=True):
            own[...] = given
        for action in self.actions:
            action()
        for array, values in self.uploads:
            array[...] = xp.asarray(values())  # goes through pinned memory of CuPy's: the host does not wait
        for array, constant in self.constants:
            array[...] = xp.asarray(constant)
        self.constants.clear()
        self.graph.launch()
        counter.skip_draws(self.draws)
        return self.outputs


_recording: Recording | None = None  # of the capture that is under way


def each_step(action: Callable[[], None]) -> None:
    """Do this on the host now; in a step that is captured, not now but before every replay."""
    if _recording is None:
        action()
    else:
        _recording.actions.append(action)


def upload(xp: Any, values: np.ndarray | Callable[[], np.ndarray]) -> Any:
    """Host numbers as an array of xp. In a step that is captured, a function is asked again before every replay.

    Such an array is filled before the graph begins, so it has memory to itself: the pool that the step's other arrays
    come from would give it some that an earlier kernel of the same graph writes to.
    """
    host = values() if callable(values) else values
    if _recording is None:
        return xp.asarray(host)
    with xp.cuda.using_allocator(_recording.pool.malloc):
        array = xp.empty(host.shape, host.dtype)
    _recording.kept.append(array)
    if callable(values):
        _recording.uploads.append((array, values))
    else:
        _recording.constants.append((array, values))
    return array


def is_capturing() -> bool:
    """Is a step being captured now?"""
    return _recording is not None


def refuse(what: str) -> None:
    """Raise `CaptureError` if a step is being captured."""
    if _recording is not None:
        raise CaptureError(what)


class Captured:
    """A function of arrays on the card, called once a step: after a few calls it is captured, and then replayed.

        step = Captured(compute_step, forget=optimizer.zero_grad)
        loss, norm = step(ids, targets)

    The arguments are copied to where the graph reads them. What is returned always lies in the same arrays, which the
    next call overwrites: copy what is needed for longer. Work goes to a stream of its own, which waits for the
    caller's, as the caller's does for it. A model can have several graphs, as for its evaluations:

        loss = Captured(lambda ids, targets: model(ids, targets)[1])
        with mg.no_grad():  # always, and with model.eval()
            losses = [loss(*batch).data.copy() for batch in batches]

    A graph knows only addresses, so its memory comes from a pool that nobody else uses, and parameters and the
    optimizer's arrays have to stay where they are; what the host decided in the capture, such as whether modules are in
    training, it decided for good. After a change of either, call `restart`. Arguments of other shapes, or another seed,
    make a new graph. If a step cannot be captured, `say` is told why, once, and it goes on as it is.

    forget: called after a capture that failed, to drop what the function left behind.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        forget: Callable[[], Any] = lambda: None,
        say: Callable[[str], Any] = print,
    ) -> None:
        self.function, self.forget, self.say = function, forget, say
        self.stream: Any = None
        self.failed = False
        self.restart()

    def restart(self) -> None:
        """Drop the graph: the next calls run the function as it is, and then it is captured again."""
        self.eager_steps = 0
        self.key: Any = None  # what the graph is for
        self.recording: Recording | None = None

    def __call__(self, *inputs: Any) -> Any:
        cuda = importlib.import_module("cupy").cuda
        if self.stream is None:
            self.stream, self.pool = cuda.Stream(non_blocking=True), cuda.MemoryPool(_device_memory)
        caller = cuda.get_current_stream()
        self.stream.wait_event(caller.record())
        with self.stream:
            result = self._run(inputs)
        caller.wait_event(self.stream.record())
        return result

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        key = (counter.current_seed(), *((x.shape, x.dtype) for x in inputs))
        if key != self.key:
            self.restart()
            self.key = key
        if self.recording is None and self.eager_steps >= EAGER_STEPS and not self.failed:
            self._capture(inputs)
        if self.recording is not None:
            return self.recording.replay(inputs)
        self.eager_steps += 1
        with self._memory():
            return self.function(*inputs)

    def _memory(self) -> Any:
        return importlib.import_module("cupy").cuda.using_allocator(self.pool.malloc)

    def _capture(self, inputs: tuple[Any, ...]) -> None:
        xp = importlib.import_module("cupy")
        recording, first = Recording(), counter.draws()
        with self._memory():
            recording.inputs = tuple(xp.empty_like(x) for x in inputs)
            try:
                with _capturing(recording, self.stream):
                    earlier = upload(xp, lambda: np.array([counter.draws() - first], np.uint64))
                    counter.earlier = earlier
                    recording.outputs = self.function(*recording.inputs)
                    recording.draws = counter.draws() - first
            except Exception as error:  # whatever it is: the step itself has worked, and goes on working
                self.failed = True
                self.forget()
                self.say(
                    f"this step cannot be a CUDA graph, so its kernels are launched one by one, which is slower where "
                    f"they are small ({type(error).__name__}: {error})"
                )
            else:
                self.recording = recording
            finally:
                counter.earlier = None
                counter.skip_draws(first - counter.draws())


@contextlib.contextmanager
def _capturing(recording: Recording, stream: Any) -> Iterator[None]:
    """Inside this context, `stream` records."""
    global _recording
    cuda = importlib.import_module("cupy").cuda
    _recording = recording
    # An upload inside a capture would be repeated by every replay from memory that CuPy gives to others meanwhile
    cuda.set_pinned_memory_allocator(_refuse_upload)
    stream.begin_capture()
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the capture is not valid any more, and that is known
            stream.end_capture()
        raise
    else:
        recording.graph = stream.end_capture()
    finally:
        cuda.set_pinned_memory_allocator(importlib.import_module("cupy").get_default_pinned_memory_pool().malloc)
        _recording = None


def _refuse_upload(size: int) -> Any:
    raise CaptureError(f"it brings {size} bytes from the host to the card, which a graph would not do again")


def _device_memory(size: int) -> Any:
    """New memory for the pool of a graph.

    A pool of CuPy's that gets no memory releases its own free blocks and asks again. In a capture the graph may use
    those blocks, so the pool is then given an error that it does not handle. Outside of a capture, what is free in
    CuPy's default pool, of which this one does not know, is released first.
    """
    xp = importlib.import_module("cupy")
    cuda = xp.cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        if _recording is None:
            xp.get_default_memory_pool().free_all_blocks()
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        raise CaptureError(f"there is no memory for {size} bytes more: {error}") from error
