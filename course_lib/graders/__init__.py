"""Graders: `check("02.1", answer)` says that an answer is right, or what to look at next; never the solution.

Each lesson's graders are a file; importing it registers them.
"""
from . import (
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
    lesson_11,
    lesson_12,
)
from .grading import Grade, check, exercises

__all__ = [
    "Grade", "check", "exercises",
    "lesson_01", "lesson_02", "lesson_03", "lesson_04", "lesson_05", "lesson_06", "lesson_07", "lesson_08",
    "lesson_09", "lesson_10", "lesson_11", "lesson_12",
]
