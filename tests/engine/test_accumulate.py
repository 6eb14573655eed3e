"""The rule of the accumulator: the first gradient is borrowed, the second makes an array, later ones add in place."""

from __future__ import annotations

import numpy as np

import minigrad as mg
from minigrad.accumulate import Accumulator
from minigrad.in_place import first_written_since

OUTPUT = (object(), 0)  # of a node


def test_the_first_is_borrowed_the_second_makes_an_array_and_the_third_adds_to_it():
    gradients, given = Accumulator(), [np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([100.0, 200.0])]
    gradients.add_to_output(OUTPUT, given[0])
    assert gradients.arrived[OUTPUT] is given[0]
    gradients.add_to_output(OUTPUT, given[1])
    made = gradients.arrived[OUTPUT]
    assert not any(np.shares_memory(made, g) for g in given)
    gradients.add_to_output(OUTPUT, given[2])
    assert gradients.arrived[OUTPUT] is made
    assert made.tolist() == [111.0, 222.0]
    assert [g.tolist() for g in given] == [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]


def test_one_array_that_arrives_several_times_is_not_written_to():
    gradients, one = Accumulator(), np.ones(3)
    one.flags.writeable = False
    for _ in range(4):
        gradients.add_to_output(OUTPUT, one)
    assert gradients.arrived[OUTPUT].tolist() == [4.0, 4.0, 4.0]


def test_scalars_add_up_to_an_array():
    """NumPy's sum of two 0-d arrays is a scalar, to which nothing can be added in place."""
    gradients = Accumulator()
    for _ in range(3):
        gradients.add_to_output(OUTPUT, np.ones(()))
    assert isinstance(gradients.arrived[OUTPUT], np.ndarray)
    assert gradients.arrived[OUTPUT] == 3


def test_a_leaf_copies_what_others_may_hold():
    leaf, gradient = mg.Tensor([0.0, 0.0], requires_grad=True), np.ones(2, np.float32)
    Accumulator.add_to_leaf(leaf, gradient)
    own = leaf.grad
    assert not np.shares_memory(own, gradient)
    Accumulator.add_to_leaf(leaf, gradient)
    assert leaf.grad is own
    assert own.tolist() == [2.0, 2.0]
    assert gradient.tolist() == [1.0, 1.0]


def test_a_leaf_takes_a_new_array_but_not_a_view():
    leaf, gradient = mg.Tensor([0.0, 0.0], requires_grad=True), np.ones(2, np.float32)
    Accumulator.add_to_leaf(leaf, gradient, is_new=True)
    assert leaf.grad is gradient
    leaf.zero_grad()
    view = np.ones(4, np.float32)[:2]
    Accumulator.add_to_leaf(leaf, view, is_new=True)
    assert leaf.grad.base is None
    assert not np.shares_memory(leaf.grad, view)


def test_adding_to_a_leafs_gradient_is_a_write_that_the_tape_notices():
    leaf, time = mg.Tensor([0.0, 0.0], requires_grad=True), mg.in_place.clock
    Accumulator.add_to_leaf(leaf, np.ones(2, np.float32))
    assert first_written_since(time, (leaf.grad,)) is None
    Accumulator.add_to_leaf(leaf, np.ones(2, np.float32))
    assert first_written_since(time, (None, np.zeros(2), leaf.grad)) is leaf.grad
