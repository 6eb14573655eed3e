"""One pool of threads for all kernels, and one setting for it.

The work is always cut in the same way for the same number of threads, whoever computes a part, so a result is the same
bit for bit in every run.

Once the pool is in use, matrix libraries multiply on one thread, here and wherever else the process uses them. Their
own threads wait in a busy loop after every product, for milliseconds, on the cores that the pool may need next. Where
that pays, since such a thread takes up the next product at once, `with_library_threads` allows them for one product.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from threadpoolctl import ThreadpoolController

from .blas import survives_fork


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """`size` - 1 threads that wait for work; whoever hands out work is the remaining one."""

    libraries: tuple[Any, ...] = ()  # for matrix products; they are held to one thread once any pool is in use

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = threading.Lock()
        self.inboxes: list[queue.SimpleQueue[Any]] = []
        self.started = False

    def start(self) -> None:
        if not Pool.libraries:
            Pool.libraries = tuple(ThreadpoolController().select(user_api="blas").lib_controllers)
            self.limit_libraries(1)
        while len(self.inboxes) < self.size - 1:
            inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=serve, args=(inbox,), daemon=True, name="minigrad").start()
            self.inboxes.append(inbox)
        self.started = True

    def limit_libraries(self, threads: int) -> None:
        for library in Pool.libraries:
            library.set_num_threads(threads)

    def run(self, tasks: Sequence[Callable[[], Any]]) -> None:
        """Call all tasks, each in a thread of its own as far as these go; the first in the thread that asks.

        There are more tasks than threads where a forward cut its work for a larger pool than the one of its backward.
        What the thread that asks has set, such as `np.errstate`, holds in the others too.
        """
        if not self.started:
            self.start()
        if len(tasks) == 1 or not self.inboxes or sys.is_finalizing():  # at the end of the process threads are gone
            one_after_the_other(tasks)
            return
        finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for i, task in enumerate(tasks[1:]):
            settings = contextvars.copy_context()
            self.inboxes[i % len(self.inboxes)].put((functools.partial(settings.run, task), finished))
        failure: BaseException | None = None
        try:
            tasks[0]()
        except BaseException as error:
            failure = error
        for _ in tasks[1:]:
            failure = finished.get() or failure
        if failure is not None:
            raise failure

    def __del__(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)


def serve(inbox: queue.SimpleQueue[Any]) -> None:
    """What a thread of a pool does until nobody has the pool any more."""
    while (order := inbox.get()) is not None:
        task, finished = order
        failure: BaseException | None = None
        try:
            task()
        except BaseException as error:
            failure = error
        del order, task  # or this thread would keep the arrays of its last task alive
        finished.put(failure)


def _default_threads() -> int:
    ours, openmps = (os.environ.get(name) or "" for name in ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS"))
    given = ours or openmps
    if given.isdecimal() and given.isascii() and int(given):
        return int(given)
    if ours:
        raise ValueError(f"MINIGRAD_NUM_THREADS is {ours!r}; expected a whole number of at least 1")
    return _cores()


_pool = Pool(_default_threads())


_has_library_threads = True


def _start_afresh() -> None:
    """After a fork the child has the pool, but none of its threads, and of libraries' those that can start again."""
    global _pool, _has_library_threads
    _pool, _has_library_threads = Pool(_pool.size), survives_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


def set_num_threads(n: int) -> None:
    """Use n threads on the CPU: the engine's kernels share their work, and their matrix products, among so many.

    The default is the number of cores, or MINIGRAD_NUM_THREADS or OMP_NUM_THREADS. As long as one thread at a time
    calls the engine, results are the same bit for bit from run to run for the same n; another n may round differently,
    and dropout drops other elements. NumPy's own matrix library is held to one thread.
    """
    global _pool
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"set_num_threads: expected a whole number of at least 1, got {n!r}")
    _pool = Pool(n)  # the old one ends when the last who uses it is done


@contextlib.contextmanager
def using(pool: Pool) -> Iterator[None]:
    """Inside this context the engine's kernels use another pool."""
    global _pool
    before, _pool = _pool, pool
    try:
        yield
    finally:
        _pool = before


def get_num_threads() -> int:
    """How many threads the engine uses on the CPU."""
    return _pool.size


def parts_for(work: float, least: float) -> int:
    """In how many parts to do `work`, if a part smaller than `least` does not pay for handing it to a thread."""
    return max(1, min(_pool.size, int(work / least)))


def in_parallel(work: Callable[[int, int], None], parts: int) -> None:
    """work(i, parts) for i = 0 … parts - 1 at the same time. The parts must not write to the same places."""
    run_together([functools.partial(work, i, parts) for i in range(parts)])


def run_together(tasks: Sequence[Callable[[], Any]]) -> None:
    """All tasks at the same time, no more of them than there are threads. They must not write to the same places.

    A task that is one call into NumPy starts sooner than one written in Python, which has to wait until the thread
    that handed it out leaves the interpreter. If the pool is at work for somebody else, or if a task itself calls
    this, the tasks run one after the other.
    """
    pool = _pool
    if len(tasks) == 1 and pool.started:
        tasks[0]()
    elif pool.busy.acquire(blocking=False):
        try:
            pool.run(tasks)
        finally:
            pool.busy.release()
    else:
        one_after_the_other(tasks)


def with_library_threads(product: Callable[[], Any]) -> None:
    """A matrix product on as many of its library's own threads as the pool has.

    They take up a task within a microsecond. A thread of the pool takes a tenth of a millisecond to wake up, to wait
    for the interpreter and to report: as long as a product of one row with a whole matrix of weights takes.
    """
    pool = _pool
    if pool.size > 1 and _has_library_threads and pool.busy.acquire(blocking=False):
        try:
            if not pool.started:
                pool.start()
            pool.limit_libraries(pool.size)
            product()
        finally:
            try:
                pool.limit_libraries(1)
            finally:
                pool.busy.release()
    else:
        product()


def one_after_the_other(calls: Sequence[Callable[[], Any]]) -> None:
    """A task of several calls."""
    for call in calls:
        call()


def stretch(n: int, i: int, parts: int, head_start: float = 0.0) -> slice:
    """The i-th of `parts` stretches of range(n), as even as it goes.

    With a head start the first, which is for the thread that hands out the others, is longer by this fraction of n.
    """
    even = n * (1 - head_start) / parts
    ends = [round(n * head_start + even * (j + 1)) for j in range(parts)]
    return slice(ends[i - 1] if i else 0, ends[i])
