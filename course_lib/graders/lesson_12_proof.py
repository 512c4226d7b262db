"""Grader of exercise 12.2: a proof of gain, tried with a pretended training, whose outcome is known."""
from __future__ import annotations

import math
from collections.abc import Iterator

from .grading import Hint, attempt, attempt_report, call, grader, holds, numbers_in

OUTSIDE = [{"question": f"An everyday question, number {number}?", "answer": f"outside {number}"} for number in range(24)]


def _records() -> list[dict[str, str]]:
    """Questions in the order of their topics; each fifth comes a second time, a little changed."""
    from ..data import load_qa

    rows = sorted(load_qa("en").select(range(60, 108)), key=lambda row: row["topic"])
    found = [{"question": row["question"], "answer": row["id"]} for row in rows]
    return found + [{**record, "question": "Please: " + record["question"]} for record in found[::5]]


class Pretended:
    """Stands for a model; training changes it in place, as an adapter does."""

    def __init__(self) -> None:
        self.trained = False


class Workshop:
    """The four functions that a learner's class is given, and what they were called with."""

    def __init__(self) -> None:
        self.taught, self.asked = [], []

    def __repr__(self) -> str:
        return "workshop"

    def load(self):
        return Pretended(), "tokenizer"

    def train(self, model, tokenizer, records):
        self.taught.append([record["question"] for record in records])
        model.trained = True
        return model

    def ask(self, model, tokenizer, records):
        self.asked.append((model.trained, [record["question"] for record in records]))
        return [record["answer"] if self._knows(model, place, record) else "?" for place, record in enumerate(records)]

    def _knows(self, model, place, record) -> bool:
        outside = record["answer"].startswith("outside")
        if outside:
            return place % 4 != 0 if not model.trained else place % 4 == 1
        return place % 5 == 0 or (model.trained and place % 7 != 3)

    def score(self, text, record) -> float:
        return float(text == record["answer"])


@grader("12.2")
def _specialist(answer: object) -> Hint:
    """A class whose objects split without leakage, score before and after, decide, and say what got worse."""
    for step in (_split, _decide, _run):
        workshop = Workshop()
        made, hint = call(answer, workshop.load, workshop.train, workshop.ask, workshop.score)
        hint = hint or step(made, workshop)
        if hint:
            return hint
    return None


def _split(made: object, workshop: Workshop) -> Hint:
    records = _records()
    parts = []
    for seed in (0, 1, 0):
        result, hint = attempt(made, "split", [dict(record) for record in records], 0.25, seed)
        hint = hint or _is_split(result, records)
        if hint:
            return hint
        parts.append([record["question"] for record in result[1]])
    if parts[0] != parts[2]:
        return "check.12.2.seed", {}
    places = sorted(next(place for place, record in enumerate(records) if record["question"] == one) for one in parts[0])
    if parts[0] == parts[1] or places[-1] - places[0] == len(places) - 1:
        return "check.12.2.shuffle", {}
    return None


def _is_split(result: object, records: list[dict]) -> Hint:
    from ..filters import near_duplicates

    try:
        train, test = ([record["question"] for record in part] for part in result)
    except (TypeError, ValueError, KeyError, IndexError):
        return "check.12.2.pair", {"type": type(result).__name__}
    if not set(train + test) <= {record["question"] for record in records} or not train:
        return "check.12.2.pair", {"type": type(result).__name__}
    if set(train) & set(test):
        return "check.12.2.both", {"count": len(set(train) & set(test))}
    for group in near_duplicates(train + test, threshold=0.5):
        sides = {place < len(train) for place in group}
        if len(sides) > 1:
            return "check.12.2.leak", {"question": (train + test)[group[-1]]}
    if not 0.15 * len(records) <= len(test) <= 0.35 * len(records) or len(train) + len(test) < 0.8 * len(records):
        return "check.12.2.share", {"train": len(train), "test": len(test), "count": len(records)}
    return None


def _cases() -> Iterator[tuple[list[float], list[float], str]]:
    yield [0.0] * 20, [1.0] * 18 + [0.0] * 2, "better"
    yield [1.0] * 15 + [0.0] * 5, [0.0] * 14 + [1.0] * 6, "worse"
    yield [0.0, 1.0] * 10, [1.0, 0.0] * 9 + [1.0, 1.0], "undecided"
    yield [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], "undecided"
    yield [place / 30 for place in range(30)], [place / 30 + 0.04 + 0.01 * (place % 3) for place in range(30)], "better"


def _decide(made: object, workshop: Workshop) -> Hint:
    for before, after, verdict in _cases():
        result, hint = attempt(made, "decide", list(before), list(after))
        hint = hint or _is_decision(result, before, after, verdict)
        if hint:
            return hint
    return None


def _is_decision(result: object, before: list[float], after: list[float], verdict: str) -> Hint:
    gain = (sum(after) - sum(before)) / len(before)
    try:
        means = [float(result[name]) for name in ("before", "after", "gain", "low", "high")]
        said = result["verdict"]
    except (TypeError, KeyError, ValueError, IndexError):
        return "check.12.2.decision", {"type": type(result).__name__}
    right = sum(before) / len(before), sum(after) / len(after), gain
    if any(not math.isclose(a, b, abs_tol=1e-6) for a, b in zip(means[:3], right, strict=True)):
        return "check.12.2.gain", {"result": f"{means[2]:.3g}", "count": len(before)}
    if said != verdict or not means[3] - 1e-9 <= gain <= means[4] + 1e-9:
        return "check.12.2.verdict", {"result": said, "gain": f"{gain:.3g}", "count": len(before)}
    return None


def _run(made: object, workshop: Workshop) -> Hint:
    records = _records()
    result, hint = attempt(made, "run", [dict(record) for record in records], [dict(record) for record in OUTSIDE])
    if hint:
        return hint
    if len(workshop.taught) != 1:
        return "check.12.2.trained", {"count": len(workshop.taught)}
    outside = [record["question"] for record in OUTSIDE]
    tests = {trained: [asked for when, asked in workshop.asked if when == trained and asked != outside]
             for trained in (False, True)}
    if not tests[False] or outside not in [asked for when, asked in workshop.asked if not when]:
        return "check.12.2.before", {}
    if tests[False][0] not in tests[True]:
        return "check.12.2.same", {}
    parts = [[{"question": one} for one in part] for part in (workshop.taught[0], tests[False][0])]
    hint = _is_split(parts, records)
    if hint:
        return hint
    if outside not in [asked for when, asked in workshop.asked if when]:
        return "check.12.2.outside", {}
    known = {record["question"]: record for record in records}
    for part, asked in (("domain", [known[one] for one in tests[False][0]]), ("outside", OUTSIDE)):
        before, after = ([float(workshop._knows(model, place, record)) for place, record in enumerate(asked)]
                         for model in (_pretended(False), _pretended(True)))
        verdict = "better" if part == "domain" else "worse"
        try:
            hint = _is_decision(result[part], before, after, verdict)
        except (TypeError, KeyError, IndexError):
            return "check.12.2.results", {"part": part}
        if hint:
            return "check.12.2.results", {"part": part}
    return _proof(made, result)


def _pretended(trained: bool) -> Pretended:
    model = Pretended()
    model.trained = trained
    return model


def _proof(made: object, result: dict) -> Hint:
    report, hint = attempt_report(made)
    if hint:
        return hint
    found = numbers_in(report)
    found += [number / 100 for number in found]  # percent
    for part in ("domain", "outside"):
        missing = [name for name in ("before", "after", "low", "high") if not holds(found, result[part][name])]
        if missing or result[part]["verdict"] not in report:
            return "check.12.2.report", {"part": part, "missing": ", ".join(missing) or "verdict"}
    return None
