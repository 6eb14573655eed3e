"""What the launchers' variables say, and what is wrong with a start."""

import sys
import types

import numpy as np
import pytest

from minigrad.distributed import Communicator, DistributedError, check, communicator, launch, mpi

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, with none of another's."""
    for name in (*TORCHRUN, *launch.MPI_SIZES, *launch.RANKS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "_communicator", None)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)

    def set_to(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("", 1)),
        (TORCHRUN, ("torchrun", 4)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, ("", 1)),  # of something else
        ({"OMPI_COMM_WORLD_SIZE": "3"}, ("mpirun", 3)),  # Open MPI
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, ("mpirun", 2)),  # MPICH, and srun --mpi=pmi2
        ({"SLURM_STEP_NUM_TASKS": "8", "PMIX_RANK": "5"}, ("srun", 8)),
        ({"SLURM_STEP_NUM_TASKS": "8", "PMIX_RANK": "0", **TORCHRUN}, ("torchrun", 4)),  # torchrun, started by srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, ("", 1)),  # an interactive shell
    ],
)
def test_launchers(environment, variables, expected):
    environment(**variables)
    assert launch.launcher() == expected


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        (TORCHRUN, "cpu", r"^torchrun starts ranks that use GPUs, but the device is cpu: use mpirun -n 4 python …$"),
        (TORCHRUN, "cuda:1", r'^torchrun gives each rank a GPU of its own: expected the device "cuda", got "cuda:1"$'),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "cuda", "^expected a whole number in WORLD_SIZE, got 'many'$"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "cpu", "^srun started 8 processes that cannot find each other: give it --mpi="),
    ],
)
def test_starts_that_cannot_work(environment, variables, device, message):
    environment(**variables)
    with pytest.raises(DistributedError, match=message):
        communicator(device)


def test_mpi4py_is_missing(environment, monkeypatch):
    environment(OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(DistributedError, match=r"^mpirun started 2 processes, .* mpi4py; it .*\"minigrad\[distribut"):
        communicator()


@pytest.mark.parametrize(
    ("size", "level", "message"),
    [
        (1, 3, "^mpirun started 2 processes, but MPI sees 1: mpi4py uses MPICH 5, and mpirun is of another MPI"),
        (2, 1, "^MPI was initialized for calls from the main thread only"),
    ],
)
def test_an_mpi_that_does_not_fit(environment, monkeypatch, size, level, message):
    world = types.SimpleNamespace(Get_size=lambda: size)
    fake = types.SimpleNamespace(
        COMM_WORLD=world,
        Get_library_version=lambda: "MPICH 5\nmore",
        Query_thread=lambda: level,
        THREAD_SERIALIZED=2,
    )
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=fake))
    with pytest.raises(DistributedError, match=message):
        mpi.connect("mpirun", 2)


def test_alone(environment):
    """Nothing is imported, and nothing is changed."""
    alone = communicator()
    assert communicator("cpu") is alone
    assert type(alone) is Communicator
    assert (alone.rank, alone.size, alone.device, alone.share(5)) == (0, 1, "cpu", [5])
    array, part = np.array([1.0, 2.0]), np.zeros(2)
    for operation in ("sum", "mean"):
        alone.all_reduce(array, operation)
        alone.reduce_scatter(array, part, operation)
        assert array.tolist() == part.tolist() == [1.0, 2.0]
    alone.all_gather(part, array)
    alone.broadcast(array)
    alone.barrier()
    with alone.busy("saving"):
        assert array.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="one axis"):
        alone.all_reduce(np.ones((2, 2)))
    with pytest.raises(SystemExit, match="error: the loss"):
        alone.abort("the loss")
    alone.close()


# `python -m minigrad.distributed.check`


def test_the_check_of_one_process(environment, capsys):
    assert check.main(["--largest", "32"]) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said
    assert said.endswith("all checks passed\n")


@pytest.mark.parametrize(
    ("name", "wrong", "failing"),
    [
        ("run_all_reduce", lambda self, array, operation: array.fill(99), "all_reduce of float32"),
        ("run_reduce_scatter", lambda self, array, part, operation: None, "reduce_scatter of float64"),
        ("run_all_gather", lambda self, part, array: array.fill(99), "all_gather of int64"),
        ("run_broadcast", lambda self, array, root: array.fill(99), "broadcast of float16"),
    ],
)
def test_the_check_finds_what_is_wrong(environment, capsys, monkeypatch, name, wrong, failing):
    monkeypatch.setattr(Communicator, name, wrong)
    assert check.main(["--largest", "4"]) == 1
    said = capsys.readouterr().out
    assert f"FAILED  {failing}\n        rank 0: " in said
    assert "check(s) failed" in said
    assert "per second" not in said


def test_the_check_says_what_prevents_it(environment):
    environment(**TORCHRUN)
    with pytest.raises(SystemExit, match="^error: torchrun starts ranks that use GPUs"):
        check.main(["--device", "cpu"])
