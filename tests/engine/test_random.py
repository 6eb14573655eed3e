"""One seed, a state that survives JSON, and numbers that follow their distributions."""

import json
import math
import threading

import numpy as np
import pytest

import minigrad as mg
from minigrad import functional as F
from minigrad import random


def draw_some():
    """A bit of everything: what each draw leaves in the generator matters to the next."""
    numbers = [random.normal((3,)), random.uniform((5,), 0, 1), random.normal((1,), dtype=np.float64)]
    return b"".join([*(array.tobytes() for array in numbers), random.dropout_mask((7,), 0.5)[0].tobytes()])


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    drawn = []
    for seed in (1, 1, 2):
        mg.manual_seed(seed)
        drawn.append(draw_some())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("draws_before", [0, 1, 2, 3])
def test_the_state_survives_json_and_continues_exactly(draws_before):
    mg.manual_seed(3)
    for _ in range(draws_before):
        draw_some()
    text = json.dumps(random.get_state())
    expected = [draw_some(), draw_some()]
    mg.manual_seed(99)
    random.set_state(json.loads(text))
    assert [draw_some(), draw_some()] == expected


def test_a_state_is_a_snapshot():
    state = random.get_state()
    text = json.dumps(state)
    draw_some()
    assert json.dumps(state) == text != json.dumps(random.get_state())


def test_processes_get_seeds_of_their_own_and_nothing_is_drawn_for_them():
    mg.manual_seed(3)
    state = random.get_state()
    assert [random.derived_seed(number) for number in (1, 2)] == [4354850009587027692, 11683363136105320728]
    assert random.get_state() == state
    draw_some()
    assert random.derived_seed(1) != 4354850009587027692


def test_inside_derived_other_numbers_are_drawn_and_the_generators_of_all_processes_stay_equal():
    drawn, states = [], []
    for number in (0, 1, 1):
        mg.manual_seed(3)
        generator = random.generator()
        with random.derived(number):
            drawn.append(draw_some())
        with random.derived(number):
            assert draw_some() != drawn[-1]
        states.append(random.get_state())
        assert random.generator() is generator
    assert drawn[0] != drawn[1] == drawn[2]
    assert states[0] == states[1] == states[2]
    with random.derived(0):
        pass
    assert random.get_state() == states[0]  # nothing was drawn inside, so nothing is drawn after it


def test_dropout_draws_from_the_seed():
    masks = []
    for _ in range(2):
        mg.manual_seed(11)
        masks.append(F.dropout(mg.Tensor(np.ones(100)), 0.5).data)
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.75, 0.99])
def test_the_dropout_mask_is_false_with_probability_p(p):
    n = 200_000
    mask, scale = random.dropout_mask((n,), p)
    assert mask.dtype == bool
    assert abs((~mask).mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert math.isclose(scale, 1 / (1 - p), rel_tol=1e-3)


def test_the_scale_is_exact_for_the_probability_that_is_drawn():
    """p is rounded to 1/65536; the scale belongs to the rounded p."""
    assert random.dropout_mask((1,), 0.1)[1] == 65536 / (65536 - round(0.1 * 65536))


def test_the_dropout_mask_at_the_ends():
    mask, _ = random.dropout_mask((1_000_000,), 0.0)
    assert mask.all()
    mask, scale = random.dropout_mask((1000,), 1.0)
    assert not mask.any()
    assert scale == 0


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (5, 0, 2), (7, 3)])
def test_dropout_masks_of_any_shape(shape):
    assert random.dropout_mask(shape, 0.5)[0].shape == shape


def test_neighbors_in_a_dropout_mask_are_independent():
    """Four of them come from one 64-bit draw."""
    mask = random.dropout_mask((400_000,), 0.5)[0].astype(float) - 0.5
    for distance in (1, 2, 3, 4):
        assert abs((mask[distance:] * mask[:-distance]).mean()) < 5 * 0.25 / math.sqrt(len(mask))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_and_uniform_numbers(dtype):
    x = random.normal((200_000,), std=0.02, dtype=dtype)
    assert x.dtype == dtype
    assert abs(x.mean()) < 5 * 0.02 / math.sqrt(len(x))
    assert math.isclose(x.std(), 0.02, rel_tol=0.01)
    x = random.uniform((200_000,), -1, 3, dtype=dtype)
    assert x.dtype == dtype
    assert x.min() >= -1
    assert x.max() <= 3
    assert abs(x.mean() - 1) < 5 * 4 / math.sqrt(12 * len(x))


def test_a_generator_of_its_own_leaves_the_shared_one_alone():
    before = random.get_state()
    one, same, other = (random.new_generator(seed).random(4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert random.get_state() == before
    assert random.new_generator(None) is random.generator("cpu")


def test_blank_draws_nothing_and_gives_zeros_in_this_thread_alone():
    mg.manual_seed(1)
    with mg.random.blank():
        assert not mg.random.normal((3,), 5.0).any()
        assert mg.random.uniform((2, 2), 1.0, 2.0, dtype="float64").dtype == np.float64
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(mg.random.normal((3,))))
        thread.start()
        thread.join()
    after = mg.random.normal((3,))
    mg.manual_seed(1)
    np.testing.assert_array_equal(elsewhere[0], mg.random.normal((3,)))  # inside the context nothing else was drawn
    np.testing.assert_array_equal(after, mg.random.normal((3,)))


def test_replay_draws_the_same_again_and_leaves_no_trace():
    mg.manual_seed(1)
    state = mg.random.get_state()
    first = mg.random.normal((3,))
    with mg.random.replay(state):
        np.testing.assert_array_equal(mg.random.normal((3,)), first)
    second = mg.random.normal((3,))
    mg.manual_seed(1)
    mg.random.normal((3,))
    np.testing.assert_array_equal(second, mg.random.normal((3,)))
