"""How the exercises are checked: the cases, the check, and the diagnosis of a wrong gradient."""

from .exercises import EXERCISES, Exercise
from .grade import Grade, grade, grade_file

__all__ = ["EXERCISES", "Exercise", "Grade", "grade", "grade_file"]
