"""Graders of lesson 07: bits of a weight, a group on its grid, bits for each layer under a budget."""
from __future__ import annotations

import math
from itertools import product

from .grading import Hint, call, grader, numbers, shown


@grader("07.1")
def _bits_a_weight(answer: object) -> Hint:
    """Bits of a weight with its share of scale and zero point."""
    cases = [(case, case[0] + (case[2] + case[3]) / case[1])
             for case in ((4, 64, 16, 16), (4, 128, 16, 4), (8, 32, 16, 0), (3, 100, 32, 8), (2, 16, 8, 8))]
    return numbers(answer, cases, "check.07.1")


@grader("07.2")
def _round_group(answer: object) -> Hint:
    """A list rounded to 2^bits values from the smallest to the largest, 0 among them."""
    for values, bits in (([-1.0, -0.2, 0.1, 0.9], 4), ([0.5, 1.0, 2.0, 3.1], 2), ([-3.0, -2.2, -0.7, -0.1], 3),
                         ([0.31, -0.62, 0.07, 0.55, -0.18, 0.0], 4), ([0.02, -7.0, 0.03, 0.01], 8), ([0.0, 0.0, 0.0], 4)):
        result, hint = call(answer, list(values), bits)
        if hint:
            return hint
        rounded = _numbers(result)
        if rounded is None or len(rounded) != len(values):
            return "check.07.2.shape", {"count": len(values), "arguments": shown((values, bits))}
        expected = _on_grid(values, bits)
        wrong = next((index for index, value in enumerate(expected)
                      if not math.isclose(rounded[index], value, rel_tol=1e-4, abs_tol=1e-6)), None)
        if wrong is not None:
            return _why(values, bits, rounded, wrong)
    return None


def _why(values: list[float], bits: int, rounded: list[float], wrong: int) -> Hint:
    """The hint for the first number that is wrong."""
    if not any(values) and not all(map(math.isfinite, rounded)):
        return "check.07.2.zeros", {}
    field = {"arguments": shown((values, bits)), "value": f"{values[wrong]:g}", "result": f"{rounded[wrong]:.4g}"}
    return ("check.07.2.range" if min(values) > 0 or max(values) < 0 else "check.07.2"), field


def _on_grid(values: list[float], bits: int) -> list[float]:
    low, high = min(0.0, *values), max(0.0, *values)
    if low == high:
        return list(values)
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    return [(min(max(round(value / scale) + zero, 0), 2**bits - 1) - zero) * scale for value in values]


def _numbers(result: object) -> list[float] | None:
    """The answer as floats (a tensor or an array too), or None where it is something else."""
    listed = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(listed, (list, tuple)) or not all(isinstance(value, (int, float)) for value in listed):
        return None
    return [float(value) for value in listed]


@grader("07.3")
def _choose_bits(answer: object) -> Hint:
    """Fewest errors within the budget, against every combination."""
    for layers, budget in (([(100, 5.0, 1.0), (100, 2.0, 1.5)], 1200), ([(100, 5.0, 1.0), (100, 2.0, 1.5)], 1600),
                           ([(300, 6.0, 0.0), (100, 3.0, 0.0), (100, 2.9, 0.0), (100, 2.8, 0.0)], 3600),
                           ([(50, 1.0, 0.9), (400, 4.0, 0.1), (200, 3.0, 0.2), (120, 2.0, 1.9), (30, 1.5, 0.0)], 4800),
                           ([(10, 1.0, 0.5)] * 3, 120)):
        result, hint = call(answer, list(layers), budget)
        if hint:
            return hint
        chosen = _numbers(result)
        if chosen is None or len(chosen) != len(layers) or not set(chosen) <= {4, 8}:
            return "check.07.3.shape", {"count": len(layers)}
        used = sum(size * bits for (size, _, _), bits in zip(layers, chosen, strict=True))
        if used > budget:
            return "check.07.3.budget", {"arguments": shown((layers, budget)), "used": f"{used:g}"}
        best = min(_loss(layers, bits) for bits in product((4, 8), repeat=len(layers))
                   if sum(size * one for (size, _, _), one in zip(layers, bits, strict=True)) <= budget)
        if _loss(layers, chosen) > best + 1e-9:
            return "check.07.3.better", {"arguments": shown((layers, budget)), "loss": f"{_loss(layers, chosen):g}"}
    return None


def _loss(layers: list[tuple[int, float, float]], bits) -> float:
    return sum(at_4 if one == 4 else at_8 for (_, at_4, at_8), one in zip(layers, bits, strict=True))
