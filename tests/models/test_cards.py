"""The cards of the catalog: complete entries, sources for all figures, names that resolve."""
from __future__ import annotations

import json
import re

import pytest

from course_lib import runtime
from course_lib.models import cards

DATA = json.loads((runtime.data_dir() / "catalog.json").read_text(encoding="utf-8"))
MODELS = {entry["id"]: entry for entry in DATA["models"]}
TASKS = DATA["tasks"]
HANGUL = re.compile(r"[가-힣]")
FIELDS = set(
    "id instruct_id aliases name family maker parameters model_type config context license license_url "
    "commercial_use gated training_tokens training_tokens_note released languages languages_note tasks "
    "note sources".split())
FIGURES = {"parameters", "config", "context", "license", "training_tokens", "released"}


# --- the data

def test_entries_are_complete():
    for name, entry in MODELS.items():
        assert set(entry) - {"count_difference", "native_context"} == FIELDS, name
        assert set(entry["sources"]) == FIGURES, name
        assert entry["license_url"].startswith("https://"), name
        assert entry["context"] >= 2048 and entry["config"], name
        assert all(re.fullmatch("[a-z]{2}", code) for code in entry["languages"]) and entry["languages"], name
        assert entry["released"] is None or re.fullmatch(r"20\d\d-[01]\d(-[0-3]\d)?", entry["released"]), name
    assert len(MODELS) == len(DATA["models"])


def test_each_figure_has_a_source_and_each_gap_a_note():
    for name, entry in MODELS.items():
        for figure, key in entry["sources"].items():
            assert (entry[figure] is None) == (key is None), (name, figure)
            assert key is None or key in DATA["sources"], (name, figure, key)
            if key is None:
                explained = (entry["training_tokens_note"] or "") + (entry["note"] or {}).get("en", "")
                assert "not found" in explained or "not disclosed" in explained, (name, figure)
    for key, source in DATA["sources"].items():
        assert source["url"].startswith("https://") and source["title"], key


def test_texts_are_in_two_languages():
    pairs = [entry["note"] for entry in MODELS.values() if entry["note"]]
    for task in TASKS.values():
        pairs += [task["name"], *(candidate["why"] for candidate in task["candidates"])]
    for pair in pairs:
        assert set(pair) == {"en", "ko"} and not HANGUL.search(pair["en"]), pair
        assert HANGUL.search(pair["ko"]) or "RAG" in pair["ko"], pair


def test_tasks_and_models_refer_to_each_other():
    for task, entry in TASKS.items():
        candidates = [candidate["id"] for candidate in entry["candidates"]]
        assert len(set(candidates)) == len(candidates)
        assert set(candidates) == {name for name, model in MODELS.items() if task in model["tasks"]}, task
        assert all(candidate["source"] in DATA["sources"] for candidate in entry["candidates"])


def test_what_the_source_lessons_had_wrong():
    assert not cards.get_card("Qwen/Qwen2.5-3B-Instruct").commercial_use
    assert not cards.get_card("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct").commercial_use
    assert cards.get_card("meta-llama/Llama-3.2-1B").training_tokens == 9 * 10**12
    assert cards.get_card("google/gemma-2-2b-it").config["vocab_size"] == 256000
    assert "multilingual" not in cards.get_card("google/gemma-2-9b-it").tasks
    assert "summarization" not in cards.get_card("HuggingFaceTB/SmolLM-1.7B").tasks
    assert cards.get_card("Qwen/Qwen2.5-1.5B-Instruct").context == 32768


# --- names

def test_every_name_resolves_to_one_card():
    seen = {}
    for name, entry in MODELS.items():
        for alias in {name, entry["instruct_id"] or name, *entry["aliases"]}:
            assert cards.get_card(alias).id == cards.get_card(alias.upper()).id == name
            for key in (alias.lower(), alias.lower().rpartition("/")[2]):
                assert seen.setdefault(key, name) == name, f"{key} names two models"
    assert cards.catalog_ids() == list(MODELS)


def test_the_names_that_lessons_use():
    assert cards.get_card("smollm2-135m").load_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert cards.get_card("Qwen/Qwen2.5-7B-Instruct") is cards.get_card("qwen2.5-7b")
    assert cards.get_card("google/codegemma-2b").load_id == "google/codegemma-2b"
    assert cards.get_card("Qwen/Qwen2.5-0.5B").speaks("ko")
    assert not cards.get_card("smollm2-135m").speaks("ko")
    for profile in runtime.PROFILES.values():
        assert cards.get_card(profile.model) and cards.get_card(profile.larger_model)


def test_an_unknown_name_is_told_what_is_close():
    words = r"'Qwen/Qwen2\.5-7B-Instrct'.*Qwen/Qwen2\.5-7B-Instruct\b.*ids\(\)"
    with pytest.raises(LookupError, match=words):
        cards.get_card("Qwen/Qwen2.5-7B-Instrct")
    with pytest.raises(LookupError, match=r"ids\(\)"):
        cards.get_card("???")


def test_a_figure_leads_to_its_page():
    title, url = cards.get_card("meta-llama/Llama-3.2-1B").source("training_tokens")
    assert "Llama 3.2" in title and url.startswith("https://github.com/meta-llama/")
    with pytest.raises(LookupError, match="'parameters' of microsoft/Phi-3-small"):
        cards.get_card("microsoft/Phi-3-small-8k-instruct").source("parameters")
