"""Grader of exercise 12.1: a comparison of models, tried on tiny ones whose differences are known."""
from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from . import lesson_12_proof  # noqa: F401 - registers exercise 12.2
from .grading import Hint, attempt, attempt_report, call, grader, holds, numbers_in
from .tiny import slow_to_read, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("bits_per_character", "memory_mb", "estimated_mb", "first_token_ms", "tokens_per_second", "spread")
PROMPTS = ["Where does the river end?", "Name a colour."]
TEXTS = ["The thing in the north is the thinnest of the three.", "Oh, 7!"]
NEW_TOKENS, RUNS, WAIT = 5, 2, 0.1  # WAIT: seconds that the slow reader needs for a prompt
FAILURE = "no room on this device"


class Candidate:
    """What a learner's comparator calls to get a model; it notes how often, and which models are still in memory then."""

    def __init__(self, name: str, log: dict[str, list], make: Callable | None) -> None:
        self.name, self.log, self.make = name, log, make

    def __repr__(self) -> str:
        return f"<load {self.name}>"

    def __call__(self):
        if any(model() is not None for _, model in self.log["made"]):
            gc.collect()  # what is left now is not only waiting for the collector
        self.log["together"] += [(other, self.name) for other, model in self.log["made"] if model() is not None]
        self.log["calls"].append(self.name)
        if self.make is None:
            raise OSError(FAILURE)
        model, tokenizer = self.make()
        self.log["made"].append((self.name, weakref.ref(model)))
        return model, tokenizer


@lru_cache
def _tokenizers() -> tuple:
    return tiny_tokenizer(), tiny_tokenizer(("the", "ing", "thing"))


def _makers() -> dict[str, tuple[Callable | None, str]]:
    """Name → how to make it, and its precision: known differences in size, type, quality and speed, and one that fails."""
    letters, pieces = _tokenizers()
    return {
        "single": (lambda: (tiny_model(letters, width=128, layers=2), letters), "fp32"),
        "double": (lambda: (tiny_model(letters, width=128, layers=4, dtype="bfloat16"), letters), "bf16"),
        "absent": (None, "bf16"),
        "broken": (lambda: (tiny_model(letters, width=128, layers=2, spread=0.4), letters), "fp32"),
        "other words": (lambda: (slow_to_read(tiny_model(pieces, width=128, layers=1), WAIT), pieces), "fp32"),
    }


@lru_cache
def _expected() -> dict[str, dict[str, object]]:
    """What a right comparator finds for each model that loads; `log2` is the trap: bits per token."""
    from .. import evaluate, loading, memory

    found: dict[str, dict[str, object]] = {}
    for name, (make, precision) in _makers().items():
        if make is not None:
            model, tokenizer = make()
            result = evaluate.perplexity(model, tokenizer, TEXTS)
            found[name] = {"bits_per_character": result.bits_per_character, "memory_mb": model.get_memory_footprint() / 1e6,
                           "estimated_mb": memory.estimate(model.config, precision).weights / 1e6,
                           "per_token": (result.per_token, math.log2(result.per_token), math.log(result.per_token)),
                           "answers": [loading.chat(model, tokenizer, prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]}
    return found


@grader("12.1")
def _comparator(answer: object) -> Hint:
    """A class whose objects compare the candidates: run() gives the table, report() the Markdown."""
    log: dict[str, list] = {"together": [], "calls": [], "made": []}
    makers = _makers()
    candidates = {name: (Candidate(name, log, make), precision) for name, (make, precision) in makers.items()}
    made, hint = call(answer, candidates, list(PROMPTS), list(TEXTS), NEW_TOKENS, RUNS)
    if hint:
        return hint
    table, hint = attempt(made, "run")
    if hint:
        failed = hint[0] == "check.12.raised" and FAILURE in hint[1]["error"]
        return ("check.12.1.failed", {"error": hint[1]["error"]}) if failed else hint
    return (_shape(table, list(makers), log) or _failure_named(table) or _quality(table) or _answers(made)
            or _memory(table) or _speed(table) or _report(made, table))


def _shape(table: object, names: list[str], log: dict[str, list]) -> Hint:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        return "check.12.1.table", {"type": type(table).__name__}
    missing = [column for column in (*COLUMNS, "error") if column not in table.columns]
    if missing:
        return "check.12.1.columns", {"missing": ", ".join(missing)}
    rows = [name for name in names if name not in table.index]
    if rows or len(table) != len(names):
        return "check.12.1.rows", {"missing": ", ".join(rows) or "-", "count": len(table), "expected": len(names)}
    if log["together"]:
        first, second = log["together"][0]
        return "check.12.1.together", {"first": first, "second": second}
    return None


def _number(table: DataFrame, name: str, column: str) -> float:
    """A cell as a number; nan where it is none."""
    try:
        return float(table.loc[name, column])
    except (TypeError, ValueError):
        return math.nan


def _failure_named(table: DataFrame) -> Hint:
    for name in table.index:
        failed, said = name == "absent", str(table.loc[name, "error"])
        if failed and (FAILURE not in said or any(math.isfinite(_number(table, name, column)) for column in COLUMNS)):
            return "check.12.1.reason", {"name": name}
        if not failed and any(not math.isfinite(_number(table, name, column)) for column in COLUMNS):
            return "check.12.1.empty", {"name": name}
    return None


def _quality(table: DataFrame) -> Hint:
    for name, right in _expected().items():
        found, wanted = _number(table, name, "bits_per_character"), right["bits_per_character"]
        if not math.isclose(found, wanted, rel_tol=2e-3):
            per_token = any(math.isclose(found, value, rel_tol=2e-3) for value in right["per_token"])
            return "check.12.1.per_token" if per_token else "check.12.1.quality", {"name": name, "result": f"{found:.4g}"}
    return None


def _answers(made: object) -> Hint:
    results = getattr(made, "results", None)
    for name, right in _expected().items():
        try:
            found = list(results[name]["answers"])
        except (TypeError, KeyError, IndexError):
            return "check.12.1.no_answers", {"name": name}
        if found != right["answers"]:
            return "check.12.1.answers", {"name": name, "count": len(PROMPTS)}
    return None


def _memory(table: DataFrame) -> Hint:
    for column, key in (("memory_mb", "check.12.1.memory"), ("estimated_mb", "check.12.1.estimate")):
        for name, right in _expected().items():
            found = _number(table, name, column)
            if not math.isclose(found, right[column], rel_tol=0.03):
                return key, {"name": name, "result": f"{found:.4g}"}
    return None


def _speed(table: DataFrame) -> Hint:
    first, rate = (_number(table, "other words", column) for column in ("first_token_ms", "tokens_per_second"))
    if first < 950 * WAIT:
        return "check.12.1.first", {"result": f"{first:.3g}", "least": f"{1000 * WAIT:.0f}"}
    if rate <= 1.1 * NEW_TOKENS / WAIT:
        return "check.12.1.mixed", {"result": f"{rate:.3g}"}
    rates = [_number(table, name, "tokens_per_second") for name in _expected()]
    spreads = [_number(table, name, "spread") for name in _expected()]
    if min(rates) <= 0 or min(spreads) < 0 or not any(spreads):
        return "check.12.1.spread", {}
    return None


def _report(made: object, table: DataFrame) -> Hint:
    report, hint = attempt_report(made)
    if hint:
        return hint
    rows = [line for line in report.splitlines() if line.lstrip().startswith("|")]
    for name in table.index:
        if not any(name in row for row in rows):
            return "check.12.1.unnamed", {"name": name}
    if FAILURE not in report:
        return "check.12.1.silent", {"name": "absent"}
    found = numbers_in(report)
    for name, right in _expected().items():
        for column in COLUMNS[:5]:
            if not holds(found, _number(table, name, column)):
                return "check.12.1.number", {"name": name, "column": column}
        if not all(text in report for text in right["answers"]):
            return "check.12.1.unshown", {"name": name}
    return None
