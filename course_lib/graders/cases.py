"""Decorators for graders that call the learner's function on given arguments."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from .grading import Hint, call, grader, numbers, shown

# the arguments of each call, or a function that makes them (for tensors, to import torch late)
Cases = Iterable[tuple] | Callable[[], Iterable[tuple]]


def numeric(exercise_id: str, cases: Iterable[tuple]) -> Callable:
    """Register a reference function: the learner's function must return the same numbers for `cases`."""
    def register(right: Callable[..., float]) -> Callable[..., float]:
        @grader(exercise_id)
        def grade(answer: object) -> Hint:
            expected = [(arguments, right(*arguments)) for arguments in cases]
            return numbers(answer, expected, f"check.{exercise_id}")
        return right
    return register


def judged(exercise_id: str, cases: Cases) -> Callable:
    """Register a judge of the results that the learner's function returns for `cases`.

    The judge gets a result and the arguments of the call. It returns None if the result is right, else the
    key of a hint, alone or as (key, fields). The field `arguments` is added to every hint.
    """
    def register(judge: Callable[..., str | Hint]) -> Callable:
        @grader(exercise_id)
        def grade(answer: object) -> Hint:
            for arguments in cases() if callable(cases) else cases:
                result, hint = call(answer, *copy.deepcopy(arguments))  # an answer may change its arguments
                if hint:
                    return hint
                verdict = judge(result, *arguments)
                if verdict:
                    key, fields = (verdict, {}) if isinstance(verdict, str) else verdict
                    return key, {"arguments": shown(arguments), **fields}
            return None
        return judge
    return register


def are_whole(result: object, count: int) -> bool:
    """Tell whether `result` is a list or tuple of `count` ints."""
    return isinstance(result, (list, tuple)) and [type(number) for number in result] == [int] * count


def as_numbers(result: object, count: int) -> list[float] | None:
    """Return a list, tuple, array or tensor of `count` numbers as floats, or None for anything else."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if any(isinstance(value, (bool, str)) for value in values):  # float() would accept them
        return None
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a complex tensor
        return None
