"""How the exercises are checked: on which arguments, by what, and what a wrong gradient says of the mistake."""

from .exercises import EXERCISES, Exercise
from .grade import Grade, grade, grade_file

__all__ = ["EXERCISES", "Exercise", "Grade", "grade", "grade_file"]
