"""`python -m pytest examples/exercises` shows which of your backward passes are right, and what is wrong with others.

`python -m pytest examples/exercises/ex09_layer_norm.py` checks only that one. The cases to check are in
grading/exercises.py, together with the answers.
"""

from pathlib import Path

import pytest
from grading import EXERCISES, grade_file

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_backward(exercise, record_property):
    grade = grade_file(exercise, FOLDER)
    record_property("exercise", (exercise.file, exercise.name, grade.state, grade.message))
    if grade.state == "not written yet":
        pytest.skip(f"not written yet: {grade.message}")
    if grade.state == "wrong":
        pytest.fail(grade.message, pytrace=False)
