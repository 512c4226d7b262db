"""Graders of lesson 06: share of LoRA parameters, loss over accumulated batches, packing."""
from __future__ import annotations

import math
from collections import Counter

from .cases import judged, numeric
from .grading import Hint, grader, numbers


@numeric("06.1", [(4096, 4096, 8), (576, 1536, 16), (192, 576, 4), (896, 4864, 64)])
def _lora_percent(rows, columns, rank):
    """Parameters of a LoRA adapter in percent of the (rows, columns) matrix that it adapts."""
    return 100 * rank * (rows + columns) / (rows * columns)


@grader("06.2")
def _accumulated_loss(answer: object) -> Hint:
    """Expect the mean loss per token from means and counts of batches; the mean of an empty batch is nan."""
    batches = [([2.0, 1.0], [10, 30]), ([1.5, 2.5, 0.5], [7, 7, 7]), ([3.0], [4]),
               ([0.25, 4.0, 1.0], [100, 1, 9])]
    cases = []
    for means, counts in batches:
        total = sum(mean * count for mean, count in zip(means, counts, strict=True))
        cases.append(((means, counts), total / sum(counts)))
    hint = numbers(answer, cases, "check.06.2")
    return hint or numbers(answer, [(([2.0, math.nan, 1.0], [1, 0, 3]), 1.25)], "check.06.2.empty")


@judged("06.3", [([5, 3, 4, 4], 8), ([6, 2, 2, 6, 5, 3], 8), ([10], 10), ([4, 8, 1, 4, 2, 1], 10),
                 ([4, 4, 6, 6], 10), ([70, 60, 50, 40, 30, 20, 20, 10], 100)])
def _packing(result, lengths, capacity):
    """Expect rows of indices within `capacity`, and no more rows than first-fit decreasing needs."""
    rows = _rows(result)
    if rows is None:
        return "check.06.3.shape"
    if Counter(index for row in rows for index in row) != Counter(range(len(lengths))):
        return "check.06.3.once"
    fullest = max(sum(lengths[index] for index in row) for row in rows)
    if fullest > capacity:
        return "check.06.3.full", {"tokens": fullest}
    if len(rows) > _first_fit_decreasing(lengths, capacity):
        return "check.06.3.rows", {"rows": len(rows)}
    return None


def _rows(result: object) -> list[list[int]] | None:
    """Return the answer as lists of ints, or None if it is not one; empty rows count as rows."""
    if not isinstance(result, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in result):
        return None
    rows = [list(row) for row in result]
    return rows if rows and all(type(index) is int for row in rows for index in row) else None


def _first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Count the rows needed when each length, longest first, goes into the first row with room."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        row = next((index for index, free in enumerate(room) if free >= length), len(room))
        if row == len(room):
            room.append(capacity)
        room[row] -= length
    return len(room)
