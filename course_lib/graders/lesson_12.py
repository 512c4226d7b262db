"""Grader of exercise 12.1: a comparison of models, tested on tiny models with known differences."""
from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from . import lesson_12_proof  # noqa: F401 - registers exercise 12.2
from .attempts import attempt, attempt_report, holds, numbers_in
from .grading import Hint, call, grader
from .tiny import slow_to_read, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("bits_per_character", "memory_mb", "estimated_mb", "first_token_ms", "tokens_per_second", "spread")
PROMPTS = ["Where does the river end?", "Name a colour."]
TEXTS = ["The thing in the north is the thinnest of the three.", "Oh, 7!"]
NEW_TOKENS = 5
RUNS = 2
WAIT = 0.1  # seconds of prefill of the model "other words"
FAILURE = "no room on this device"


class Candidate:
    """A loader that the learner's comparator calls; it records which models are still in memory."""

    def __init__(self, name: str, make: Callable | None, loaded: list[tuple[str, weakref.ref]]) -> None:
        self.name = name
        self.make = make
        self.loaded = loaded  # name and model of all candidates
        self.beside: list[str] = []

    def __repr__(self) -> str:
        return f"<load {self.name}>"

    def __call__(self):
        if self._alive():
            gc.collect()  # what survives this is still referenced
        self.beside += self._alive()
        if self.make is None:
            raise OSError(FAILURE)
        model, tokenizer = self.make()
        self.loaded.append((self.name, weakref.ref(model)))
        return model, tokenizer

    def _alive(self) -> list[str]:
        return [name for name, model in self.loaded if model() is not None]


@lru_cache
def _tokenizers() -> tuple:
    return tiny_tokenizer(), tiny_tokenizer(("the", "ing", "thing"))


def _makers() -> dict[str, tuple[Callable | None, str]]:
    """Name → (function that makes the model, precision); the models differ in known ways, one cannot load."""
    letters, pieces = _tokenizers()
    return {
        "single": (lambda: (tiny_model(letters, width=128, layers=2), letters), "fp32"),
        "double": (lambda: (tiny_model(letters, width=128, layers=4, dtype="bfloat16"), letters), "bf16"),
        "absent": (None, "bf16"),
        "broken": (lambda: (tiny_model(letters, width=128, layers=2, spread=0.4), letters), "fp32"),
        "other words": (lambda: (slow_to_read(tiny_model(pieces, width=128), WAIT), pieces), "fp32"),
    }


@lru_cache
def _expected() -> dict[str, dict[str, object]]:
    """Expected measurements of each model that loads, and the figures per token, a common mistake."""
    from .. import loading
    from ..inference import perplexity
    from ..models import memory

    expected: dict[str, dict[str, object]] = {}
    for name, (make, precision) in _makers().items():
        if make is not None:
            model, tokenizer = make()
            quality = perplexity.perplexity(model, tokenizer, TEXTS)
            per_token = quality.per_token
            answers = [loading.chat(model, tokenizer, prompt, max_new_tokens=NEW_TOKENS)
                       for prompt in PROMPTS]
            expected[name] = {
                "bits_per_character": quality.bits_per_character,
                "per_token": (per_token, math.log2(per_token), math.log(per_token)),
                "memory_mb": model.get_memory_footprint() / 1e6,
                "estimated_mb": memory.estimate_memory(model.config, precision).weights / 1e6,
                "answers": answers,
            }
    return expected


@grader("12.1")
def _comparator(answer: object) -> Hint:
    """Expect a class whose `run()` returns the table of the candidates and `report()` the Markdown."""
    loaded: list[tuple[str, weakref.ref]] = []
    candidates = {name: (Candidate(name, make, loaded), precision)
                  for name, (make, precision) in _makers().items()}
    comparator, hint = call(answer, dict(candidates), list(PROMPTS), list(TEXTS), NEW_TOKENS, RUNS)
    if hint:
        return hint
    table, hint = attempt(comparator, "run")
    if hint:
        failed = hint[0] == "check.12.raised" and FAILURE in hint[1]["error"]
        return ("check.12.1.failed", {"error": hint[1]["error"]}) if failed else hint
    return (_shape(table, candidates) or _failure_named(table) or _quality(table) or _answers(comparator)
            or _memory(table) or _speed(table) or _report(comparator, table))


def _shape(table: object, candidates: dict[str, tuple[Candidate, str]]) -> Hint:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        return "check.12.1.table", {"type": type(table).__name__}
    missing = [column for column in (*COLUMNS, "error") if column not in table.columns]
    if missing:
        return "check.12.1.columns", {"missing": ", ".join(missing)}
    missing = [name for name in candidates if name not in table.index]
    if missing or len(table) != len(candidates):
        fields = {"missing": ", ".join(missing) or "-", "count": len(table), "expected": len(candidates)}
        return "check.12.1.rows", fields
    for candidate, _ in candidates.values():
        if candidate.beside:
            return "check.12.1.together", {"first": candidate.beside[0], "second": candidate.name}
    return None


def _number(table: DataFrame, name: str, column: str) -> float:
    """Return a cell of the table as a float, or nan if it is not a number."""
    try:
        return float(table.loc[name, column])
    except (TypeError, ValueError):
        return math.nan


def _failure_named(table: DataFrame) -> Hint:
    for name in table.index:
        finite = [math.isfinite(_number(table, name, column)) for column in COLUMNS]
        if name != "absent" and not all(finite):
            return "check.12.1.empty", {"name": name}
        if name == "absent" and (FAILURE not in str(table.loc[name, "error"]) or any(finite)):
            return "check.12.1.reason", {"name": name}
    return None


def _quality(table: DataFrame) -> Hint:
    for name, expected in _expected().items():
        bits = _number(table, name, "bits_per_character")
        if not math.isclose(bits, expected["bits_per_character"], rel_tol=2e-3):
            per_token = any(math.isclose(bits, value, rel_tol=2e-3) for value in expected["per_token"])
            key = "check.12.1.per_token" if per_token else "check.12.1.quality"
            return key, {"name": name, "result": f"{bits:.4g}"}
    return None


def _answers(comparator: object) -> Hint:
    results = getattr(comparator, "results", None)
    for name, expected in _expected().items():
        try:
            answers = list(results[name]["answers"])
        except (TypeError, KeyError, IndexError):
            return "check.12.1.no_answers", {"name": name}
        if answers != expected["answers"]:
            return "check.12.1.answers", {"name": name, "count": len(PROMPTS)}
    return None


def _memory(table: DataFrame) -> Hint:
    for column, key in (("memory_mb", "check.12.1.memory"), ("estimated_mb", "check.12.1.estimate")):
        for name, expected in _expected().items():
            megabytes = _number(table, name, column)
            if not math.isclose(megabytes, expected[column], rel_tol=0.03):
                return key, {"name": name, "result": f"{megabytes:.4g}"}
    return None


def _speed(table: DataFrame) -> Hint:
    first = _number(table, "other words", "first_token_ms")
    if first < 950 * WAIT:
        return "check.12.1.first", {"result": f"{first:.3g}", "least": f"{1000 * WAIT:.0f}"}
    rate = _number(table, "other words", "tokens_per_second")
    if rate <= 1.1 * NEW_TOKENS / WAIT:
        return "check.12.1.mixed", {"result": f"{rate:.3g}"}
    rates = [_number(table, name, "tokens_per_second") for name in _expected()]
    spreads = [_number(table, name, "spread") for name in _expected()]
    if min(rates) <= 0 or min(spreads) < 0 or not any(spreads):
        return "check.12.1.spread", {}
    return None


def _report(comparator: object, table: DataFrame) -> Hint:
    report, hint = attempt_report(comparator)
    if hint:
        return hint
    rows = [line for line in report.splitlines() if line.lstrip().startswith("|")]
    for name in table.index:
        if not any(name in row for row in rows):
            return "check.12.1.unnamed", {"name": name}
    if FAILURE not in report:
        return "check.12.1.silent", {"name": "absent"}
    numbers = numbers_in(report)
    for name, expected in _expected().items():
        for column in COLUMNS[:5]:
            if not holds(numbers, _number(table, name, column)):
                return "check.12.1.number", {"name": name, "column": column}
        if not all(text in report for text in expected["answers"]):
            return "check.12.1.unshown", {"name": name}
    return None
