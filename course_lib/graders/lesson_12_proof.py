"""Grader of exercise 12.2: a proof of gain, tested with a simulated training of known outcome."""
from __future__ import annotations

import math

from .attempts import attempt, attempt_report, holds, numbers_in
from .grading import Hint, call, grader

OUTSIDE = [{"question": f"An everyday question, number {number}?", "answer": f"outside {number}"}
           for number in range(24)]


def _records() -> list[dict[str, str]]:
    """Questions sorted by topic, followed by a slightly changed copy of each fifth one."""
    from ..data.texts import load_qa

    rows = sorted(load_qa("en").select(range(60, 108)), key=lambda row: row["topic"])
    records = [{"question": row["question"], "answer": row["id"]} for row in rows]
    return records + [{**record, "question": "Please: " + record["question"]} for record in records[::5]]


def _copies(records: list[dict[str, str]]) -> list[dict[str, str]]:
    return [dict(record) for record in records]


def _questions(records: list[dict[str, str]]) -> list[str]:
    return [record["question"] for record in records]


class Pretended:
    """Stand-in for a model; training changes it in place, as an adapter does."""

    def __init__(self, trained: bool = False) -> None:
        self.trained = trained

    def knows(self, place: int, record: dict[str, str]) -> bool:
        """Tell whether it answers the question at this index; training helps in the domain, hurts outside."""
        if record["answer"].startswith("outside"):
            return place % 4 == 1 if self.trained else place % 4 != 0
        return place % 5 == 0 or (self.trained and place % 7 != 3)


class Workshop:
    """The four functions that a learner's class gets; it records the questions they are called with."""

    def __init__(self) -> None:
        self.taught = []
        self.asked = {False: [], True: []}  # key: whether the model is trained

    def __repr__(self) -> str:
        return "workshop"

    def load(self):
        return Pretended(), "tokenizer"

    def train(self, model, tokenizer, records):
        self.taught.append(_questions(records))
        model.trained = True
        return model

    def ask(self, model, tokenizer, records):
        self.asked[model.trained].append(_questions(records))
        return [record["answer"] if model.knows(place, record) else "?"
                for place, record in enumerate(records)]

    def score(self, text, record) -> float:
        return float(text == record["answer"])


@grader("12.2")
def _specialist(answer: object) -> Hint:
    """Expect a class that splits without leakage, scores before and after, decides, says what got worse."""
    for step in (_split, _decide, _run):
        workshop = Workshop()
        proof, hint = call(answer, workshop.load, workshop.train, workshop.ask, workshop.score)
        hint = hint or step(proof, workshop)
        if hint:
            return hint
    return None


def _split(proof: object, workshop: Workshop) -> Hint:
    records = _records()
    tests = []
    for seed in (0, 1, 0):
        result, hint = attempt(proof, "split", _copies(records), 0.25, seed)
        hint = hint or _is_split(result, records)
        if hint:
            return hint
        tests.append(_questions(result[1]))
    if tests[0] != tests[2]:
        return "check.12.2.seed", {}
    places = sorted(map(_questions(records).index, tests[0]))
    if tests[0] == tests[1] or places[-1] - places[0] == len(places) - 1:
        return "check.12.2.shuffle", {}
    return None


def _is_split(result: object, records: list[dict[str, str]]) -> Hint:
    from ..data.filters import near_duplicates

    try:
        train, test = map(_questions, result)
    except (TypeError, ValueError, KeyError, IndexError):
        return "check.12.2.pair", {"type": type(result).__name__}
    if not train or not set(train + test) <= set(_questions(records)):
        return "check.12.2.pair", {"type": type(result).__name__}
    if set(train) & set(test):
        return "check.12.2.both", {"count": len(set(train) & set(test))}
    for group in near_duplicates(train + test, threshold=0.5):
        if len({place < len(train) for place in group}) > 1:
            return "check.12.2.leak", {"question": (train + test)[group[-1]]}
    count = len(records)
    if not 0.15 * count <= len(test) <= 0.35 * count or len(train) + len(test) < 0.8 * count:
        return "check.12.2.share", {"train": len(train), "test": len(test), "count": count}
    return None


DECISIONS = [  # scores before, scores after, verdict
    ([0.0] * 20, [1.0] * 18 + [0.0] * 2, "better"),
    ([1.0] * 15 + [0.0] * 5, [0.0] * 14 + [1.0] * 6, "worse"),
    ([0.0, 1.0] * 10, [1.0, 0.0] * 9 + [1.0, 1.0], "undecided"),
    ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], "undecided"),
    ([step / 30 for step in range(30)], [step / 30 + 0.04 + step % 3 / 100 for step in range(30)], "better"),
]


def _decide(proof: object, workshop: Workshop) -> Hint:
    for before, after, verdict in DECISIONS:
        result, hint = attempt(proof, "decide", list(before), list(after))
        hint = hint or _is_decision(result, before, after, verdict)
        if hint:
            return hint
    return None


def _is_decision(result: object, before: list[float], after: list[float], verdict: str) -> Hint:
    count = len(before)
    try:
        *means, low, high = [float(result[name]) for name in ("before", "after", "gain", "low", "high")]
        said = result["verdict"]
    except (TypeError, KeyError, ValueError, IndexError):
        return "check.12.2.decision", {"type": type(result).__name__}
    gain = (sum(after) - sum(before)) / count
    right = sum(before) / count, sum(after) / count, gain
    if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(means, right, strict=True)):
        return "check.12.2.gain", {"result": f"{means[2]:.3g}", "count": count}
    if said != verdict or not low - 1e-9 <= gain <= high + 1e-9:
        return "check.12.2.verdict", {"result": said, "gain": f"{gain:.3g}", "count": count}
    return None


def _run(proof: object, workshop: Workshop) -> Hint:
    records = _records()
    result, hint = attempt(proof, "run", _copies(records), _copies(OUTSIDE))
    if hint:
        return hint
    if len(workshop.taught) != 1:
        return "check.12.2.trained", {"count": len(workshop.taught)}
    outside = _questions(OUTSIDE)
    tests = {trained: [questions for questions in asked if questions != outside]
             for trained, asked in workshop.asked.items()}
    if not tests[False] or outside not in workshop.asked[False]:
        return "check.12.2.before", {}
    test = tests[False][0]
    if test not in tests[True]:
        return "check.12.2.same", {}
    split = [[{"question": question} for question in questions] for questions in (workshop.taught[0], test)]
    hint = _is_split(split, records)
    if hint:
        return hint
    if outside not in workshop.asked[True]:
        return "check.12.2.outside", {}
    known = {record["question"]: record for record in records}
    return (_is_result(result, "domain", [known[question] for question in test], "better")
            or _is_result(result, "outside", OUTSIDE, "worse") or _report(proof, result))


def _is_result(result: object, key: str, records: list[dict[str, str]], verdict: str) -> Hint:
    """Check the decision that `run()` returned under `key` against the right one for these questions."""
    before, after = ([float(Pretended(trained).knows(place, record)) for place, record in enumerate(records)]
                     for trained in (False, True))
    try:
        hint = _is_decision(result[key], before, after, verdict)
    except (TypeError, KeyError, IndexError):
        return "check.12.2.results", {"part": key}
    return ("check.12.2.results", {"part": key}) if hint else None


def _report(proof: object, result: dict) -> Hint:
    report, hint = attempt_report(proof)
    if hint:
        return hint
    numbers = numbers_in(report)
    numbers += [number / 100 for number in numbers]  # percent
    for key in ("domain", "outside"):
        fields = ("before", "after", "low", "high")
        missing = [name for name in fields if not holds(numbers, result[key][name])]
        if missing or result[key]["verdict"] not in report:
            return "check.12.2.report", {"part": key, "missing": ", ".join(missing) or "verdict"}
    return None
