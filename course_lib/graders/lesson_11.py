"""Graders of lesson 11: the labels of a conversation, an adapter merged by hand, when to stop."""
from __future__ import annotations

import math

from .grading import Hint, call, grader, shown

END, OPENING = 2, [7, 8, 9]
CONVERSATIONS = [  # (role, its tokens) of each turn; "system" and "user" open with other tokens
    [("user", [20, 21, 22]), ("assistant", [30, 31])],
    [("system", [40, 7, 8]), ("user", [20]), ("assistant", [30, 31, 32]), ("user", [21, 9]), ("assistant", [33])],
    [("user", [20, 8, 9]), ("assistant", [7, 30, 8, 9, 31])],
]


@grader("11.1")
def _answer_labels(answer: object) -> Hint:
    """Labels of every answer with its end token; padding, which is the end token too, and all else is -100."""
    for padding in (0, 4):
        for conversation in CONVERSATIONS:
            ids, labels = _conversation(conversation, padding)
            arguments = (ids, OPENING, END)
            result, hint = call(answer, list(ids), list(OPENING), END)
            if hint:
                return hint
            if not isinstance(result, (list, tuple)) or len(result) != len(ids) or not all(type(x) is int for x in result):
                return "check.11.1.shape", {"tokens": len(ids)}
            if list(result) != labels:
                return _label_mistake(list(result), ids, labels, padding), {"arguments": shown(arguments)}
    return None


def _conversation(turns: list[tuple[str, list[int]]], padding: int) -> tuple[list[int], list[int]]:
    ids, labels = [], []
    for role, content in turns:
        opening = OPENING if role == "assistant" else [7, 5, 9]
        learned = [*content, END] if role == "assistant" else [-100] * (len(content) + 1)
        ids += [*opening, *content, END]
        labels += [-100] * len(opening) + learned
    return ids + [END] * padding, labels + [-100] * padding


def _label_mistake(result: list[int], ids: list[int], labels: list[int], padding: int) -> str:
    wrong = [place for place, (given, right) in enumerate(zip(result, labels, strict=True)) if given != right]
    end = len(ids) - padding
    if any(result[place] not in (-100, ids[place]) for place in wrong):
        return "check.11.1.value"
    if all(place >= end for place in wrong):
        return "check.11.1.padding"
    if all(labels[place] == END for place in wrong):
        return "check.11.1.end"
    return "check.11.1.prompt" if any(labels[place] == -100 for place in wrong) else "check.11.1.missing"


@grader("11.2")
def _merged_weight(answer: object) -> Hint:
    """W + alpha / r · B·A, added in fp32 and given back in W's own type, W untouched."""
    import torch

    draw = torch.Generator().manual_seed(11)
    for (rows, columns, rank), alpha, dtype in (((6, 4, 2), 4, torch.float32), ((5, 8, 3), 1.5, torch.float32),
                                                ((7, 7, 1), 8, torch.float32), ((64, 48, 4), 8, torch.bfloat16)):
        weight = torch.randn(rows, columns, generator=draw).to(dtype)
        a, b = torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw)
        right = weight.float() + alpha / rank * b @ a
        given = weight.clone()
        result, hint = call(answer, given, a.clone(), b.clone(), alpha)
        if hint:
            return hint
        if not isinstance(result, torch.Tensor) or result.shape != weight.shape or result.is_complex():
            return "check.11.2.shape", {"rows": rows, "columns": columns}
        if not torch.equal(given, weight):
            return "check.11.2.in_place", {}
        if not torch.allclose(result.float(), right, atol=1e-4 if dtype == torch.float32 else 0.2):
            unscaled = [weight.float() + factor * b @ a for factor in (1, alpha, rank / alpha, 1 / rank)]
            scale = any(torch.allclose(result.float(), wrong, atol=1e-4) for wrong in unscaled)
            return "check.11.2.scale" if scale else "check.11.2", {"rows": rows, "columns": columns, "rank": rank}
        if result.dtype != dtype:
            return "check.11.2.dtype", {"dtype": str(dtype)[6:], "result": str(result.dtype)[6:]}
        if (result != right.to(dtype)).float().mean() > 0.01 and dtype == torch.bfloat16:  # a rounding may go either way
            return "check.11.2.rounding", {}
    return None


@grader("11.3")
def _early_stop(answer: object) -> Hint:
    """(evaluation at which training stops, evaluation whose checkpoint is kept), both from 0."""
    nan = math.nan
    for losses, patience in (([2.0, 1.6, 1.5, 1.55, 1.6], 2), ([2.0, 1.8, 1.7], 2), ([2.0, 1.6, 1.8, 1.7, 1.2], 2),
                             ([2.0, 1.6, 1.7, 1.5, 1.6, 1.7, 1.8], 3), ([1.0, 1.0, 1.0, 1.0], 1), ([1.5], 3),
                             ([2.0, nan, 1.9, nan, nan, 1.0], 2)):
        result, hint = call(answer, list(losses), patience)
        if hint:
            return hint
        if not isinstance(result, (list, tuple)) or len(result) != 2 or not all(type(x) is int for x in result):
            return "check.11.3.shape", {}
        stop, best = _stop(losses, patience)
        values = {"arguments": shown((losses, patience)), "result": str(tuple(result))}
        if any(map(math.isnan, losses)) and tuple(result) != (stop, best):
            return "check.11.3.nan", values
        if result[0] != stop:
            return "check.11.3.stop", values
        if result[1] != best:
            return "check.11.3.best", values
    return None


def _stop(losses: list[float], patience: int) -> tuple[int, int]:
    best = 0
    for place, loss in enumerate(losses):
        if loss < losses[best]:
            best = place
        if place - best >= patience:
            return place, best
    return len(losses) - 1, best
