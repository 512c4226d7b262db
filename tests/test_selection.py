"""The guide: every rule decides, the flowchart and the function share them, and answers rest on figures of the data."""
from __future__ import annotations

import re

import pytest

from course_lib import catalog, memory, published, runtime, selection, show

HANGUL = re.compile(r"[가-힣]")
TASKS = catalog.contents()["tasks"]
NAMES = [rule.name for rule in selection.RULES]
ALONE = {  # rule → conditions without it, what asks for it, and the answers without and with it
    "tier": ({"task": "rag"}, {"tier": "budget"}, "Llama-3.1-8B", "Llama-3.2-3B"),
    "commercial": ({"task": "code", "tier": "budget"}, {"licence": "commercial"}, "Qwen2.5-Coder-3B", "Qwen2.5-Coder-1.5B"),
    "open": ({"task": "rag"}, {"licence": "open"}, "Llama-3.1-8B", "Qwen2.5-7B"),
    "context": ({"task": "summarization", "tier": "mobile"}, {"context": 32768}, "SmolLM2-1.7B", "Llama-3.2-1B"),
    "memory": ({"task": "rag"}, {"memory_gb": 6}, "Llama-3.1-8B", "Llama-3.2-3B"),
}


def every_recommendation(**conditions):
    for task in TASKS:
        for tier in selection.TIERS:
            yield catalog.recommend(task, tier, **conditions)


# --- rules

def test_every_rule_has_a_case():
    assert list(ALONE) == NAMES


@pytest.mark.parametrize("name", ALONE)
def test_each_rule_decides_alone(name):
    common, asking, before, after = ALONE[name]
    first, second = catalog.recommend(**common), catalog.recommend(**common, **asking)
    assert (first.model_id, second.model_id) == tuple(
        catalog.get(short).load_id for short in (before, after))
    conditions = selection.Conditions(**common, **asking)
    failed = [rule for rule, passed in selection.judge_candidates(conditions)[catalog.get(before).id].items() if not passed]
    assert failed == [name]
    rule = selection.RULES[NAMES.index(name)]
    assert dict(second.rejected)[first.model_id] == rule.no(catalog.get(before), conditions)


@pytest.mark.parametrize("name", NAMES[:-1])  # the memory chooses the precision as well
def test_the_function_applies_the_list_of_rules(name, monkeypatch):
    common, asking, before, _ = ALONE[name]
    monkeypatch.setattr(selection, "RULES", tuple(rule for rule in selection.RULES if rule.name != name))
    assert catalog.recommend(**common, **asking).model_id == catalog.get(before).load_id


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
@pytest.mark.parametrize("name", ALONE)
def test_words_are_in_the_language(name, lang):
    runtime.set_language(lang)
    common, asking, before, _ = ALONE[name]
    rule, conditions = selection.RULES[NAMES.index(name)], selection.Conditions(**common, **asking)
    said = [rule.question, *(say(catalog.get(before), conditions) for say in (rule.yes, rule.no, rule.need))]
    assert len(set(said)) == 4 and all(bool(HANGUL.search(words)) == (lang == "ko") for words in said)


def test_only_what_is_asked_is_judged():
    assert set(selection.judge_candidates(selection.Conditions("rag"))["Qwen/Qwen2.5-7B"]) == {"tier"}
    asked = selection.judge_candidates(selection.Conditions("rag", "best", 8, "open", 4096))["Qwen/Qwen2.5-7B"]
    assert list(asked) == ["tier", "open", "context", "memory"]


# --- context and memory

def test_the_cache_counts_as_the_memory_module_says():
    card = catalog.get("Qwen/Qwen2.5-7B")
    need, estimate = selection.memory_need(card, "int8", 32768), memory.estimate(card.id, "int8", context=32768)
    assert (need.weights, need.cache) == (estimate.weights, estimate.kv_cache)
    assert need.spare == max(estimate.activations, selection.MARGIN * estimate.weights)
    assert need.total == need.weights + need.cache + need.spare


def test_a_longer_context_never_needs_less_and_may_cost_precision():
    card = catalog.get("microsoft/Phi-4-mini-instruct")
    totals = [selection.memory_need(card, "nf4", context).total for context in (None, 1, 512, 8192, 131072)]
    assert totals == sorted(totals) and totals[0] < totals[-1]
    short, long = (catalog.recommend("general_chat", memory_gb=16, context=context) for context in (2048, 65536))
    assert short.model_id == "Qwen/Qwen2.5-7B-Instruct" and short.precision == "int8"
    assert (long.model_id, long.precision) != (short.model_id, short.precision)
    for answer in (short, long):
        assert answer.weight_gb < answer.need_gb <= 16


def test_the_context_is_respected():
    for context in (8192, 32768):
        assert all(catalog.get(answer.model_id).context >= context for answer in every_recommendation(context=context)
                   if answer.task not in ("edge", "code"))
    with pytest.raises(LookupError, match=r"holds 200,000 tokens; the longest context is .*, 131,072 tokens"):
        catalog.recommend("rag", context=200_000)


def test_what_needs_yarn_says_so():
    reasons = " ".join(catalog.recommend("general_chat", context=65536).reasons)
    assert "32,768" in reasons and "YaRN" in reasons
    assert "YaRN" not in " ".join(catalog.recommend("general_chat", context=32768).reasons)
    extended = {card.id for card in map(catalog.get, catalog.ids()) if card.native_context}
    assert extended and all("YaRN" in catalog.get(name).note["en"] for name in extended)


# --- when nothing fits

@pytest.mark.parametrize("conditions, said", [
    ({"task": "code", "memory_gb": 0.5}, r"fits in 0\.5 GB; the smallest, Qwen/Qwen2\.5-Coder-1\.5B-Instruct, needs 1\.3\d GB"),
    ({"task": "code", "tier": "mobile", "context": 65536}, r"Coder-7B-Instruct, has 7\.62B parameters, above this tier's 2B"),
    ({"task": "code", "tier": "mobile", "context": 65536}, r"Coder-1\.5B-Instruct's, 32,768 tokens"),
    ({"task": "reasoning", "licence": "open", "tier": "budget", "context": 200_000}, r"131,072 tokens"),
    ({"task": "korean", "licence": "open", "context": 131073}, r"Qwen/Qwen2\.5-7B-Instruct's, 131,072"),
    ({"task": "korean", "memory_gb": 0.1, "context": 200_000}, r"The nearest, .* fails several: .*200,000.*0\.1 GB"),
])
def test_impossible_conditions_say_what_would_be_needed(conditions, said):
    with pytest.raises(LookupError, match=said):
        catalog.recommend(**conditions)


@pytest.mark.parametrize("licence, said", [
    ("commercial", "does not permit commercial use"), ("open", "neither Apache-2.0 nor MIT")])
def test_a_licence_that_alone_is_in_the_way_is_named(licence, said, monkeypatch):
    entries = {"name": {"en": "t", "ko": "t"}, "candidates": [
        {"id": "Qwen/Qwen2.5-3B", "why": {"en": "w", "ko": "w"}, "source": "QW-BLOG", "figures": []}]}
    monkeypatch.setitem(catalog.contents()["tasks"], "only", entries)
    with pytest.raises(LookupError, match=f"Qwen2.5-3B-Instruct meets the other conditions, but .*{said}"):
        catalog.recommend("only", licence=licence)


def test_the_reason_why_none_fits_follows_the_language():
    runtime.set_language("ko")
    with pytest.raises(LookupError, match="한국어.*0.1 GB"):
        catalog.recommend("korean", memory_gb=0.1)


@pytest.mark.parametrize("arguments, said", [
    (("poetry",), "task is 'poetry'.*general_chat.*edge"), (("code", "huge"), "tier is 'huge'.*best, budget, mobile"),
    (("code", "best", None, "free"), "licence is 'free'.*commercial, open"), (("code", "best", 0), "memory_gb is 0"),
    (("code", "best", None, None, 0), "context is 0; it must be above 0")])
def test_wrong_arguments_are_told_the_right_ones(arguments, said):
    with pytest.raises(ValueError, match=said):
        catalog.recommend(*arguments)


def test_the_catalog_lends_the_names():
    assert catalog.recommend is selection.recommend and catalog.Recommendation is selection.Recommendation
    with pytest.raises(AttributeError, match="no attribute 'advise'"):
        _ = catalog.advise


# --- figures

def test_recommendations_rest_on_figures_of_the_data():
    for answer in (*every_recommendation(), *every_recommendation(licence="open", memory_gb=4)):
        card = catalog.get(answer.model_id)
        for name, figure in answer.figures.items():
            assert name == figure.benchmark and figure.model == card.id and figure.page[1].startswith("https://")
            if name in ("parameters", "context"):
                assert figure.value == getattr(card, name)
            else:
                assert figure in published.published_figures(card.id)


# --- pictures

def drawn_rules():
    axes = show.selection_flowchart().axes[0]
    boxes = [patch.get_gid().removeprefix("rule.") for patch in axes.patches if (patch.get_gid() or "").startswith("rule.")]
    words = {label.get_gid(): label.get_text() for label in axes.texts if label.get_gid()}
    return boxes, words


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_flowchart_shows_exactly_the_rules(lang):
    runtime.set_language(lang)
    boxes, words = drawn_rules()
    assert boxes == NAMES and set(words) == {"start.words", "answer.words", *(f"rule.{name}.words" for name in NAMES)}
    for rule in selection.RULES:
        assert words[f"rule.{rule.name}.words"].split() == rule.question.split()


def test_the_flowchart_follows_the_rules(monkeypatch):
    monkeypatch.setattr(selection, "RULES", tuple(reversed(selection.RULES[1:])))
    assert drawn_rules()[0] == NAMES[:0:-1]


def marks(figure):
    """How many dots, crosses and grey points the picture shows."""
    sizes = [(points.get_sizes()[0], tuple(points.get_facecolor()[0][:3])) for points in figure.axes[0].collections]
    return len(sizes), sum(size == 6 for size, _ in sizes)


def test_the_picture_shows_each_candidate_against_each_rule():
    figure = show.selection_picture("rag", "best", 16, "commercial")
    shown, grey = marks(figure)
    candidates = len(TASKS["rag"]["candidates"])
    assert shown == candidates * len(NAMES) and grey == candidates * 2  # "open" and "context" are not asked
    words = " ".join(label.get_text() for label in figure.texts)
    assert "Llama-3.1-8B-Instruct, int8" in words and "98.8" in words and "Llama 3.2, model card" in words
    assert "Nothing fits" in show.selection_picture("rag", "best", 0.1).texts[0].get_text()
    assert "No benchmark figure" in show.selection_picture("edge").texts[1].get_text()


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_words_stay_inside_the_picture(lang):
    runtime.set_language(lang)
    show.use_korean_font()
    for task in TASKS:
        for others in (("best", 80, "commercial", 32768), ("best", 80, None, 131072), ("mobile", 1, "open", 131072)):
            figure = show.selection_picture(task, *others)
            for label in figure.texts:
                box = label.get_window_extent()
                assert box.y0 > 0 and box.x1 < figure.bbox.width, (task, others, label.get_text())


def test_the_widget_goes_through_its_states():
    box = show.selection_explorer()
    *controls, image = box.children
    seen = {bytes(image.value)}
    for control, value in zip(controls, ("korean", "mobile", 4, 32768, "open"), strict=True):
        control.value = value
        seen.add(bytes(image.value))
    controls[2].value = 1  # nothing fits
    seen.add(bytes(image.value))
    assert len(seen) == 7
    for control in controls[2:]:
        assert None in dict(control.options).values()
        control.value = None
        seen.add(bytes(image.value))
    assert len(seen) == 10


def test_the_widget_speaks_korean_and_has_its_picture(shown):
    runtime.set_language("ko")
    show.use_korean_font()
    box = show.selection_explorer()
    assert all(HANGUL.search(control.description) for control in box.children[:-1])
    show.display_with_fallback(box)
    assert "image/png" in shown[0]
