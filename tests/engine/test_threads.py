"""The pool of threads that CPU kernels share: it starts, ends, fails and is copied as it should."""

import os
import subprocess
import sys
import threading

import pytest
from threadpoolctl import ThreadpoolController

import minigrad as mg
from minigrad.kernels.cpu import pieces, threads
from tests.needs import needs_fork


@pytest.fixture(autouse=True)
def _as_many_threads_afterwards():
    before = mg.get_num_threads()
    yield
    mg.set_num_threads(before)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_set_num_threads_refuses_what_is_no_number_of_threads(n):
    with pytest.raises(ValueError, match="set_num_threads: expected a whole number of at least 1"):
        mg.set_num_threads(n)


@pytest.mark.parametrize(("cores", "expected"), [(3, 3), (None, 1)])
def test_where_the_system_does_not_say_which_cores_are_ours_all_are_counted(cores, expected, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("MINIGRAD_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_pool", None)
    assert mg.get_num_threads() == expected


def test_the_cores_that_this_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", {0: {1, 2, 5}, 1: {0}}.__getitem__, raising=False)
    monkeypatch.delenv("MINIGRAD_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_pool", None)
    assert mg.get_num_threads() == 3


def test_the_environment_sets_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 7)
    for ours, openmps, expected in (
        ("3", "5", 3),
        ("1", None, 1),
        ("", "5", 5),
        (None, "5", 5),
        (None, "0", 7),  # for OpenMP's variable only what is a number of threads counts
        (None, "4,2", 7),
        (None, "\N{FULLWIDTH DIGIT THREE}", 7),
        (None, "", 7),
        (None, None, 7),
    ):
        for name, value in (("MINIGRAD_NUM_THREADS", ours), ("OMP_NUM_THREADS", openmps)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(threads, "_pool", None)
        assert mg.get_num_threads() == expected
        assert threads.current_pool() is threads.current_pool()
    for ours in ("0", "-1", "two", "1.5", "\N{FULLWIDTH DIGIT THREE}"):
        monkeypatch.setenv("MINIGRAD_NUM_THREADS", ours)
        monkeypatch.setattr(threads, "_pool", None)
        with pytest.raises(ValueError, match="MINIGRAD_NUM_THREADS is .*; expected a whole number of at least 1"):
            mg.get_num_threads()


def test_a_library_has_its_threads_for_one_product_and_none_beside_the_pools(monkeypatch):
    class Library:
        threads = 1

        def set_num_threads(self, n):
            self.threads = n

    library, seen = Library(), []
    monkeypatch.setattr(threads.Pool, "libraries", (library,))
    monkeypatch.setattr(threads, "_has_library_threads", True)

    def product():
        seen.append(library.threads)

    for size in (1, 3, 2):
        with threads.using(threads.Pool(size)):
            threads.with_library_threads(product)
            assert library.threads == 1
            assert not threads.current_pool().busy.locked()
    assert seen == [1, 3, 2]
    with threads.using(threads.Pool(3)):
        threads.run_together([lambda: threads.with_library_threads(product), product])  # while the pool is busy
        with pytest.raises(ZeroDivisionError):
            threads.with_library_threads(lambda: 1 / 0)
        assert library.threads == 1
        assert not threads.current_pool().busy.locked()
        monkeypatch.setattr(threads, "_has_library_threads", False)
        threads.with_library_threads(product)
    assert seen[3:] == [1, 1, 1]


def test_tasks_run_in_threads_of_their_own_if_there_are_enough():
    pool, here = threads.Pool(3), threading.current_thread()
    with threads.using(pool):
        for number in (1, 2, 3, 5):
            ran = {}
            together = threading.Barrier(min(number, 3))

            def task(i, parts, ran=ran, together=together):
                if i < 3:
                    together.wait(10)  # the first three wait for each other
                ran[i] = threading.current_thread()

            threads.in_parallel(task, number)
            assert sorted(ran) == list(range(number))
            assert ran[0] is here
            assert len({ran[i] for i in range(min(number, 3))}) == min(number, 3)
            assert all(thread is here or thread.daemon for thread in ran.values())
        names = []

        def nested(i, parts):  # the pool is busy with the outer tasks: all inner ones run in the outer one's thread
            threads.in_parallel(lambda j, _: names.append((i, j, threading.current_thread())), 2)

        threads.in_parallel(nested, 2)
        assert sorted(name[:2] for name in names) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert len({thread for i, _, thread in names if i == 0}) == 1
        with pytest.raises(ZeroDivisionError):
            threads.run_together([lambda: None, lambda: 1 / 0])
        with pytest.raises(ZeroDivisionError):
            threads.run_together([lambda: 1 / 0, lambda: None])
        with pytest.raises(ZeroDivisionError):
            threads.run_together([lambda: None, lambda: 1 / 0, lambda: None])
        assert not pool.busy.locked()


def test_how_work_is_cut():
    """Into no more parts than are worth it, and into pieces that fit into the cache, equally many for each thread."""
    mg.set_num_threads(3)
    assert [threads.parts_for(work, 10) for work in (0, 9, 19, 20, 29, 30, 1000)] == [1, 1, 1, 2, 2, 3, 3]
    assert [len(pieces.pieces(1000, n)[0]) for n in (1, 50, 100, 1000, 10_000)] == [1, 1, 2, 9, 75]
    assert [pieces.pieces(1000, n)[1] for n in (1, 50, 100, 1000, 10_000)] == [1, 1, 1, 3, 3]
    assert [pieces.pieces(n, 1_000_000)[1] for n in (0, 1, 2, 3)] == [1, 1, 2, 3]
    for n, parts in ((0, 2), (5, 3), (100, 7)):
        ends = [threads.stretch(n, i, parts) for i in range(parts)]
        assert [i for own in ends for i in range(n)[own]] == list(range(n))
        assert {own.stop - own.start for own in ends} <= {n // parts, n // parts + 1}
    assert [threads.stretch(100, i, 2, 0.2) for i in range(2)] == [slice(0, 60), slice(60, 100)]


def test_the_first_task_of_all_finds_libraries_held_to_one_thread(monkeypatch):
    """Even if it is alone: with more threads a library rounds differently."""
    libraries, seen = ThreadpoolController().select(user_api="blas").lib_controllers, []
    monkeypatch.setattr(threads.Pool, "libraries", ())
    for library in libraries:
        library.set_num_threads(2)
    with threads.using(threads.Pool(1)):
        threads.run_together([lambda: seen.extend(library.num_threads for library in libraries)])
    assert seen == [1] * len(libraries)


def test_a_pool_goes_on_for_those_who_have_it_when_there_is_another():
    mine, done = threads.Pool(3), []
    with threads.using(mine):
        threads.in_parallel(lambda i, parts: done.append(i), 3)
        mg.set_num_threads(2)
    with threads.using(mine):
        threads.in_parallel(lambda i, parts: done.append(i), 3)
    assert sorted(done) == [0, 0, 1, 1, 2, 2]


def test_the_threads_of_a_pool_end_with_it():
    before = set(threading.enumerate())  # threads of earlier tests' pools may end meanwhile
    pool = threads.Pool(4)
    pool.run([lambda: None] * 4)
    started = set(threading.enumerate()) - before
    assert [thread.name for thread in started] == ["minigrad"] * 3
    del pool
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_thread_that_does_not_start_is_started_the_next_time(monkeypatch):
    pool, start, done = threads.Pool(3), threading.Thread.start, []

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        pool.run([lambda: done.append(1)] * 3)
    monkeypatch.setattr(threading.Thread, "start", start)
    pool.run([lambda: done.append(1)] * 3)
    assert done == [1, 1, 1]


@needs_fork
def test_a_forked_child_has_threads_of_its_own():
    check_in_a_forked_child(
        "from minigrad.kernels.cpu import threads; done = []",
        "threads.in_parallel(lambda i, parts: done.append(i), 3)",
        "sorted(done) == [0, 0, 1, 1, 2, 2]",
    )


@needs_fork
def test_a_forked_child_has_a_librarys_threads_of_its_own():
    """Products of few rows are left to NumPy's library, those of many to MKL, if it is there."""
    check_in_a_forked_child(
        "weight = mg.Tensor(np.ones((2000, 1000), np.float32)); sums = []",
        "sums += [F.linear(np.ones((n, 1000), np.float32), weight).sum().item() for n in (1, 100)]",
        "sums == [2e6, 2e8, 2e6, 2e8]",
    )


def check_in_a_forked_child(before, work, check):
    """A process does the work, and again in a forked child; in both the check has to hold."""
    code = (
        "import os, numpy as np, minigrad as mg; from minigrad import functional as F; mg.set_num_threads(3);"
        f"{before};{work};"
        f"pid = os.fork();{work};ok = {check};"
        "os._exit(0 if ok else 1) if pid == 0 else None;"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or not ok)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0
