"""How the exercises are checked: the cases, the check, and the diagnosis of a wrong gradient."""

from .exercises import OPERATIONS, Exercise
from .grade import Functions, Grade, grade, grade_file
from .slopes import check_slopes
from .walk import check_walk

EXERCISES = [
    Functions("ex00_slopes.py", "Slopes", ("derivative", "gradient", "count_pairs", "probabilities"), check_slopes),
    *OPERATIONS,
    Functions("ex11_walk.py", "Walk", ("order", "backward"), check_walk),
]

__all__ = ["EXERCISES", "OPERATIONS", "Exercise", "Functions", "Grade", "grade", "grade_file"]
