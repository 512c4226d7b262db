"""Benchmark figures that others published, each with its source and setting: `data/benchmarks.json`.

A score means nothing without the number of examples in the prompt (5-shot), the version (base or chat model), and who
measured: the same model gets 68.6 on GSM8K from its makers and 70.7 from a competitor. The file also holds a table that
circulates without any of these; `benchmarks` sets each of its figures beside what was published (lesson 10).
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from . import cards, runtime

if TYPE_CHECKING:
    import pandas

_HEADS = ("model", "benchmark", "circulated", "verdict", "value", "version", "setting", "by", "source", "remark")


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        model: base id of the catalog, or a name such as "gpt-4".
        version: "base" or "instruct"; None where the source makes no difference.
        benchmark: its name, or "parameters" or "context" for facts of the model card.
        value: in the benchmark's own unit, mostly percent.
        setting: such as "5-shot" or "8-shot CoT" (chain of thought); None where the source does not say.
        by: who measured: "maker", a name, or None where the source does not say.
        source: key of the catalog's list of sources.
        checkpoint: month of the weights, where a model was replaced under the same name.
    """

    model: str
    version: str | None
    benchmark: str
    value: float
    setting: str | None
    by: str | None
    source: str
    checkpoint: str | None = None

    @property
    def page(self) -> tuple[str, str]:
        """Title and address of the source."""
        entry = cards.contents()["sources"][self.source]
        return entry["title"], entry["url"]


@lru_cache
def published_data() -> dict:
    """The whole of `data/benchmarks.json`: "benchmarks" (what the four measure), "circulated" and "figures"."""
    return json.loads((runtime.data_dir() / "benchmarks.json").read_text(encoding="utf-8"))


@lru_cache
def published_figures(model_id: str, benchmark: str | None = None) -> tuple[Figure, ...]:
    """The published figures of a model, perhaps of one benchmark only; the makers' own come first.

    Args:
        model_id: any name that `catalog.get` knows, or "gpt-4".

    Raises:
        LookupError: unknown id.
    """
    key = model_id if model_id in published_data()["names"] else cards.get(model_id).id
    found = (Figure(**entry) for entry in published_data()["figures"]
             if entry["model"] == key and benchmark in (None, entry["benchmark"]))
    return tuple(sorted(found, key=lambda figure: figure.by != "maker"))


def cited_figure(model_id: str, benchmark: str, source: str) -> Figure:
    """The figure that a candidate of the catalog rests on: from the candidate's own source, or else the first.

    Raises:
        LookupError: unknown id, or no such figure.
    """
    found = sorted(published_figures(model_id, benchmark), key=lambda figure: figure.source != source)
    if not found:
        raise LookupError(f"no published figure of {model_id} for {benchmark!r}")
    return found[0]


def circulated_verdict(model_id: str, benchmark: str, value: float) -> str:
    """ "right" where the model's makers published this value for it, in whichever version; otherwise "wrong"."""
    known = {figure.value for figure in published_figures(model_id, benchmark) if figure.by == "maker"}
    return "right" if value in known else "wrong"


def benchmarks(lang: str | None = None) -> pandas.DataFrame:
    """The table in circulation (MMLU, GSM8K, HumanEval, TriviaQA), one published figure a row; empty where none was found.

    Columns: model, benchmark, the figure in circulation, the verdict on it, then the published figure with version,
    setting, who measured and the source, and a remark on where the figure in circulation comes from.

    Args:
        lang: of heads and words, "en" or "ko"; by default the language that is set.
    """
    import pandas

    with runtime.in_language(lang):
        heads = [runtime.text(f"published.head.{key}") for key in _HEADS]
        rows = [row for entry in published_data()["circulated"] for row in _rows(entry)]
    return pandas.DataFrame(rows, columns=heads)


def measures(lang: str | None = None) -> pandas.DataFrame:
    """What the four benchmarks of that table measure, one a row: its content, test questions, standard error, paper.

    The standard error is that of a score of 50 % on so many questions, 100 · sqrt(0.25 / n) percentage points; the
    difference of two independent scores has √2 times that. Empty where the number of questions is not settled.

    Args:
        lang: as of `benchmarks`.
    """
    import pandas

    with runtime.in_language(lang):
        heads = [runtime.text(f"published.head.{key}") for key in ("benchmark", "what", "questions", "error", "paper")]
        rows = [(name, entry["what"][runtime.language()], entry["questions"],
                 entry["questions"] and round(50 / entry["questions"] ** 0.5, 1), entry["paper"])
                for name, entry in published_data()["benchmarks"].items()]
    return pandas.DataFrame(rows, columns=heads).astype({heads[2]: "Int64"})


def _rows(entry: dict) -> list[tuple]:
    """Rows of one figure in circulation: one for each published figure, or one that says there is none."""
    name = published_data()["names"].get(entry["model"]) or cards.get(entry["model"]).name
    judged = runtime.text(f"published.{circulated_verdict(entry['model'], entry['benchmark'], entry['value'])}")
    start = (name, entry["benchmark"], entry["value"], judged)
    remark = entry["note"][runtime.language()] if entry["note"] else ""
    found = [(figure.value, _version(figure), figure.setting or "", _measured_by(figure), figure.page[0])
             for figure in published_figures(entry["model"], entry["benchmark"])]
    return [(*start, *row, remark) for row in found or [(None, "", "", "", "")]]


def _version(figure: Figure) -> str:
    words = [runtime.text(f"published.{figure.version}")] if figure.version else []
    return " ".join(words + [figure.checkpoint] * bool(figure.checkpoint))


def _measured_by(figure: Figure) -> str:
    return runtime.text("published.maker") if figure.by == "maker" else figure.by or runtime.text("published.unknown")
