"""The random numbers of GPUs, which any device can compute: Philox, a counter under a key."""

import math

import numpy as np
import pytest

import minigrad as mg
from minigrad import random


def words(*values):
    return [np.array(value, np.uint64) for value in values]


@pytest.mark.parametrize(("counter", "key", "expected"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])  # fmt: skip
def test_the_published_vectors(counter, key, expected):
    """Of Philox4x32-10, from Random123's known-answer tests."""
    assert [int(word) for word in random.philox(words(*counter), key)] == list(expected)


def test_words_are_philox_of_the_block_and_the_draw_under_the_seed():
    mg.manual_seed(0x299F31D0A4093822)
    for _ in range(7):
        random.next_draw()
    drawn = random.Counter("cpu").words(10)
    for block in range(3):
        expected = random.philox(words(block, 0, 7, 0), (0xA4093822, 0x299F31D0))
        np.testing.assert_array_equal(drawn[4 * block : 4 * block + 4], expected[: len(drawn[4 * block :])])
    assert drawn.dtype == np.uint32


def test_every_draw_is_another():
    counter = random.Counter("cpu")
    drawn = np.concatenate([counter.words(1000) for _ in range(20)])
    assert len(np.unique(drawn)) > len(drawn) - 3  # 2^32 words: among 20,000 hardly two are equal


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_follow_their_distributions(dtype):
    counter, n = random.Counter("cpu"), 200_000
    x = counter.random((n // 2, 2), dtype)
    assert (x.shape, x.dtype) == ((n // 2, 2), dtype)
    assert 0 <= x.min() <= x.max() <= 1
    assert (x.astype("float64") < 1).all() or dtype == "float16"  # which rounds up
    assert abs(x.mean(dtype="float64") - 0.5) < 5 / math.sqrt(12 * n)
    x = counter.standard_normal((n,), dtype).astype("float64")
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs((x**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((x[1:] * x[:-1]).mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (2, 5)])
def test_any_shape(shape):
    assert random.Counter("cpu").random(shape).shape == shape
    assert random.Counter("cpu").standard_normal(shape, "float32").shape == shape


def test_states_of_before_there_were_gpus():
    state = random.get_state()
    del state["gpu"]
    random.next_draw()
    random.set_state(state)
    assert random.next_draw() == (0, 0)
    random.set_state(random.get_state())
    assert random.next_draw() == (0, 1)
