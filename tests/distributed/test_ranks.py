"""Collectives on real ranks, and jobs with a rank that fails: each ends with one message, and nothing is left of it."""

import pytest

from tests.distributed.launching import run_as_torchrun, run_ranks

pytestmark = pytest.mark.mpi
QUICK = {"MINIGRAD_PATIENCE": "2"}
FAILING = "tests.distributed.failing"


@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives(ranks):
    ended = run_ranks(
        "tests.distributed.collectives", ranks, ranks=ranks, env={"MINIGRAD_CHECK_COLLECTIVES": "1"}, timeout=100
    )
    assert ended.status == 0, ended.err
    assert "all collectives are right" in ended.out
    assert not ended.errors


def test_long_work_of_one_rank_is_no_failure():
    ended = run_ranks(FAILING, "none", 0, 4, ranks=2, env=QUICK)
    assert ended.status == 0, ended.err
    assert not ended.errors
    assert sorted(ended.out.split("\n")) == ["", "rank 0 is done", "rank 1 is done"]


# What a rank does, what the message says of it, and on which ranks it is tried, of MPI and of torchrun
FAILURES = {
    "raises": (r"error: rank {rank} on \S+: ZeroDivisionError: a test$", [1], [2]),
    "raises in a thread": (r"error: rank {rank} on \S+: ZeroDivisionError: a test$", [0], []),
    "aborts": (r"error: rank {rank} on \S+: the loss is not finite$", [1], []),
    "is killed": (r"error: rank {rank}.* died: its connection was lost$", [0, 1], [0, 2]),
    "is stopped": (r"error: rank {rank}.* has not been heard of for 2 s: it is stopped", [0, 1], [0]),
    "keeps the lock": (r"error: rank {rank}.* has not been heard of for 2 s", [1], []),
    "loops": (r"error: rank {rank} on \S+ hangs: it has made no progress for \d s, at failing.py:\d+ in fa", [0], [2]),
    "exits": (r"error: rank {rank}.* ended with status 3 after collective 3; rank \d waits for it in col", [1], []),
    "leaves": (r"error: rank {rank}.* ended after collective 3; rank \d waits for it in collective 4", [0], []),
}


@pytest.mark.parametrize(("kind", "rank"), [(kind, rank) for kind, (_, ranks, _) in FAILURES.items() for rank in ranks])
def test_one_message_ends_the_job(matches, kind, rank):
    ended = run_ranks(FAILING, kind, rank, 0, ranks=2, env=QUICK)
    assert ended.status != 0
    matches(ended.errors, FAILURES[kind][0].format(rank=rank), ended.err)


def test_ranks_in_different_collectives(matches):
    ended = run_ranks(FAILING, "calls another", 2, 0, ranks=3, env=QUICK)
    assert ended.status != 0
    matches(ended.errors, r"error: rank \d on \S+ calls .* as collective 4, but rank \d calls ", ended.err)
    assert "broadcast of 3 float64 from rank 0" in ended.err
    assert "all_reduce of 10 float64 (sum)" in ended.err


@pytest.mark.parametrize(("kind", "rank"), [(kind, rank) for kind, (_, _, ranks) in FAILURES.items() for rank in ranks])
def test_ranks_of_torchrun(matches, kind, rank):
    ended = run_as_torchrun(FAILING, kind, rank, 0, ranks=3, env=QUICK)
    assert ended.status != 0
    matches(ended.errors, FAILURES[kind][0].format(rank=rank), ended.err)


def test_a_rank_that_does_not_come(matches):
    """As where the machines cannot reach each other."""
    ended = run_as_torchrun(FAILING, "none", 0, 0, ranks=1, env={"WORLD_SIZE": "2", "MINIGRAD_PATIENCE": "1"})
    assert ended.status != 0
    matches(ended.errors, "error: rank 1 has not connected to rank 0 within 3 s", ended.err)


def test_the_check_of_a_cluster():
    ended = run_ranks("minigrad.distributed.check", "--largest", 300, ranks=3)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("3 ranks on 1 machine(s), cpu, MPI\n")
    assert "ok      a step of training, against one process\n" in ended.out
    assert ended.out.count("all checks passed") == 1
