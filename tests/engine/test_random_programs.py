"""Random programs against a naive engine. random_programs.py has the rules that make them."""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from .random_programs import RandomPrograms

STEPS = 60  # of which some two thirds are operations


def test_random_programs_have_the_gradients_of_a_naive_engine():
    run_state_machine_as_test(RandomPrograms, settings=settings(max_examples=40, stateful_step_count=STEPS))


@pytest.mark.slow
def test_two_thousand_random_programs_have_the_gradients_of_a_naive_engine():
    run_state_machine_as_test(RandomPrograms, settings=settings(max_examples=2000, stateful_step_count=STEPS))
