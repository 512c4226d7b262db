"""Published benchmark figures: each has a source, and the table in circulation is judged by them."""
from __future__ import annotations

import json

import pytest

from course_lib import runtime
from course_lib.models import cards, published

BENCHMARKS = json.loads((runtime.data_dir() / "benchmarks.json").read_text(encoding="utf-8"))
TASKS = cards.catalog_data()["tasks"]


def test_every_figure_has_a_source_and_a_model():
    seen = set()
    for entry in BENCHMARKS["figures"]:
        figure = published.Figure(**entry)
        title, url = figure.page
        assert title and url.startswith("https://") and figure.value > 0
        assert figure.version in ("base", "instruct") or figure.model == "gpt-4"
        assert figure.model in BENCHMARKS["names"] or cards.get_card(figure.model).id == figure.model
        key = (figure.model, figure.version, figure.benchmark, figure.source, figure.checkpoint)
        assert key not in seen and not seen.add(key), key


def test_the_table_in_circulation_is_judged_as_the_sources_say():
    right = {(entry["model"].rpartition("/")[2], entry["benchmark"]) for entry in BENCHMARKS["circulated"]
             if published.circulated_verdict(entry["model"], entry["benchmark"], entry["value"]) == "right"}
    assert right == {("Phi-3-mini-4k-instruct", "GSM8K"), ("gemma-2-9b", "MMLU"), ("gemma-2-9b", "GSM8K"),
                     ("Qwen2.5-7B", "MMLU"), ("Llama-3.2-3B", "MMLU"), ("gpt-4", "MMLU"), ("gpt-4", "GSM8K"),
                     ("gpt-4", "HumanEval")}
    pairs = [(entry["model"], entry["benchmark"]) for entry in BENCHMARKS["circulated"]]
    assert len(set(pairs)) == len(pairs) == 6 * len(BENCHMARKS["benchmarks"])


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_table_of_benchmarks(lang):
    table = published.benchmarks(lang)
    runtime.set_language(lang)
    keys = ("model", "benchmark", "circulated", "verdict", "value", "by")
    columns = {key: runtime.text(f"published.head.{key}") for key in keys}
    pairs = table[[columns["model"], columns["benchmark"]]].drop_duplicates()
    assert len(pairs) == 24 and table[columns["circulated"]].notna().all()
    assert table[columns["value"]].isna().sum() == 3  # Qwen's and GPT-4's TriviaQA, SmolLM's MMLU
    assert set(table[columns["verdict"]]) == {
        runtime.text("published.right"),
        runtime.text("published.wrong"),
    }
    gemma = table[(table[columns["model"]] == "Gemma 2 9B") & (table[columns["benchmark"]] == "HumanEval")]
    assert (
        list(gemma[columns["value"]]) == [40.2, 37.8, 68.9, 54.3] and gemma[columns["by"]].iloc[-1] == "Meta"
    )


def test_the_evidence_quotes_its_figures():
    for task, entry in TASKS.items():
        for candidate in entry["candidates"]:
            for benchmark in candidate["figures"]:
                figure = published.cited_figure(candidate["id"], benchmark, candidate["source"])
                sources = [other.source for other in published.published_figures(candidate["id"], benchmark)]
                assert sources.count(figure.source) == 1, (task, candidate["id"], benchmark)
                quoted = (f"{figure.value:.1f}", f"{figure.value:.2f}")
                assert all(any(value in why for value in quoted) for why in candidate["why"].values()), (
                    candidate,
                    figure,
                )


def test_figures_that_nobody_published():
    assert published.published_figures("gpt-4", "TriviaQA") == ()
    with pytest.raises(LookupError, match="no published figure of Qwen/Qwen2.5-7B for 'TriviaQA'"):
        published.cited_figure("Qwen/Qwen2.5-7B", "TriviaQA", "QW-BLOG")
    with pytest.raises(LookupError, match="no model 'gpt-5'"):
        published.published_figures("gpt-5")


@pytest.mark.parametrize("remark_of, figure_of, version", [
    (("microsoft/Phi-3-mini-4k-instruct", "HumanEval"), "Qwen/Qwen2.5-7B", "base"),
    (("google/gemma-2-9b", "HumanEval"), "google/gemma-2-9b", "instruct"),
    (("meta-llama/Llama-3.2-3B", "GSM8K"), "meta-llama/Llama-3.2-1B", "instruct")])
def test_remarks_on_an_equal_figure_hold(remark_of, figure_of, version):
    entry = next(
        entry for entry in BENCHMARKS["circulated"] if (entry["model"], entry["benchmark"]) == remark_of
    )
    equal = {
        figure.value
        for figure in published.published_figures(figure_of, entry["benchmark"])
        if figure.version == version
    }
    assert entry["note"]["en"].startswith("Equal to") and entry["value"] in equal


def test_what_the_four_measure_is_told_in_two_languages():
    assert list(BENCHMARKS["benchmarks"]) == ["MMLU", "GSM8K", "HumanEval", "TriviaQA"]
    for entry in BENCHMARKS["benchmarks"].values():
        assert set(entry["what"]) == set(runtime.LANGUAGES) and entry["paper"].startswith("https://arxiv.org/abs/")
    for entry in BENCHMARKS["circulated"]:
        assert entry["note"] is None or set(entry["note"]) == set(runtime.LANGUAGES)


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_standard_errors_follow_from_the_number_of_questions(lang):
    table = published.measures(lang).set_index("Benchmark" if lang == "en" else "벤치마크")
    errors = table[table.columns[2]]
    assert errors["HumanEval"] == 3.9 and errors["GSM8K"] == 1.4 and errors["MMLU"] == 0.4
    assert (
        table.isna().sum().sum() == 2 and table[table.columns[1]]["HumanEval"] == 164
    )  # TriviaQA: no number, no error
