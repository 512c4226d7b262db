"""Answers to the exercises of lesson 04."""
import re

import torch


def size(text, *, words=str.split, compare=True):
    """Written with a regex, unlike the reference solution; or with one of the usual mistakes."""
    hangul, latin = re.findall("[가-힣]", text), re.findall("[A-Za-z]", text)
    return len(hangul) if len(hangul) > (len(latin) if compare else 0) else len(words(text))


def pairs(texts, threshold, *, fold=str.casefold, at_least=1, pieces=set, divide="union", strict=False):
    """All pairs, compared by their pieces; with one of the usual mistakes."""
    cut = [pieces(fold(text)[i:i + 5] for i in range(max(at_least, len(text) - 4))) for text in texts]
    found = []
    for i, one in enumerate(cut):
        for j in range(i + 1, len(cut)):
            other = cut[j]
            common = len([piece for piece in one if piece in other])
            whole = {"union": len(set(one) | set(other)), "smaller": min(len(one), len(other))}[divide]
            share = common / whole if whole else 0.0
            if share > threshold if strict else share >= threshold - 1e-12:
                found.append((i, j))
    return found


def staged(difficulty, step, total_steps, stages, *, later=0, hard_first=False, place=True, normalise=True):
    stage = step // (total_steps // stages) + 1 + later
    count = max(0, min(len(difficulty), len(difficulty) * stage // stages))
    order = sorted(range(len(difficulty)),
                   key=lambda row: -difficulty[row] if hard_first else difficulty[row])
    weights = [0.0] * len(difficulty)
    for position, row in enumerate(order[:count]):
        weights[row if place else position] = 1 / count if normalise else 1.0
    return weights


RIGHT = [
    ("04.1", size),
    ("04.2", pairs),
    ("04.2", lambda texts, threshold: {tuple(pair) for pair in pairs(texts, threshold)}),
    ("04.3", staged),
    ("04.3", lambda *arguments: torch.tensor(staged(*arguments))),
]
WRONG = [
    ("04.1", lambda text: len(text.split()), "check.04.1"),
    ("04.1", lambda text: len(text), "check.04.1"),
    ("04.1", lambda text: size(text, compare=False), "check.04.1"),
    ("04.1", lambda text: size(text, words=lambda t: t.split(" ")), "check.04.1"),
    ("04.1", lambda text: "many", "check.not_a_number"),
    ("04.2", lambda texts, t: pairs(texts, t, fold=str), "check.04.2.missing"),
    ("04.2", lambda texts, t: pairs(texts, t, at_least=0), "check.04.2.missing"),
    ("04.2", lambda texts, t: pairs(texts, t, strict=True), "check.04.2.missing"),
    ("04.2", lambda texts, t: [], "check.04.2.missing"),
    ("04.2", lambda texts, t: pairs(texts, t, pieces=list), "check.04.2.extra"),
    ("04.2", lambda texts, t: pairs(texts, t, divide="smaller"), "check.04.2.extra"),
    ("04.2", lambda texts, t: [(i, j) for j in range(len(texts)) for i in range(j)], "check.04.2.extra"),
    ("04.2", lambda texts, t: [(j, i) for i, j in pairs(texts, t)], "check.04.2.form"),
    ("04.2", lambda texts, t: [[0, 1, 2]], "check.04.2.form"),
    ("04.3", lambda *arguments: staged(*arguments, later=1), "check.04.3.open"),
    ("04.3", lambda *arguments: staged(*arguments, later=-1), "check.04.3.open"),
    ("04.3", lambda difficulty, *_: [1 / len(difficulty)] * len(difficulty), "check.04.3.open"),
    ("04.3", lambda *arguments: staged(*arguments, hard_first=True), "check.04.3.places"),
    ("04.3", lambda *arguments: staged(*arguments, place=False), "check.04.3.places"),
    ("04.3", lambda *arguments: staged(*arguments, normalise=False), "check.04.3.values"),
    ("04.3", lambda *arguments: staged(*arguments)[:1], "check.04.3.shape"),
    ("04.3", lambda *arguments: [float("nan")] * 4, "check.04.3.shape"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"len\(|set\(|sorted|split\(|union|max\(1|//"
