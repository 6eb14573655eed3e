"""Memory is flat: with the garbage collector off, nothing grows and no cycle of objects is left behind."""

import contextlib
import gc
import itertools

import numpy as np
import pytest

import minigrad as mg
from gpt import checkpoint
from gpt.sample import generate, stream
from gpt.text.data import load_text
from minigrad.kernels.cpu import threads
from minigrad.memory import memory_use
from tests.gpt.runs import new_trainer
from tests.gpt.test_errors import BAD
from tests.needs import needs_fork

MOST_MORE, MOST_OBJECTS = 1 << 20, 200  # bytes and objects that the process may hold more after all repetitions


def assert_flat(call, repetitions):
    """Call it so many times, a tenth of them first."""
    for _ in range(max(5, repetitions // 10)):
        call()
    gc.collect()
    gc.disable()
    try:
        held, objects = memory_use().held, len(gc.get_objects())
        for _ in range(repetitions):
            call()
        more, more_objects = (memory_use().held or 0) - (held or 0), len(gc.get_objects()) - objects
        cycles = gc.collect()
    finally:
        gc.enable()
    print(f"{repetitions} repetitions: {more} bytes and {more_objects} objects more, {cycles} objects in cycles")
    assert cycles == 0
    assert more_objects < MOST_OBJECTS
    assert more < MOST_MORE


def some_or_all(some, everything):
    return pytest.mark.parametrize("n", [some, pytest.param(everything, marks=pytest.mark.slow)])


@some_or_all(50, 2000)
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=needs_fork)])
def test_steps(tmp_path, n, processes):
    trainer = new_trainer(tmp_path, processes=processes)
    with trainer.parallel:
        assert_flat(lambda: trainer.step(1e-3), n)


@some_or_all(10, 100)
def test_estimates_and_checkpoints(tmp_path, n):
    trainer = new_trainer(tmp_path, processes=1)
    assert_flat(lambda: (trainer.estimate_losses(), trainer.save(checkpoint.LAST)), n)


@some_or_all(20, 500)
def test_generations(tmp_path, n):
    """Every other one is abandoned in the middle."""
    model = new_trainer(tmp_path).model
    ids, numbers = np.zeros((2, 3), int), itertools.count()

    def sample():
        if next(numbers) % 2:
            next(stream(model, ids, 20, seed=1))
        else:
            generate(model, ids, 20, seed=1)

    assert_flat(sample, n)


@some_or_all(len(BAD), 600)
def test_failed_calls(n):
    calls = itertools.cycle(call for call, *_ in BAD.values())

    def fail():
        with contextlib.suppress(Exception):
            next(calls)()
            raise SystemExit("did not fail")

    assert_flat(fail, n)


@some_or_all(20, 600)
def test_failed_calls_of_threads_processes_and_files(tmp_path, n):
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    model = new_trainer(tmp_path).model
    pool = threads.Pool(3)

    def refuse():
        raise ValueError("of all things")

    calls = [
        lambda: pool.run([refuse] * 3),
        lambda: generate(model, np.full((1, 3), 999), 2),
        lambda: checkpoint.load(tmp_path / "bad.safetensors"),
        lambda: checkpoint.load(tmp_path / "nowhere"),
        lambda: load_text(tmp_path / "nowhere"),
        lambda: mg.load(tmp_path),
        lambda: model.load_state_dict({"x": np.ones(3)}),
    ]
    several = itertools.cycle(calls)

    def fail():
        with contextlib.suppress(ValueError, OSError):
            next(several)()
            raise SystemExit("did not fail")

    assert_flat(fail, n)
