"""`python -m pytest examples/exercises` shows which of your backward passes are right, and what is wrong with others.

`python -m pytest examples/exercises/ex09_layer_norm.py` checks only that one. With `--show`, a wrong gradient is drawn
beside the right one, and the path of the picture is printed. The cases to check are in
grading/exercises.py, together with the answers.
"""

from pathlib import Path

import pytest
from grading import EXERCISES, grade_file

from gpt.figures import attempt
from minigrad.viz.figures import draw_comparison

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_backward(exercise, record_property, pytestconfig):
    grade = grade_file(exercise, FOLDER)
    picture = ""
    if grade.wrong is not None and pytestconfig.getoption("show", default=False):
        picture = attempt(lambda: draw_comparison(*grade.wrong, FOLDER / exercise.file.replace(".py", ".png")))
    record_property("exercise", (exercise.file, exercise.name, grade.state, grade.message, str(picture)))
    if grade.state == "not written yet":
        pytest.skip(f"not written yet: {grade.message}")
    if grade.state == "wrong":
        pytest.fail(grade.message, pytrace=False)
