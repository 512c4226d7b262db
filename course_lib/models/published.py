"""Published benchmark figures from `data/benchmarks.json`, each with its source and setting.

A score is only comparable with the number of examples in the prompt (5-shot), the version (base or chat
model) and who measured: the same model has 68.6 on GSM8K from its makers and 70.7 from a competitor. A
circulating table in the file lacks all three; `benchmarks` sets it beside the published figures (lesson 10).
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .. import runtime
from . import cards

if TYPE_CHECKING:
    import pandas

_HEADS = ("model", "benchmark", "circulated", "verdict", "value", "version", "setting", "by", "source",
          "remark")


@dataclass(frozen=True)
class Figure:
    """One published figure: a benchmark score or a fact of a model card."""

    model: str  # base id in the catalog, or a name such as "gpt-4"
    version: str | None  # "base" or "instruct"; None where the source does not distinguish them
    benchmark: str  # its name, or "parameters" or "context" for facts of the model card
    value: float  # in the benchmark's own unit, mostly percent
    setting: str | None  # such as "5-shot" or "8-shot CoT" (chain of thought), if the source says it
    by: str | None  # who measured: "maker" or a name, if the source says it
    source: str  # key of the catalog's list of sources
    checkpoint: str | None = None  # month of the weights, where a model was replaced under the same name

    @property
    def page(self) -> tuple[str, str]:
        """Title and address of the source."""
        entry = cards.catalog_data()["sources"][self.source]
        return entry["title"], entry["url"]


@lru_cache
def published_data() -> dict:
    """Return the content of `data/benchmarks.json`: "names", "benchmarks", "circulated" and "figures"."""
    return json.loads((runtime.data_dir() / "benchmarks.json").read_text(encoding="utf-8"))


@lru_cache
def published_figures(model_id: str, benchmark: str | None = None) -> tuple[Figure, ...]:
    """Return a model's published figures, perhaps of one benchmark only, the makers' own first.

    `model_id` is any name that `cl.models.get_card` knows, or "gpt-4"; raises LookupError for others.
    """
    data = published_data()
    key = model_id if model_id in data["names"] else cards.get_card(model_id).id
    figures = (Figure(**entry) for entry in data["figures"]
               if entry["model"] == key and benchmark in (None, entry["benchmark"]))
    return tuple(sorted(figures, key=lambda figure: figure.by != "maker"))


def cited_figure(model_id: str, benchmark: str, source: str) -> Figure:
    """Return a model's figure for a benchmark, preferably from `source`; raises LookupError without one."""
    figures = sorted(published_figures(model_id, benchmark), key=lambda figure: figure.source != source)
    if not figures:
        raise LookupError(f"no published figure of {model_id} for {benchmark!r}")
    return figures[0]


def circulated_verdict(model_id: str, benchmark: str, value: float) -> str:
    """Return "right" if the makers published this value for any version of the model, else "wrong"."""
    known = {figure.value for figure in published_figures(model_id, benchmark) if figure.by == "maker"}
    return "right" if value in known else "wrong"


def benchmarks(lang: str | None = None) -> pandas.DataFrame:
    """Return the circulating table (MMLU, GSM8K, HumanEval, TriviaQA) beside the published figures.

    Each row is one published figure, or empty cells if there is none: model, benchmark, circulating figure,
    verdict on it, published figure, version, setting, who measured, source, and a remark on the circulating
    figure's origin. `lang` ("en" or "ko") is the language of the table; by default the language that is set.
    """
    import pandas

    with runtime.in_language(lang):
        heads = [runtime.text(f"published.head.{key}") for key in _HEADS]
        rows = [row for entry in published_data()["circulated"] for row in _rows(entry)]
    return pandas.DataFrame(rows, columns=heads)


def measures(lang: str | None = None) -> pandas.DataFrame:
    """Return what each of the four benchmarks measures: content, questions, standard error, paper.

    The standard error is that of a score of 50 % on n questions: 100 · sqrt(0.25 / n) percentage points,
    empty if n is not settled. The difference of two independent scores has √2 times this standard error.
    """
    import pandas

    keys = ("benchmark", "what", "questions", "error", "paper")
    with runtime.in_language(lang):
        heads = [runtime.text(f"published.head.{key}") for key in keys]
        rows = [(name, entry["what"][runtime.language()], entry["questions"],
                 entry["questions"] and round(50 / entry["questions"] ** 0.5, 1), entry["paper"])
                for name, entry in published_data()["benchmarks"].items()]
    return pandas.DataFrame(rows, columns=heads).astype({heads[2]: "Int64"})


def _rows(entry: dict) -> list[tuple]:
    """Return the rows of one circulating figure: one per published figure, or one that says there is none."""
    name = published_data()["names"].get(entry["model"]) or cards.get_card(entry["model"]).name
    verdict = circulated_verdict(entry["model"], entry["benchmark"], entry["value"])
    start = (name, entry["benchmark"], entry["value"], runtime.text(f"published.{verdict}"))
    remark = entry["note"][runtime.language()] if entry["note"] else ""
    figures = [_words(figure) for figure in published_figures(entry["model"], entry["benchmark"])]
    return [(*start, *words, remark) for words in figures or [(None, "", "", "", "")]]


def _words(figure: Figure) -> tuple:
    """Return a figure's value, version, setting, who measured it, and the title of the source."""
    version = runtime.text(f"published.{figure.version}") if figure.version else None
    by = "published.maker" if figure.by == "maker" else "published.unknown" if figure.by is None else None
    return (figure.value, " ".join(filter(None, (version, figure.checkpoint))), figure.setting or "",
            runtime.text(by) if by else figure.by, figure.page[0])
