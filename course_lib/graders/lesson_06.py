"""Graders of lesson 06: the share that LoRA trains, the loss of accumulated batches, packing."""
from __future__ import annotations

import math
from collections import Counter

from .grading import Hint, call, grader, numbers, shown


@grader("06.1")
def _lora_percent(answer: object) -> Hint:
    """Percent of a (rows, columns) matrix that its adapter of rank r has."""
    cases = [(case, 100 * case[2] * (case[0] + case[1]) / (case[0] * case[1]))
             for case in ((4096, 4096, 8), (576, 1536, 16), (192, 576, 4), (896, 4864, 64))]
    return numbers(answer, cases, "check.06.1")


@grader("06.2")
def _accumulated_loss(answer: object) -> Hint:
    """Mean loss a token from each batch's mean and number of tokens; a batch may have no labelled token (its mean is nan)."""
    cases = [([2.0, 1.0], [10, 30]), ([1.5, 2.5, 0.5], [7, 7, 7]), ([3.0], [4]), ([0.25, 4.0, 1.0], [100, 1, 9])]
    right = [(case, sum(m * n for m, n in zip(*case, strict=True)) / sum(case[1])) for case in cases]
    hint = numbers(answer, right, "check.06.2")
    if hint:
        return hint
    return numbers(answer, [(([2.0, math.nan, 1.0], [1, 0, 3]), 1.25)], "check.06.2.empty")


@grader("06.3")
def _packing(answer: object) -> Hint:
    """Rows of indices; right where no row overflows and there are no more rows than first-fit decreasing makes."""
    for lengths, capacity in (([5, 3, 4, 4], 8), ([6, 2, 2, 6, 5, 3], 8), ([10], 10), ([4, 8, 1, 4, 2, 1], 10),
                              ([4, 4, 6, 6], 10), ([70, 60, 50, 40, 30, 20, 20, 10], 100)):
        result, hint = call(answer, list(lengths), capacity)
        if hint:
            return hint
        rows = _rows(result)
        if rows is None:
            return "check.06.3.shape", {}
        if Counter(index for row in rows for index in row) != Counter(range(len(lengths))):
            return "check.06.3.once", {"arguments": shown((lengths, capacity))}
        fullest = max(sum(lengths[index] for index in row) for row in rows)
        if fullest > capacity:
            return "check.06.3.full", {"arguments": shown((lengths, capacity)), "tokens": fullest}
        if len(rows) > _first_fit_decreasing(lengths, capacity):
            return "check.06.3.rows", {"arguments": shown((lengths, capacity)), "rows": len(rows)}
    return None


def _rows(result: object) -> list[list[int]] | None:
    """The answer as lists of whole numbers, or None where it is something else; empty rows count as rows."""
    if not isinstance(result, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in result):
        return None
    rows = [list(row) for row in result]
    return rows if rows and all(type(index) is int for row in rows for index in row) else None


def _first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((index for index, free in enumerate(room) if free >= length), None)
        if place is None:
            room.append(capacity - length)
        else:
            room[place] -= length
    return len(room)
