"""The machinery of the graders: their registry, the verdict, and what most of them share.

A grader returns None for a right answer, or the key of a hint in strings.json with its fields. It tries an answer
on cases of its own, so that a constant that fits the example in the lesson does not pass.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..runtime import text

Hint = tuple[str, dict[str, object]] | None


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer; true when it is right, and shown in a notebook as its message."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✔' if self.passed else '✘'} {self.message}"


_graders: dict[str, Callable[[object], Hint]] = {}


def grader(exercise_id: str) -> Callable:
    """Register the decorated function as the grader of one exercise."""
    def register(function: Callable[[object], Hint]) -> Callable[[object], Hint]:
        _graders[exercise_id] = function
        return function
    return register


def exercises() -> list[str]:
    """The ids of all exercises, in order."""
    return sorted(_graders)


def check(exercise_id: str, answer: object) -> Grade:
    """Grade an answer.

    Args:
        exercise_id: lesson and exercise, such as "02.1".
        answer: what the exercise asks for: a value or a function. None means "not tried yet".

    Raises:
        LookupError: there is no such exercise; the message lists those there are.
    """
    if exercise_id not in _graders:
        raise LookupError(f"no exercise {exercise_id!r}; there are {', '.join(exercises())}")
    if answer is None:
        return Grade(False, text("check.untouched", id=exercise_id))
    hint = _graders[exercise_id](answer)
    if hint is None:
        return Grade(True, text("check.right", id=exercise_id))
    key, values = hint
    return Grade(False, text(key, **values))


def call(answer: object, *arguments: object) -> tuple[object, Hint]:
    """The learner's function applied to `arguments`, or the hint that says why it could not be."""
    if not callable(answer):
        return None, ("check.not_a_function", {"type": type(answer).__name__})
    try:
        result = answer(*arguments)
    except Exception as error:  # whatever a learner's code raises is what the learner should read
        return None, ("check.raised", {"error": f"{type(error).__name__}: {error}", "arguments": shown(arguments)})
    if result is None:
        return None, ("check.returned_none", {"arguments": shown(arguments)})
    return result, None


def shown(arguments: tuple) -> str:
    """The arguments of a call as a hint shows them, in one short piece."""
    joined = ", ".join(map(repr, arguments))
    return joined if len(joined) < 120 else joined[:117] + "…"


def numbers(answer: object, cases: list[tuple[tuple, float]], hint_key: str, tolerance: float = 1e-6) -> Hint:
    """Compare a function's numbers with the right ones, case by case."""
    for arguments, expected in cases:
        result, hint = call(answer, *arguments)
        if hint:
            return hint
        if isinstance(result, bool) or not isinstance(result, (int, float)):
            return "check.not_a_number", {"type": type(result).__name__}
        try:
            number = float(result)
        except OverflowError:  # an int beyond every float
            number = math.inf
        if not math.isclose(number, expected, rel_tol=tolerance, abs_tol=1e-12):
            return hint_key, {"arguments": shown(arguments), "result": f"{number:.6g}"}
    return None


def attempt(made: object, method: str, *arguments: object) -> tuple[object, Hint]:
    """A method of the learner's object called, or the hint that says why it could not be (lesson 12)."""
    function = getattr(made, method, None)
    if not callable(function):
        return None, ("check.12.methods", {"method": method, "type": type(made).__name__})
    try:
        result = function(*arguments)
    except NotImplementedError:
        return None, ("check.12.unwritten", {"method": method})
    except Exception as error:  # whatever a learner's code raises is what the learner should read
        return None, ("check.12.raised", {"method": method, "error": f"{type(error).__name__}: {error}"})
    return (result, None) if result is not None else (None, ("check.12.returned_none", {"method": method}))


def attempt_report(made: object) -> tuple[str, Hint]:
    """What `report()` of the learner's object returns, or the hint that says why that is no text."""
    report, hint = attempt(made, "report")
    if hint or isinstance(report, str):
        return report, hint
    return "", ("check.12.not_text", {"type": type(report).__name__})


def numbers_in(report: str) -> list[float]:
    """Every number in a text, thousands separators taken out."""
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?", report)]


def holds(numbers: list[float], value: float) -> bool:
    """Whether one of the numbers is this value, rounded as people round."""
    return any(abs(number - abs(value)) <= max(0.06 * abs(value), 0.006) for number in numbers)
