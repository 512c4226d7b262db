"""Helpers of lesson 12's graders: call a method of the learner's object, read the numbers in its report."""
from __future__ import annotations

import re

from .grading import Hint


def attempt(made: object, method: str, *arguments: object) -> tuple[object, Hint]:
    """Call a method of the learner's object; return its result, or the hint that explains the failure."""
    function = getattr(made, method, None)
    if not callable(function):
        return None, ("check.12.methods", {"method": method, "type": type(made).__name__})
    try:
        result = function(*arguments)
    except NotImplementedError:
        return None, ("check.12.unwritten", {"method": method})
    except Exception as error:  # learners should read any error of their code
        return None, ("check.12.raised", {"method": method, "error": f"{type(error).__name__}: {error}"})
    return (result, None) if result is not None else (None, ("check.12.returned_none", {"method": method}))


def attempt_report(made: object) -> tuple[str, Hint]:
    """Return the text of the object's `report()`, or the hint that explains why there is none."""
    report, hint = attempt(made, "report")
    if hint or isinstance(report, str):
        return report, hint
    return "", ("check.12.not_text", {"type": type(report).__name__})


def numbers_in(report: str) -> list[float]:
    """Return all numbers in a text; commas are read as thousands separators."""
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?", report)]


def holds(numbers: list[float], value: float) -> bool:
    """Tell whether one of the numbers equals |value| up to rounding (6 %, or 0.006 if that is more)."""
    return any(abs(number - abs(value)) <= max(0.06 * abs(value), 0.006) for number in numbers)
