"""Graders of lesson 11: labels of a conversation, merging an adapter, early stopping."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .cases import are_whole, judged
from .grading import Hint, call, grader, shown

if TYPE_CHECKING:
    import torch

END = 2
OPENING = [7, 8, 9]
CONVERSATIONS = [  # turns (role, tokens); only assistant turns begin with OPENING
    [("user", [20, 21, 22]), ("assistant", [30, 31])],
    [("system", [40, 7, 8]), ("user", [20]), ("assistant", [30, 31, 32]), ("user", [21, 9]),
     ("assistant", [33])],
    [("user", [20, 8, 9]), ("assistant", [7, 30, 8, 9, 31])],
]


@grader("11.1")
def _answer_labels(answer: object) -> Hint:
    """Expect labels for every answer and its end token; -100 elsewhere, also for padding with that token."""
    for padding in (0, 4):
        for conversation in CONVERSATIONS:
            ids, labels = _conversation(conversation, padding)
            result, hint = call(answer, list(ids), list(OPENING), END)
            if hint:
                return hint
            if not are_whole(result, len(ids)):
                return "check.11.1.shape", {"tokens": len(ids)}
            if list(result) != labels:
                key = _label_mistake(list(result), ids, labels, padding)
                return key, {"arguments": shown((ids, OPENING, END))}
    return None


def _conversation(turns: list[tuple[str, list[int]]], padding: int) -> tuple[list[int], list[int]]:
    ids = []
    labels = []
    for role, content in turns:
        opening = OPENING if role == "assistant" else [7, 5, 9]
        learned = [*content, END] if role == "assistant" else [-100] * (len(content) + 1)
        ids += [*opening, *content, END]
        labels += [-100] * len(opening) + learned
    return ids + [END] * padding, labels + [-100] * padding


def _label_mistake(result: list[int], ids: list[int], labels: list[int], padding: int) -> str:
    wrong = [index for index, (given, right) in enumerate(zip(result, labels, strict=True)) if given != right]
    end = len(ids) - padding
    if any(result[index] not in (-100, ids[index]) for index in wrong):
        return "check.11.1.value"
    if all(index >= end for index in wrong):
        return "check.11.1.padding"
    if all(labels[index] == END for index in wrong):
        return "check.11.1.end"
    return "check.11.1.prompt" if any(labels[index] == -100 for index in wrong) else "check.11.1.missing"


@grader("11.2")
def _merged_weight(answer: object) -> Hint:
    """Expect W + alpha / r · B·A, added in fp32 and returned in the dtype of W, with W unchanged."""
    import torch

    draw = torch.Generator().manual_seed(11)
    cases = ((6, 4, 2, 4, torch.float32), (5, 8, 3, 1.5, torch.float32), (7, 7, 1, 8, torch.float32),
             (64, 48, 4, 8, torch.bfloat16))
    for rows, columns, rank, alpha, dtype in cases:
        weight = torch.randn(rows, columns, generator=draw).to(dtype)
        a = torch.randn(rank, columns, generator=draw)
        b = torch.randn(rows, rank, generator=draw)
        given = weight.clone()
        result, hint = call(answer, given, a.clone(), b.clone(), alpha)
        if hint:
            return hint
        if not isinstance(result, torch.Tensor) or result.shape != weight.shape or result.is_complex():
            return "check.11.2.shape", {"rows": rows, "columns": columns}
        if not torch.equal(given, weight):
            return "check.11.2.in_place", {}
        key = _merge_mistake(result, weight, b @ a, alpha, rank)
        if key:
            fields = {"rows": rows, "columns": columns, "rank": rank}
            return key, {**fields, "dtype": str(dtype)[6:], "result": str(result.dtype)[6:]}
    return None


def _merge_mistake(
    result: torch.Tensor, weight: torch.Tensor, product: torch.Tensor, alpha: float, rank: int,
) -> str | None:
    import torch

    exact = weight.dtype == torch.float32
    right = weight.float() + alpha / rank * product
    if not torch.allclose(result.float(), right, atol=1e-4 if exact else 0.2):
        factors = (1, alpha, rank / alpha, 1 / rank)
        unscaled = any(torch.allclose(result.float(), weight.float() + factor * product, atol=1e-4)
                       for factor in factors)
        return "check.11.2.scale" if unscaled else "check.11.2"
    if result.dtype != weight.dtype:
        return "check.11.2.dtype"
    # up to 1 % may differ: sums in another order can round the other way
    twice = not exact and (result != right.to(weight.dtype)).float().mean() > 0.01
    return "check.11.2.rounding" if twice else None


@judged("11.3", [
    ([2.0, 1.6, 1.5, 1.55, 1.6], 2), ([2.0, 1.8, 1.7], 2), ([2.0, 1.6, 1.8, 1.7, 1.2], 2),
    ([2.0, 1.6, 1.7, 1.5, 1.6, 1.7, 1.8], 3), ([1.0, 1.0, 1.0, 1.0], 1), ([1.5], 3),
    ([2.0, math.nan, 1.9, math.nan, math.nan, 1.0], 2)])
def _early_stop(result, losses, patience):
    """Expect (evaluation at which training stops, evaluation with the kept checkpoint), counted from 0."""
    if not are_whole(result, 2):
        return "check.11.3.shape"
    stop, best = _stop(losses, patience)
    if tuple(result) == (stop, best):
        return None
    wrong = "nan" if any(map(math.isnan, losses)) else "stop" if result[0] != stop else "best"
    return f"check.11.3.{wrong}", {"result": str(tuple(result))}


def _stop(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for index, loss in enumerate(losses):
        if loss < losses[best]:
            best = index
        if index - best >= patience:
            return index, best
    return len(losses) - 1, best
