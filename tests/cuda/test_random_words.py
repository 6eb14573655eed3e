"""The words of a draw on a GPU: one kernel, equal bit for bit to the array operations, which run where it is off."""

from __future__ import annotations

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels, random
from minigrad.kernels.cuda.graph import Captured
from tests.fakes import cupy as fake_cupy
from tests.fakes.emulator import needs_compiler
from tests.fakes.gpu import fake_gpu

pytestmark = needs_compiler
SEED = 0x299F31D0A4093822


@pytest.fixture
def launches(monkeypatch):
    with fake_gpu(monkeypatch) as names:
        yield names


@pytest.mark.parametrize("on", [("cpu",), ("cpu", "cuda")])
@pytest.mark.parametrize("n", [1, 3, 4, 1023, 4097])
def test_the_words_are_those_of_the_cpu(launches, n, on):
    drawn = []
    with kernels.using(*on):
        for device in ("cpu", "cuda:0"):
            mg.manual_seed(SEED)
            random.skip_draws(2**32 - 1)
            drawn += [random.Counter(device).words(n) for _ in range(2)]
    for ours, theirs in zip(drawn[2:], drawn[:2], strict=True):
        assert ours.dtype == np.uint32
        np.testing.assert_array_equal(ours.get(), theirs)
    assert launches == ["random_words"] * (2 if "cuda" in on else 0)


def operations_of_a_draw():
    """How much a GPU is given to do for a draw."""
    counter = random.Counter("cuda:0")
    counter.words(4)
    stream = fake_cupy.Stream()
    with stream:
        stream.begin_capture()
        counter.words(1000)
        return len(stream.end_capture().tape)


def test_a_draw_is_one_launch(launches):
    operations = operations_of_a_draw()
    with kernels.reference():
        by_array_operations = operations_of_a_draw()
    assert operations == 2  # one makes the array, which costs no launch on a card
    assert by_array_operations > 100


def test_reference_leaves_the_kernel_out(launches):
    with kernels.reference():
        random.Counter("cuda:0").words(10)
    assert not launches


def test_in_a_captured_step_the_number_of_the_draw_is_that_of_the_replay(launches):
    step = Captured(lambda x: random.Counter("cuda:0").words(8))
    mg.manual_seed(SEED)
    drawn = [step(fake_cupy.cupy.ones(1, "float32")).get() for _ in range(6)]
    mg.manual_seed(SEED)
    for ours in drawn:
        np.testing.assert_array_equal(ours, random.Counter("cpu").words(8))
