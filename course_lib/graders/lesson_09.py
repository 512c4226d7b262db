"""Graders of lesson 09: the limit of decoding, what to draw from after a rejection, how many tokens to draft."""
from __future__ import annotations

import math
import operator

from .grading import Hint, call, grader, numbers, shown


@grader("09.1")
def _decode_limit(answer: object) -> Hint:
    """Most tokens a second from bandwidth, bytes of weights, bytes of KV cache a token, context and batch."""
    cases = [(case, case[4] * case[0] / (case[1] + case[4] * case[3] * case[2]))
             for case in ((20e9, 538e6, 46_080, 1000, 1), (1008e9, 15.2e9, 57_344, 4096, 8), (320e9, 6.4e9, 114_688, 512, 16),
                          (76.8e9, 1.6e9, 12_288, 2048, 1))]
    return numbers(answer, cases, "check.09.1")


@grader("09.2")
def _residual(answer: object) -> Hint:
    """max(0, p - q), normalised; p where nothing is left."""
    for p, q in (([0.3, 0.3, 0.1, 0.1, 0.2], [0.5, 0.2, 0.15, 0.1, 0.05]), ([0.0, 1.0], [0.75, 0.25]),
                 ([0.125, 0.5, 0.375], [0.5, 0.25, 0.25]), ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])):
        result, hint = call(answer, list(p), list(q))
        if hint:
            return hint
        values = _floats(result, len(p))
        if values is None:
            return "check.09.2.shape", {"size": len(p)}
        left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
        right = [value / sum(left) for value in left] if sum(left) else p
        if all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(values, right, strict=True)):
            continue
        given = {"arguments": shown((p, q)), "result": shown(tuple(round(value, 4) for value in values))}
        if not sum(left):
            return "check.09.2.equal", given
        if min(values) < 0:
            return "check.09.2.negative", given
        if not math.isclose(sum(values), 1, abs_tol=1e-6):
            return "check.09.2.sum", {**given, "sum": f"{sum(values):.4g}"}
        return "check.09.2", given
    return None


def _floats(result: object, size: int) -> list[float] | None:
    """The answer (a list, tuple, array or tensor) as floats, or None where it is something else."""
    try:
        values = [float(value) for value in result]
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of complex numbers
        return None
    return values if len(values) == size else None


@grader("09.3")
def _best_k(answer: object) -> Hint:
    """The k from 0 to `largest` of the greatest expected speed-up; 0 where drafting does not pay."""
    for alpha, cost, largest in ((0.8, 0.05, 16), (0.6, 0.25, 8), (0.9, 0.02, 10), (0.3, 0.6, 8), (0.7, 0.1, 3),
                                 (1.0, 0.1, 12), (0.0, 0.1, 5)):
        result, hint = call(answer, alpha, cost, largest)
        if hint:
            return hint
        k = _whole(result)
        if k is None:
            return "check.09.3.whole", {"type": type(result).__name__}
        given = {"arguments": shown((alpha, cost, largest)), "result": k}
        if not 0 <= k <= largest:
            return "check.09.3.range", given
        gains = [sum(alpha**token for token in range(n + 1)) / (n * cost + 1) for n in range(largest + 1)]
        best = gains.index(max(gains))
        if k != best:
            return "check.09.3.zero" if best == 0 else "check.09.3", given
    return None


def _whole(result: object) -> int | None:
    """A whole number, of Python, numpy or torch, or None."""
    try:
        return None if isinstance(result, bool) else operator.index(result)
    except TypeError:
        return None
