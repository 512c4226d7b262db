"""Graders of the exercises: `cl.check("02.1", answer)` accepts an answer or gives a hint."""
from .grading import Grade, check, exercises, on_grade

__all__ = ["Grade", "check", "exercises", "on_grade"]
