"""The catalog against itself, against transformers (counts) and against bitsandbytes (bytes)."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from course_lib import catalog, runtime

ROOT = Path(__file__).resolve().parent.parent
DATA = json.loads((runtime.data_dir() / "catalog.json").read_text(encoding="utf-8"))
MODELS = {entry["id"]: entry for entry in DATA["models"]}
BUILDABLE = [name for name, entry in MODELS.items() if entry["model_type"]]
TASKS = DATA["tasks"]
HANGUL = re.compile(r"[가-힣]")
FIELDS = {"id", "instruct_id", "aliases", "name", "family", "maker", "parameters", "model_type", "config", "context",
          "licence", "licence_url", "commercial_use", "gated", "training_tokens", "training_tokens_note", "released",
          "languages", "languages_note", "tasks", "note", "sources"}
FIGURES = {"parameters", "config", "context", "licence", "training_tokens", "released"}


@pytest.fixture(autouse=True)
def english():
    runtime.set_language("en")
    yield
    runtime.set_language("en")


def every_recommendation(**conditions):
    for task in TASKS:
        for tier in catalog.TIERS:
            yield catalog.recommend(task, tier, **conditions)


# --- the data

def test_entries_are_complete():
    for name, entry in MODELS.items():
        assert set(entry) - {"count_difference", "native_context"} == FIELDS, name
        assert set(entry["sources"]) == FIGURES, name
        assert entry["licence_url"].startswith("https://") and entry["context"] >= 2048 and entry["config"], name
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
    assert all(source["url"].startswith("https://") and source["title"] for source in DATA["sources"].values())


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
    assert not catalog.get("Qwen/Qwen2.5-3B-Instruct").commercial_use
    assert not catalog.get("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct").commercial_use
    assert catalog.get("meta-llama/Llama-3.2-1B").training_tokens == 9 * 10**12
    assert catalog.get("google/gemma-2-2b-it").config["vocab_size"] == 256000
    assert "multilingual" not in catalog.get("google/gemma-2-9b-it").tasks
    assert "summarization" not in catalog.get("HuggingFaceTB/SmolLM-1.7B").tasks
    assert catalog.get("Qwen/Qwen2.5-1.5B-Instruct").context == 32768


# --- names

def test_every_name_resolves_to_one_card():
    seen = {}
    for name, entry in MODELS.items():
        for alias in {name, entry["instruct_id"] or name, *entry["aliases"]}:
            assert catalog.get(alias).id == catalog.get(alias.upper()).id == name
            for key in (alias.lower(), alias.lower().rpartition("/")[2]):
                assert seen.setdefault(key, name) == name, f"{key} names two models"
    assert catalog.ids() == list(MODELS)


def test_the_names_that_lessons_use():
    assert catalog.get("smollm2-135m").load_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert catalog.get("Qwen/Qwen2.5-7B-Instruct") is catalog.get("qwen2.5-7b")
    assert catalog.get("google/codegemma-2b").load_id == "google/codegemma-2b"
    assert catalog.get("Qwen/Qwen2.5-0.5B").speaks("ko") and not catalog.get("smollm2-135m").speaks("ko")
    for profile in runtime.PROFILES.values():
        assert catalog.get(profile.model) and catalog.get(profile.larger_model)


def test_an_unknown_name_is_told_what_is_close():
    with pytest.raises(LookupError, match=r"'Qwen/Qwen2\.5-7B-Instrct'.*Qwen/Qwen2\.5-7B-Instruct\b.*ids\(\)"):
        catalog.get("Qwen/Qwen2.5-7B-Instrct")
    with pytest.raises(LookupError, match=r"ids\(\)"):
        catalog.get("???")


def test_a_figure_leads_to_its_page():
    title, url = catalog.get("meta-llama/Llama-3.2-1B").source("training_tokens")
    assert "Llama 3.2" in title and url.startswith("https://github.com/meta-llama/")
    with pytest.raises(LookupError, match="'parameters' of microsoft/Phi-3-small"):
        catalog.get("microsoft/Phi-3-small-8k-instruct").source("parameters")


# --- counts and bytes

@pytest.mark.parametrize("name", BUILDABLE)
def test_the_count_is_the_published_one(name):
    card = catalog.get(name)
    assert catalog.count_parameters(card.load_id) == card.parameters + card.count_difference
    assert card.count_difference == (98304 if name == "stabilityai/stablelm-2-1_6b" else 0)


def test_a_skeleton_has_no_storage_and_is_yours():
    first, second = catalog.skeleton("smollm2-135m"), catalog.skeleton("smollm2-135m")
    assert {parameter.device.type for parameter in first.parameters()} == {"meta"} and first is not second
    assert catalog.skeleton("google/gemma-2-2b").config._attn_implementation == "eager"  # soft-capping
    assert catalog.skeleton("qwen2.5-0.5b").config._attn_implementation in ("sdpa", "eager")


def test_a_model_without_a_class_says_so():
    with pytest.raises(ValueError, match="Phi-3-small-8k-instruct can't be built"):
        catalog.count_parameters("microsoft/Phi-3-small-8k-instruct")


def test_building_a_config_leaves_the_card_alone():
    before = json.dumps(catalog.get("meta-llama/Llama-3.2-1B").config)
    catalog.config("meta-llama/Llama-3.2-1B").rope_parameters["factor"] = 1.0
    assert json.dumps(catalog.get("meta-llama/Llama-3.2-1B").config) == before


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Random Llamas on disk, with tied and with separate embeddings, and biases; their widths fill no block evenly."""
    folders = {}
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=3000, hidden_size=312, intermediate_size=1004, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=True)
        folders[tied] = tmp_path_factory.mktemp(f"llama-{tied}")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folders[tied])
    return folders


def loaded_bytes(model) -> int:
    """Bytes of the weights' tensors: parameters, and the scales and tables that bitsandbytes hangs on them."""
    tensors = list(model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [value for value in vars(state).values() if torch.is_tensor(value)]
            state = state.state2
        scale = getattr(parameter, "SCB", None)
        tensors += [scale] if torch.is_tensor(scale) else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision, double_quant", [
    ("int8", True), ("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)])
def test_quantized_bytes_are_those_of_bitsandbytes(llamas, tied, precision, double_quant):
    options = {"load_in_8bit": True} if precision == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": precision, "bnb_4bit_use_double_quant": double_quant}
    model = AutoModelForCausalLM.from_pretrained(llamas[tied], quantization_config=BitsAndBytesConfig(**options),
                                                 dtype=torch.bfloat16, device_map="cpu")
    predicted = catalog.weight_bytes(LlamaConfig.from_pretrained(llamas[tied]), precision, double_quant=double_quant)
    assert predicted == pytest.approx(loaded_bytes(model), rel=0.001)  # 0 with bitsandbytes 0.50.2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision, dtype", [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_plain_bytes_are_exact(llamas, tied, precision, dtype):
    model = AutoModelForCausalLM.from_pretrained(llamas[tied], dtype=dtype)
    assert catalog.weight_bytes(LlamaConfig.from_pretrained(llamas[tied]), precision) == loaded_bytes(model)


def test_bytes_fall_with_the_bits():
    for name in BUILDABLE:
        sizes = [catalog.weight_bytes(name, p) for p in ("fp32", "bf16", "int8", "nf4")]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == 2 * sizes[1], name
        assert sizes[3] < catalog.weight_bytes(name, "nf4", double_quant=False) < sizes[2], name
        assert catalog.weight_bytes(name, "fp4") == sizes[3] and catalog.weight_bytes(name, "fp16") == sizes[1]


def test_double_quantization_saves_what_qlora_says():
    """QLoRA, section 3: 0.373 bits for each quantized weight."""
    kept, linears = catalog.shapes("meta-llama/Llama-3.1-70B")
    saved = (catalog.weight_bytes("meta-llama/Llama-3.1-70B", "nf4", double_quant=False)
             - catalog.weight_bytes("meta-llama/Llama-3.1-70B", "nf4"))
    assert 8 * saved / sum(size for size, _ in linears) == pytest.approx(0.373, abs=0.001)


def test_an_unknown_precision_lists_the_known():
    with pytest.raises(ValueError, match="precision is 'int3'.*nf4"):
        catalog.weight_bytes("smollm2-135m", "int3")


# --- tables

def test_table_and_compare_follow_the_language():
    english, korean = catalog.table("en"), catalog.table("ko")
    assert len(english) == len(korean) == len(MODELS) and "Model" in english.columns
    assert all(HANGUL.search(head) for head in korean.columns) and runtime.language() == "en"
    side = catalog.compare(["smollm2-135m", "Qwen/Qwen2.5-7B-Instruct", "microsoft/Phi-3-small-8k-instruct"])
    assert list(side.columns) == ["SmolLM2 135M", "Qwen2.5 7B", "Phi-3-small 7B (8K)"]
    assert side.loc["Weights in bf16 (GB)", "Qwen2.5 7B"] == 15.23
    assert side.loc["Layers", "SmolLM2 135M"] == 30
    assert all(HANGUL.search(head) for head in catalog.compare(["smollm2-135m"], "ko").index)
    with pytest.raises(ValueError, match="lang is 'fr'"):
        catalog.table("fr")
    assert runtime.language() == "en"


# --- recommendations

@pytest.mark.parametrize("conditions", [
    {}, {"licence": "commercial"}, {"licence": "open"}, {"memory_gb": 6}, {"memory_gb": 3}])
def test_a_lower_tier_is_never_larger(conditions):
    for task in TASKS:
        sizes = [catalog.get(catalog.recommend(task, tier, **conditions).model_id).parameters for tier in catalog.TIERS]
        assert sizes == sorted(sizes, reverse=True), task
        assert all(size <= bound for size, bound in zip(sizes, catalog.TIERS.values(), strict=True)), task


@pytest.mark.parametrize("memory_gb", [1.5, 2.5, 4, 8, 16, 80])
def test_memory_is_respected_and_used(memory_gb):
    for answer in every_recommendation(memory_gb=memory_gb):
        size = catalog.weight_bytes(answer.model_id, answer.precision)
        assert size * (1 + catalog.MARGIN) <= memory_gb * 1e9 and answer.weight_gb == size / 1e9
        better = {"bf16": None, "int8": "bf16", "nf4": "int8"}[answer.precision]
        assert not better or catalog.weight_bytes(answer.model_id, better) * (1 + catalog.MARGIN) > memory_gb * 1e9
    assert all(answer.precision == "bf16" for answer in every_recommendation())


def test_licences_are_respected():
    assert all(catalog.get(answer.model_id).commercial_use for answer in every_recommendation(licence="commercial"))
    licences = {catalog.get(answer.model_id).licence for answer in every_recommendation(licence="open")}
    assert licences <= {"Apache-2.0", "MIT"}


def test_the_recommended_model_chats():
    for answer in every_recommendation():
        assert answer.model_id == catalog.get(answer.model_id).instruct_id


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_reasons_are_in_the_language(lang):
    runtime.set_language(lang)
    for answer in (*every_recommendation(memory_gb=4), *every_recommendation(licence="open")):
        texts = [*answer.reasons, *(why for _, why in answer.rejected)]
        assert len(answer.reasons) >= 4 and all(texts)
        assert all(bool(HANGUL.search(text)) == (lang == "ko") for text in texts), texts


def test_what_was_passed_over_is_named():
    answer = catalog.recommend("korean", "best", licence="commercial", memory_gb=1.5)
    rejected = dict(answer.rejected)
    assert answer.model_id == "Qwen/Qwen2.5-1.5B-Instruct" and answer.precision == "nf4"
    assert "commercial" in rejected["LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct"]
    assert "GB" in rejected["Qwen/Qwen2.5-7B-Instruct"]
    assert "above 2B" in dict(catalog.recommend("korean", "mobile").rejected)["Qwen/Qwen2.5-7B-Instruct"]


def test_wrong_arguments_are_told_the_right_ones():
    with pytest.raises(ValueError) as error:
        catalog.recommend("poetry")
    assert "task is 'poetry'" in str(error.value) and all(task in str(error.value) for task in TASKS)
    with pytest.raises(ValueError, match="tier is 'huge'.*best, budget, mobile"):
        catalog.recommend("code", "huge")
    with pytest.raises(ValueError, match="licence is 'free'.*commercial, open"):
        catalog.recommend("code", licence="free")
    with pytest.raises(ValueError, match="memory_gb is 0"):
        catalog.recommend("code", memory_gb=0)


def test_nothing_fits_says_what_the_smallest_needs():
    need = catalog.weight_bytes("Qwen/Qwen2.5-Coder-1.5B", "nf4") * (1 + catalog.MARGIN) / 1e9
    with pytest.raises(LookupError, match=rf"0\.5 GB.*Qwen2\.5-Coder-1\.5B-Instruct, needs {need:.2f} GB"):
        catalog.recommend("code", memory_gb=0.5)


def test_import_is_quick_and_light():
    code = ("import sys, course_lib.catalog as catalog; catalog.get('smollm2-135m'); "
            "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
