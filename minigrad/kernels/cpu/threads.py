"""One pool of threads for all kernels, and one setting for it.

For the same number of threads the work is always cut in the same way, whichever thread computes a part. So a result is
the same in every run, bit for bit.

Once the pool is in use, matrix libraries multiply on one thread, here and everywhere else in the process. Their own
threads wait in a busy loop for milliseconds after every product, on the cores that the pool may need next. But such a
thread starts the next product at once: where that pays, `with_library_threads` allows them for one product.
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
    """`size` - 1 threads that wait for work. The thread that hands out the work is the remaining one."""

    libraries: tuple[Any, ...] = ()  # for matrix products; limited to one thread once any pool is in use

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
        """Call all tasks, each in its own thread if there are enough, the first in the calling thread.

        There are more tasks than threads if a forward cut its work for a larger pool than its backward uses. Settings
        of the calling thread, such as `np.errstate`, hold in the other threads too.
        """
        if not self.started:
            self.start()
        if len(tasks) == 1 or not self.inboxes or sys.is_finalizing():  # at exit the threads are gone
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
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback refers to this frame, which must not refer to it: that would be a cycle

    def __del__(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)


def serve(inbox: queue.SimpleQueue[Any]) -> None:
    """The loop of a thread of a pool. It ends when the pool is deleted."""
    while (order := inbox.get()) is not None:
        task, finished = order
        failure: BaseException | None = None
        try:
            task()
        except BaseException as error:
            failure = error
        finished.put(failure)
        del order, task, finished, failure  # else this thread would keep the arrays of its last task alive


def _default_threads() -> int:
    ours, openmps = (os.environ.get(name) or "" for name in ("MINIGRAD_NUM_THREADS", "OMP_NUM_THREADS"))
    given = ours or openmps
    if given.isdecimal() and given.isascii() and int(given):
        return int(given)
    if ours:
        raise ValueError(f"MINIGRAD_NUM_THREADS is {ours!r}; expected a whole number of at least 1")
    return _cores()


_pool: Pool | None = None  # made when it is first used, so that a wrong setting is no error of an import


def current_pool() -> Pool:
    """The pool in use. Raises ValueError if MINIGRAD_NUM_THREADS is not a number of threads."""
    global _pool
    if _pool is None:
        _pool = Pool(_default_threads())
    return _pool


_has_library_threads = True


def _start_afresh() -> None:
    """After a fork the child has none of the pool's threads. A library's threads are used if they can start again."""
    global _pool, _has_library_threads
    _pool, _has_library_threads = _pool and Pool(_pool.size), survives_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


def set_num_threads(n: int) -> None:
    """Use n threads on the CPU for the engine's kernels and their matrix products.

    The default is MINIGRAD_NUM_THREADS, else OMP_NUM_THREADS, else the number of cores. For the same n, results are the
    same bit for bit from run to run, as long as one thread at a time calls the engine. Another n may round differently,
    and dropout drops different elements. NumPy's own matrix library is limited to one thread.
    """
    global _pool
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"set_num_threads: expected a whole number of at least 1, got {n!r}")
    _pool = Pool(n)  # the old pool ends when its last user is done


@contextlib.contextmanager
def using(pool: Pool) -> Iterator[None]:
    """Inside this context, the engine's kernels use another pool."""
    global _pool
    before, _pool = _pool, pool
    try:
        yield
    finally:
        _pool = before


def get_num_threads() -> int:
    """The number of threads that the engine uses on the CPU."""
    return current_pool().size


def parts_for(work: float, least: float) -> int:
    """The number of parts to cut `work` into, if a part smaller than `least` does not justify another thread."""
    return max(1, min(current_pool().size, int(work / least)))


def in_parallel(work: Callable[[int, int], None], parts: int) -> None:
    """Call work(i, parts) for i = 0 … parts - 1 at the same time. The parts must not write to the same elements."""
    run_together([functools.partial(work, i, parts) for i in range(parts)])


def run_together(tasks: Sequence[Callable[[], Any]]) -> None:
    """Run all tasks at the same time, on at most all threads. They must not write to the same elements.

    A task that is one call into NumPy starts sooner than one written in Python, which has to wait until the thread
    that handed it out leaves the interpreter. If the pool is busy with other work, or if a task itself calls this
    function, the tasks run one after the other.
    """
    pool = current_pool()
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
    """Run a matrix product on its library's own threads, as many as the pool has.

    They start a task within a microsecond. A thread of the pool takes a tenth of a millisecond to wake up, wait for the
    interpreter and report back, as long as the product of one row with a whole weight matrix takes.
    """
    pool = current_pool()
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
    """Run several calls as one task."""
    for call in calls:
        call()


def stretch(n: int, i: int, parts: int, head_start: float = 0.0) -> slice:
    """The i-th of `parts` slices of range(n), as even as possible.

    `head_start` makes the first slice longer by this fraction of n. It is for the thread that hands out the others.
    """
    even = n * (1 - head_start) / parts
    ends = [round(n * head_start + even * (j + 1)) for j in range(parts)]
    return slice(ends[i - 1] if i else 0, ends[i])
