"""Graders of lesson 10: questions needed to separate two scores, number in an answer, pass@k."""
from __future__ import annotations

import math
from fractions import Fraction

from .grading import Hint, call, grader, numbers

# text, the number in it, kind of the hint if an answer misses it
_FORMATS = (
    ("42", 42, "plain"),
    ("#### 17", 17, "plain"),
    ("There are 3 boxes of 12, so there are 36", 36, "last"),
    ("It costs $1,234 in all.", 1234, "comma"),
    ("Together they have 12,500,000 won.", 12500000, "comma"),
    ("The temperature is -7 degrees.", -7, "minus"),
    ("She walks 2.5 km.", 2.5, "point"),
    ("The total is 96.", 96, "stop"),
    ("$$x = \\boxed{58}$$ where 2 of 60 were lost", 58, "box"),
    ("The answer is 42. It took me 3 steps.", 42, "marked"),
    ("정답은 42입니다.", 42, "korean"),
    ("사과 12개에서 5개를 먹었으므로 남은 사과는 7개입니다.", 7, "korean"),
    ("정답은 1,500원입니다. 3일 걸렸습니다.", 1500, "korean"),
    ("답: 300명", 300, "korean"),
)


@grader("10.1")
def _questions_needed(answer: object) -> Hint:
    """Expect the number of questions, rounded up, at which the difference is 1.96 standard errors."""
    for better, worse in ((0.65, 0.60), (0.9, 0.8), (0.52, 0.5), (0.3, 0.25), (0.75, 0.5)):
        terms = [(1.96 / (better - worse)) ** 2 * share * (1 - share) for share in (better, worse)]
        hint = numbers(answer, [((better, worse), math.ceil(sum(terms)))], "check.10.1")
        if hint and hint[0] == "check.10.1":
            result = answer(better, worse)
            if any(math.isclose(result, term, abs_tol=1.5) for term in terms):
                return "check.10.1.one", hint[1]
            near = math.isclose(result, sum(terms), abs_tol=1.5)
            return "check.10.1.whole" if near else "check.10.1", hint[1]
        if hint:
            return hint
    return None


@grader("10.2")
def _extract(answer: object) -> Hint:
    """Expect the final number in a model's answer in any of its usual formats, or None without one."""
    for written, right, kind in _FORMATS:
        result, hint = call(answer, written)
        if hint and (hint[0] != "check.returned_none" or kind == "plain"):
            return hint
        if isinstance(result, bool) or not isinstance(result, (int, float, Fraction, type(None))):
            return "check.not_a_number", {"type": type(result).__name__}
        if result != Fraction(right):
            return f"check.10.2.{kind}", {"written": written, "result": str(result)}
    result, hint = call(answer, "I do not know.")
    if hint and hint[0] == "check.returned_none":
        return None
    return hint or ("check.10.2.none", {"result": str(result)})


@grader("10.3")
def _pass_at_k(answer: object) -> Hint:
    """Expect the chance that one of k programs is right, drawn without replacement from n with c right."""
    for n, c, k in ((10, 3, 1), (10, 3, 5), (5, 0, 3), (200, 20, 10)):
        hint = numbers(answer, [((n, c, k), 1 - math.comb(n - c, k) / math.comb(n, k))], "check.10.3")
        if hint and hint[0] == "check.10.3":
            with_replacement = 1 - (1 - c / n) ** k
            biased = math.isclose(answer(n, c, k), with_replacement, rel_tol=1e-6)
            return "check.10.3.biased" if biased else "check.10.3", hint[1]
        if hint:
            return hint
    return numbers(answer, [((10, 8, 5), 1.0), ((4, 4, 1), 1.0)], "check.10.3.sure")
