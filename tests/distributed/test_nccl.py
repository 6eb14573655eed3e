"""NCCL's communicator on the fakes of CuPy and NCCL, with ranks that are threads. None of it ran on a card."""

from __future__ import annotations

import inspect
import re
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest

from minigrad.backend import DeviceError
from minigrad.distributed import DistributedError, launch
from minigrad.distributed.control import Control
from minigrad.distributed.nccl import NCCLCommunicator, gpu_of
from minigrad.kernels.cuda import graph
from tests.fakes import cupy as fake_cupy
from tests.fakes import nccl as fake_nccl


class Failed(Exception):
    """The job was ended."""


class ThreadControl(Control):
    """The control of a rank that is a thread: it shares values over a barrier, and only says that the job ended."""

    def __init__(self, rank, size, barrier, values):
        super().__init__(rank, size)
        self.barrier, self.values, self.goodbyes = barrier, values, 0

    def share(self, value):
        self.values[self.rank] = value
        self.barrier.wait(10)
        shared = list(self.values)
        self.barrier.wait(10)
        return shared

    def fail(self, reason):
        raise Failed(reason)

    def say_goodbye(self):
        self.goodbyes += 1


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    fake_cupy.install(monkeypatch)
    fake_nccl.install(monkeypatch)
    return fake_cupy.cupy


def on_ranks(function, size=2):
    """What the function returns on each rank, or raises."""
    barrier, values, results = threading.Barrier(size), [None] * size, [None] * size

    def run(rank):
        try:
            ranks = NCCLCommunicator(ThreadControl(rank, size, barrier, values), rank)
            results[rank] = function(ranks)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def checked(results):
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def array_of(rank, n, dtype):
    return np.random.default_rng(rank).integers(-8, 8, n).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64])
@pytest.mark.parametrize("n", [1, 1000])
def test_collectives(cupy, dtype, n):
    """As those of MPI, which tests/distributed/collectives.py checks."""

    def check(ranks):
        r, size = ranks.rank, ranks.size
        assert (ranks.name, ranks.device, size) == ("NCCL", f"cuda:{r}", 2)
        arrays = [array_of(rank, n * size, dtype) for rank in range(size)]
        total = sum(array.astype(np.float64) for array in arrays)
        array = cupy.array(arrays[r])
        ranks.all_reduce(array)
        np.testing.assert_array_equal(array.get().astype(np.float64), total)
        part, gathered = cupy.zeros(n, dtype), cupy.zeros(n * size, dtype)
        ranks.reduce_scatter(cupy.array(arrays[r]), part)
        np.testing.assert_array_equal(part.get().astype(np.float64), np.split(total, size)[r])
        ranks.all_gather(part, gathered)
        np.testing.assert_array_equal(gathered.get().astype(np.float64), total)
        gathered[: r * n], gathered[(r + 1) * n :] = 0, 0
        ranks.all_gather(gathered[r * n : (r + 1) * n], gathered)
        np.testing.assert_array_equal(gathered.get().astype(np.float64), total)
        for root in range(size):
            array = cupy.array(arrays[r])
            ranks.broadcast(array, root)
            np.testing.assert_array_equal(array.get(), arrays[root])
        if np.dtype(dtype).kind != "i":
            array = cupy.array(arrays[r])
            ranks.all_reduce(array, "mean")
            np.testing.assert_array_equal(array.get().astype(np.float64), (total / size).astype(dtype))
        ranks.barrier()
        assert ranks.share(r) == [0, 1]
        assert ranks.control.progress.started == ranks.control.progress.completed > 0

    checked(on_ranks(check))


def test_streams_wait_for_each_other_and_the_host_for_none(cupy):
    """The collective comes after what the current stream was given, and what is given after `wait` comes after it."""

    def check(ranks):
        computing = cupy.cuda.Stream(non_blocking=True)
        array = cupy.ones(8)
        before = fake_cupy.synchronizations
        with computing:
            work = ranks.start_all_reduce(array)
            assert ranks.stream.waits_for == [computing]
            assert computing.waits_for == []
            assert ranks.stream is not computing
            assert ranks.stream.non_blocking
            work.wait()
            assert computing.waits_for == [ranks.stream]
        return fake_cupy.synchronizations - before

    assert checked(on_ranks(check)) == [0, 0]


def test_arrays_are_kept_until_the_gpu_has_done_its_work(cupy, monkeypatch):
    """CuPy would give their memory to others."""
    monkeypatch.setattr(fake_cupy.Event, "done", False)

    def check(ranks):
        work = ranks.start_all_reduce(cupy.ones(8))
        work.wait()
        assert len(ranks.running) == 1
        kept = [cell.cell_contents for cell in ranks.running[0][1].__closure__]
        assert any(isinstance(value, fake_cupy.ndarray) and value.size == 8 for value in kept)
        assert (ranks.control.progress.started, ranks.control.progress.completed) == (2, 1)  # the start of NCCL is one
        return ranks

    ranks = checked(on_ranks(check))
    monkeypatch.setattr(fake_cupy.Event, "done", True)
    for each in ranks:
        each.control.now_at()  # as the thread of `control` does
        assert not each.running
        assert each.control.progress.completed == 2


def test_arrays_of_another_place_are_refused(cupy):
    def check(ranks):
        with pytest.raises(ValueError, match=f"all_reduce: NCCL expected an array on cuda:{ranks.rank}, got cpu"):
            ranks.all_reduce(np.ones(3))
        with cupy.cuda.Device(1 - ranks.rank):
            elsewhere = cupy.ones(3)
        with pytest.raises(ValueError, match=f"on cuda:{ranks.rank}, got cuda:{1 - ranks.rank}"):
            ranks.all_reduce(elsewhere)
        with pytest.raises(TypeError, match="got int32"):
            ranks.all_reduce(cupy.ones(3, np.int32))

    checked(on_ranks(check))


def test_the_end(cupy):
    def check(ranks):
        ranks.all_reduce(cupy.ones(2))
        ranks.close()
        ranks.close()
        with pytest.raises(DistributedError, match="closed"):
            ranks.all_reduce(cupy.ones(2))
        return ranks.control.goodbyes

    assert checked(on_ranks(check)) == [1, 1]


def test_failures_of_nccl_end_the_job(cupy):
    def check(ranks):
        ranks.library.ranks.failed = 6
        with pytest.raises(Failed, match="NCCL failed: NCCL_ERROR_REMOTE_ERROR"):
            ranks.control.each_beat()
        assert not ranks.library.ranks.comm  # aborted
        with pytest.raises(fake_nccl.NcclError, match="INVALID_ARGUMENT: comm is a null pointer"):
            ranks.start_all_reduce(cupy.ones(2))

    checked(on_ranks(check))


def test_a_captured_step_has_no_collectives(cupy, monkeypatch):
    monkeypatch.setattr(graph, "_recording", object())

    def check(ranks):
        with pytest.raises(graph.CaptureError, match="a collective of NCCL"):
            ranks.start_all_reduce(cupy.ones(2))

    checked(on_ranks(check))


def test_which_gpu(cupy, monkeypatch):
    assert gpu_of(1)[1] == 1
    with pytest.raises(DeviceError, match=r'device "cuda:2" is not there: this machine has 2 GPU\(s\)'):
        gpu_of(2)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu_of(2)[1] == 0


def test_nccl_is_missing(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.nccl, "available", False)
    for result in on_ranks(lambda ranks: None):
        assert isinstance(result, DistributedError)
        assert str(result) == 'CuPy does not find NCCL: pip install "nvidia-nccl-cu12>=2.18.1,<3"'


def test_it_is_chosen_by_the_launcher(cupy, monkeypatch):
    """Under torchrun. What goes wrong after the ranks have found each other ends all of them."""
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("MASTER_ADDR", "a"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(launch, "_communicator", None)
    barrier, values = threading.Barrier(1), [None]
    monkeypatch.setattr(launch, "join_torchrun", lambda: ThreadControl(0, 1, barrier, values))
    monkeypatch.setattr(launch.atexit, "register", lambda function: None)
    ranks = launch.communicator("cuda")
    assert (ranks.name, ranks.device) == ("NCCL", "cuda:0")
    assert launch.communicator() is launch.communicator("cuda") is ranks
    monkeypatch.setattr(launch, "_communicator", None)
    monkeypatch.setattr(cupy.cuda.nccl, "available", False)
    with pytest.raises(Failed, match="^CuPy does not find NCCL"):
        launch.communicator("cuda")


# The fake is as strict as what it stands for


def fake_ranks(function):
    return on_ranks(lambda ranks: function(ranks, ranks.library.ranks, ranks.stream.ptr))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("(array, array.data.ptr, 4, 7, 0, stream)", TypeError),
        ("(array.data.ptr, array.data.ptr, 4.0, 7, 0, stream)", TypeError),
        ("(array.data.ptr, array.data.ptr, 4, 7, 0, ranks.stream)", TypeError),
        ("(array.data.ptr, array.data.ptr, 4, 7, 0)", TypeError),
        ("(array.data.ptr, array.data.ptr, 4, 'float32', 0, stream)", TypeError),
        ("(array.data.ptr, array.data.ptr, 4, 11, 0, stream)", fake_nccl.NcclError),
        ("(array.data.ptr, array.data.ptr, -1, 7, 0, stream)", OverflowError),
        ("(array.data.ptr + 1, array.data.ptr, 1, 7, 0, stream)", fake_nccl.NcclError),
        ("(array.data.ptr + 4, array.data.ptr, 3, 7, 0, stream)", fake_nccl.NcclError),  # overlapping
        ("(0, array.data.ptr, 4, 7, 0, stream)", fake_nccl.NcclError),
        ("(array.data.ptr, array.data.ptr, 4, 7, 0, 12345)", fake_nccl.NcclError),
        ("(array.data.ptr, array.data.ptr, 4 + ranks.rank, 7, 0, stream)", fake_nccl.NcclError),  # sizes that differ
        (
            "(array.data.ptr, array.data.ptr, 4, 7, 4 * ranks.rank, stream)",
            fake_nccl.NcclError,
        ),  # operations that differ
    ],
)
def test_calls_that_the_fake_refuses(cupy, arguments, error):
    def check(ranks, nccl, stream):
        array = cupy.ones(8, np.float32)  # noqa: F841
        with pytest.raises(error):
            eval(f"nccl.allReduce{arguments}")

    checked(fake_ranks(check))


def test_the_fake_refuses_another_order(cupy):
    def check(ranks, nccl, stream):
        array = cupy.ones(8, np.float32)
        calls = [lambda: ranks.all_reduce(array), lambda: ranks.broadcast(array)]
        with pytest.raises(fake_nccl.NcclError, match="the ranks make different calls"):
            calls[ranks.rank]()

    checked(fake_ranks(check))


def test_the_fake_refuses_a_rank_that_is_alone(cupy, monkeypatch):
    monkeypatch.setattr(fake_nccl, "PATIENCE", 0.2)

    def check(ranks, nccl, stream):
        if ranks.rank == 0:
            with pytest.raises(fake_nccl.NcclError, match="the real one hangs here"):
                ranks.all_reduce(cupy.ones(8))

    checked(fake_ranks(check))


def test_the_fake_refuses_ids_and_gpus(cupy):
    with pytest.raises(TypeError, match="expected bytes, got tuple"):
        fake_nccl.NcclCommunicator(1, tuple(fake_nccl.get_unique_id()), 0)
    with pytest.raises(AssertionError):
        fake_nccl.NcclCommunicator(1, b"short", 0)
    identity, errors = fake_nccl.get_unique_id(), []

    def join(rank):
        try:
            fake_nccl.NcclCommunicator(2, identity, rank)
        except fake_nccl.NcclError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert "Duplicate GPU detected: [0, 0]" in errors[0]


def test_the_fake_has_the_signatures_and_constants_of_cupys(monkeypatch):
    """Where CuPy and NCCL are installed. CuPy's signatures are the first lines of its docstrings."""
    monkeypatch.undo()
    pytest.importorskip("cupy", reason="CuPy is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that NCCL is not installed
        from cupy.cuda import nccl

    if not nccl.available:
        pytest.skip("NCCL is not installed")
    assert {name: getattr(nccl, name) for name in fake_nccl.CONSTANTS} == fake_nccl.CONSTANTS
    assert type(nccl.get_unique_id()) is bytes
    for name, method in vars(fake_nccl.NcclCommunicator).items():
        if name.startswith("_"):
            continue
        said = re.match(r"\w+\.\w+\((.*)\)", getattr(nccl.NcclCommunicator, name).__doc__)[1]
        assert [part.split()[-1] for part in said.split(", ")] == list(inspect.signature(method).parameters)
    said = re.match(r"\w+\((.*)\)", nccl.NcclCommunicator.__doc__)[1]
    names = [part.split()[-1].partition("=")[0] for part in said.replace("=None", "").split(", ")]
    assert names == list(inspect.signature(fake_nccl.NcclCommunicator).parameters)
