"""Registry of the graders, the function `check`, and helpers that most graders share.

A grader returns None for a right answer, else (key, fields) of a hint in strings.json. It tests an answer
on its own cases, so a constant that fits the example in the lesson does not pass.
"""
from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..runtime import text

Hint = tuple[str, dict[str, object]] | None


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer: true if the answer is right, shown in a notebook as its message."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✔' if self.passed else '✘'} {self.message}"


_graders: dict[str, Callable[[object], Hint]] = {}
_listeners: list[Callable[[str, bool, str, dict[str, object]], None]] = []


def grader(exercise_id: str) -> Callable:
    """Register the decorated function as the grader of an exercise."""
    def register(function: Callable[[object], Hint]) -> Callable[[object], Hint]:
        _graders[exercise_id] = function
        return function
    return register


@lru_cache
def lessons() -> tuple[str, ...]:
    """Return the numbers of the lessons that have graders, such as "02"."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name.removeprefix("lesson_") for name in names if re.fullmatch(r"lesson_\d\d", name)))


def exercises(lesson: str | None = None) -> list[str]:
    """Return the ids of the exercises of one lesson (such as "02"), or of all lessons, in order.

    Raises:
        LookupError: the lesson has no exercises; the message lists the lessons that have some.
    """
    if lesson is not None and lesson not in lessons():
        raise LookupError(f"lesson {lesson!r} has no exercises; those of {', '.join(lessons())} have")
    for number in lessons() if lesson is None else [lesson]:
        pkgutil.resolve_name(f"{__package__}.lesson_{number}")  # importing the file registers its graders
    return sorted(exercise_id for exercise_id in _graders if lesson in (None, exercise_id[:2]))


def on_grade(listener: Callable[[str, bool, str, dict[str, object]], None]) -> None:
    """Call `listener(exercise_id, passed, key, fields)` with every later grade; key of strings.json."""
    _listeners.append(listener)


def check(exercise_id: str, answer: object) -> Grade:
    """Grade the answer to an exercise such as "02.1": a value or a function, or None for "not tried yet".

    Raises:
        LookupError: there is no such exercise; the message lists the exercises of the lesson.
    """
    known = exercises(str(exercise_id)[:2])
    if exercise_id not in known:
        raise LookupError(f"no exercise {exercise_id!r}; there are {', '.join(known)}")
    hint = ("check.untouched", {"id": exercise_id}) if answer is None else _graders[exercise_id](answer)
    key, fields = hint or ("check.right", {"id": exercise_id})
    for listener in _listeners:
        listener(exercise_id, hint is None, key, fields)
    return Grade(hint is None, text(key, **fields))


def call(answer: object, *arguments: object) -> tuple[object, Hint]:
    """Call the learner's function; return its result, or the hint that explains the failure."""
    if not callable(answer):
        return None, ("check.not_a_function", {"type": type(answer).__name__})
    try:
        result = answer(*arguments)
    except Exception as error:  # learners should read any error of their code
        message = f"{type(error).__name__}: {error}"
        return None, ("check.raised", {"error": message, "arguments": shown(arguments)})
    if result is None:
        return None, ("check.returned_none", {"arguments": shown(arguments)})
    return result, None


def shown(arguments: tuple) -> str:
    """Format the arguments of a call for a hint, shortened to fewer than 120 characters."""
    joined = ", ".join(map(repr, arguments))
    return joined if len(joined) < 120 else joined[:117] + "…"


def numbers(answer: object, cases: list[tuple[tuple, float]], hint_key: str, tolerance: float = 1e-6) -> Hint:
    """Compare the numbers that a function returns with the expected ones; return the first hint, or None."""
    for arguments, expected in cases:
        result, hint = call(answer, *arguments)
        if hint:
            return hint
        if isinstance(result, bool) or not isinstance(result, (int, float)):
            return "check.not_a_number", {"type": type(result).__name__}
        try:
            number = float(result)
        except OverflowError:  # the int is too large for a float
            number = math.inf
        if not math.isclose(number, expected, rel_tol=tolerance, abs_tol=1e-12):
            return hint_key, {"arguments": shown(arguments), "result": f"{number:.6g}"}
    return None
