"""The guide: every rule decides, answers keep to the conditions, and rest on figures of the data."""

from __future__ import annotations

import math
import re

import pytest

from course_lib import runtime
from course_lib.models import cards, catalog, memory, published, selection

HANGUL = re.compile(r"[가-힣]")
TASKS = cards.catalog_data()["tasks"]
NAMES = [rule.name for rule in selection.RULES]
ALONE = {  # rule → conditions without it, what asks for it, and the answers without and with it
    "tier": ({"task": "rag"}, {"tier": "budget"}, "Llama-3.1-8B", "Llama-3.2-3B"),
    "commercial": (
        {"task": "code", "tier": "budget"},
        {"license": "commercial"},
        "Qwen2.5-Coder-3B",
        "Qwen2.5-Coder-1.5B",
    ),
    "open": ({"task": "rag"}, {"license": "open"}, "Llama-3.1-8B", "Qwen2.5-7B"),
    "context": (
        {"task": "summarization", "tier": "mobile"},
        {"context": 32768},
        "SmolLM2-1.7B",
        "Llama-3.2-1B",
    ),
    "memory": ({"task": "rag"}, {"memory_gb": 6}, "Llama-3.1-8B", "Llama-3.2-3B"),
}


def every_recommendation(**conditions):
    for task in TASKS:
        for tier in selection.TIERS:
            yield selection.recommend(task, tier, **conditions)


# --- rules

def test_every_rule_has_a_case():
    assert list(ALONE) == NAMES


@pytest.mark.parametrize("name", ALONE)
def test_each_rule_decides_alone(name):
    common, asking, before, after = ALONE[name]
    first = selection.recommend(**common)
    second = selection.recommend(**common, **asking)
    assert (first.model_id, second.model_id) == tuple(
        cards.get_card(short).load_id for short in (before, after))
    conditions = selection.Conditions(**common, **asking)
    failed = [
        rule
        for rule, passed in selection.judge_candidates(conditions)[cards.get_card(before).id].items()
        if not passed
    ]
    assert failed == [name]
    rule = selection.RULES[NAMES.index(name)]
    assert dict(second.rejected)[first.model_id] == rule.say("no", cards.get_card(before), conditions)


@pytest.mark.parametrize("name", NAMES[:-1])  # the memory chooses the precision as well
def test_the_function_applies_the_list_of_rules(name, monkeypatch):
    common, asking, before, _ = ALONE[name]
    monkeypatch.setattr(selection, "RULES", tuple(rule for rule in selection.RULES if rule.name != name))
    assert selection.recommend(**common, **asking).model_id == cards.get_card(before).load_id


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
@pytest.mark.parametrize("name", ALONE)
def test_words_are_in_the_language(name, lang):
    runtime.set_language(lang)
    common, asking, before, _ = ALONE[name]
    rule = selection.RULES[NAMES.index(name)]
    conditions = selection.Conditions(**common, **asking)
    card = cards.get_card(before)
    said = [rule.question, *(rule.say(what, card, conditions) for what in ("yes", "no", "need"))]
    assert len(set(said)) == 4 and all(bool(HANGUL.search(words)) == (lang == "ko") for words in said)


def test_only_what_is_asked_is_judged():
    assert set(selection.judge_candidates(selection.Conditions("rag"))["Qwen/Qwen2.5-7B"]) == {"tier"}
    asked = selection.judge_candidates(selection.Conditions("rag", "best", 8, "open", 4096))[
        "Qwen/Qwen2.5-7B"
    ]
    assert list(asked) == ["tier", "open", "context", "memory"]


# --- context and memory

def test_the_cache_counts_as_the_memory_module_says():
    card = cards.get_card("Qwen/Qwen2.5-7B")
    need = selection.memory_need(card, "int8", 32768)
    estimate = memory.estimate_memory(card.id, "int8", context=32768)
    assert (need.weights, need.kv_cache) == (estimate.weights, estimate.kv_cache)
    assert need.activations == max(estimate.activations, math.ceil(selection.MARGIN * estimate.weights))
    assert need.total == need.weights + need.kv_cache + need.activations


def test_a_longer_context_never_needs_less_and_may_cost_precision():
    card = cards.get_card("microsoft/Phi-4-mini-instruct")
    totals = [selection.memory_need(card, "nf4", context).total for context in (None, 1, 512, 8192, 131072)]
    assert totals == sorted(totals) and totals[0] < totals[-1]
    short, long = (
        selection.recommend("general_chat", memory_gb=16, context=context) for context in (2048, 65536)
    )
    assert short.model_id == "Qwen/Qwen2.5-7B-Instruct" and short.precision == "int8"
    assert (long.model_id, long.precision) != (short.model_id, short.precision)
    for answer in (short, long):
        assert answer.weight_gb < answer.need_gb <= 16


def test_the_context_is_respected():
    for context in (8192, 32768):
        assert all(
            cards.get_card(answer.model_id).context >= context
            for answer in every_recommendation(context=context)
            if answer.task not in ("edge", "code")
        )
    with pytest.raises(LookupError, match=r"holds 200,000 tokens; the longest context is .*, 131,072 tokens"):
        selection.recommend("rag", context=200_000)


def test_what_needs_yarn_says_so():
    reasons = " ".join(selection.recommend("general_chat", context=65536).reasons)
    assert "32,768" in reasons and "YaRN" in reasons
    assert "YaRN" not in " ".join(selection.recommend("general_chat", context=32768).reasons)
    extended = {card.id for card in map(cards.get_card, cards.catalog_ids()) if card.native_context}
    assert extended and all("YaRN" in cards.get_card(name).note["en"] for name in extended)


# --- when nothing fits

@pytest.mark.parametrize(
    "conditions, said",
    [
        (
            {"task": "code", "memory_gb": 0.5},
            r"fits in 0\.5 GB; the smallest, Qwen/Qwen2\.5-Coder-1\.5B-Instruct, needs 1\.3\d GB",
        ),
        (
            {"task": "code", "tier": "mobile", "context": 65536},
            r"Coder-7B-Instruct, has 7\.62B parameters, above this tier's 2B",
        ),
        ({"task": "code", "tier": "mobile", "context": 65536}, r"Coder-1\.5B-Instruct's, 32,768 tokens"),
        ({"task": "reasoning", "license": "open", "tier": "budget", "context": 200_000}, r"131,072 tokens"),
        ({"task": "korean", "license": "open", "context": 131073}, r"Qwen/Qwen2\.5-7B-Instruct's, 131,072"),
        (
            {"task": "korean", "memory_gb": 0.1, "context": 200_000},
            r"The nearest, .* fails several: .*200,000.*0\.1 GB",
        ),
    ],
)
def test_impossible_conditions_say_what_would_be_needed(conditions, said):
    with pytest.raises(LookupError, match=said):
        selection.recommend(**conditions)


@pytest.mark.parametrize("license, said", [
    ("commercial", "does not permit commercial use"), ("open", "neither Apache-2.0 nor MIT")])
def test_a_license_that_alone_is_in_the_way_is_named(license, said, monkeypatch):
    entries = {"name": {"en": "t", "ko": "t"}, "candidates": [
        {"id": "Qwen/Qwen2.5-3B", "why": {"en": "w", "ko": "w"}, "source": "QW-BLOG", "figures": []}]}
    monkeypatch.setitem(cards.catalog_data()["tasks"], "only", entries)
    with pytest.raises(LookupError, match=f"Qwen2.5-3B-Instruct meets the other conditions, but .*{said}"):
        selection.recommend("only", license=license)


def test_the_reason_why_none_fits_follows_the_language():
    runtime.set_language("ko")
    with pytest.raises(LookupError, match="한국어.*0.1 GB"):
        selection.recommend("korean", memory_gb=0.1)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("poetry",), f"task is 'poetry'.*{', '.join(TASKS)}"),
        (("code", "huge"), "tier is 'huge'.*best, budget, mobile"),
        (("code", "best", None, "free"), "license is 'free'.*commercial, open"),
        (("code", "best", 0), "memory_gb is 0"),
        (("code", "best", None, None, 0), "context is 0; it must be above 0"),
    ],
)
def test_wrong_arguments_are_told_the_right_ones(arguments, said):
    with pytest.raises(ValueError, match=said):
        selection.recommend(*arguments)


# --- what every answer keeps to

@pytest.mark.parametrize("conditions", [
    {}, {"license": "commercial"}, {"license": "open"}, {"memory_gb": 6}, {"memory_gb": 3}])
def test_a_lower_tier_is_never_larger(conditions):
    for task in TASKS:
        sizes = [
            cards.get_card(selection.recommend(task, tier, **conditions).model_id).parameters
            for tier in selection.TIERS
        ]
        assert sizes == sorted(sizes, reverse=True), task
        assert all(size <= bound for size, bound in zip(sizes, selection.TIERS.values(), strict=True)), task


@pytest.mark.parametrize("memory_gb", [1.5, 2.5, 4, 8, 16, 80])
def test_memory_is_respected_and_used(memory_gb):
    for answer in every_recommendation(memory_gb=memory_gb):
        size = catalog.weight_bytes(answer.model_id, answer.precision)
        assert size * (1 + selection.MARGIN) <= memory_gb * 1e9 and answer.weight_gb == size / 1e9
        better = {"bf16": None, "int8": "bf16", "nf4": "int8"}[answer.precision]
        assert (
            not better
            or catalog.weight_bytes(answer.model_id, better) * (1 + selection.MARGIN) > memory_gb * 1e9
        )
    assert all(answer.precision == "bf16" for answer in every_recommendation())


def test_licenses_are_respected():
    assert all(
        cards.get_card(answer.model_id).commercial_use
        for answer in every_recommendation(license="commercial")
    )
    licenses = {cards.get_card(answer.model_id).license for answer in every_recommendation(license="open")}
    assert licenses <= {"Apache-2.0", "MIT"}


def test_the_recommended_model_chats():
    for answer in every_recommendation():
        assert answer.model_id == cards.get_card(answer.model_id).instruct_id


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_reasons_are_in_the_language(lang):
    runtime.set_language(lang)
    for answer in (*every_recommendation(memory_gb=4), *every_recommendation(license="open")):
        texts = [*answer.reasons, *(why for _, why in answer.rejected)]
        assert len(answer.reasons) >= 4 and all(texts)
        assert all(bool(HANGUL.search(text)) == (lang == "ko") for text in texts), texts


def test_what_was_passed_over_is_named():
    answer = selection.recommend("korean", "best", license="commercial", memory_gb=1.5)
    rejected = dict(answer.rejected)
    assert answer.model_id == "Qwen/Qwen2.5-1.5B-Instruct" and answer.precision == "nf4"
    assert "commercial" in rejected["LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct"]
    assert "GB" in rejected["Qwen/Qwen2.5-7B-Instruct"]
    assert "above 2B" in dict(selection.recommend("korean", "mobile").rejected)["Qwen/Qwen2.5-7B-Instruct"]


# --- figures

def test_recommendations_rest_on_figures_of_the_data():
    for answer in (*every_recommendation(), *every_recommendation(license="open", memory_gb=4)):
        card = cards.get_card(answer.model_id)
        for name, figure in answer.figures.items():
            assert name == figure.benchmark and figure.model == card.id and figure.page[1].startswith("https://")
            if name in ("parameters", "context"):
                assert figure.value == getattr(card, name)
            else:
                assert figure in published.published_figures(card.id)
