"""Skeletons, parameters and bytes against transformers and bitsandbytes; tables of the catalog."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from course_lib import runtime
from course_lib.models import cards, catalog

HANGUL = re.compile(r"[가-힣]")
BUILDABLE = [name for name in cards.catalog_ids() if cards.get_card(name).model_type]


def test_the_count_is_the_published_one():
    published = {
        name: cards.get_card(name).parameters + cards.get_card(name).count_difference for name in BUILDABLE
    }
    assert {name: catalog.count_parameters(cards.get_card(name).load_id) for name in BUILDABLE} == published
    differences = {name: cards.get_card(name).count_difference for name in BUILDABLE}
    assert {name for name, count in differences.items() if count} == {"stabilityai/stablelm-2-1_6b"}
    assert differences["stabilityai/stablelm-2-1_6b"] == 98304


def test_a_skeleton_has_no_storage_and_is_yours():
    first = catalog.skeleton("smollm2-135m")
    second = catalog.skeleton("smollm2-135m")
    assert {parameter.device.type for parameter in first.parameters()} == {"meta"} and first is not second
    assert catalog.skeleton("google/gemma-2-2b").config._attn_implementation == "eager"  # soft-capping
    assert catalog.skeleton("qwen2.5-0.5b").config._attn_implementation in ("sdpa", "eager")


def test_a_model_without_a_class_says_so():
    with pytest.raises(ValueError, match="Phi-3-small-8k-instruct can't be built"):
        catalog.count_parameters("microsoft/Phi-3-small-8k-instruct")


def test_building_a_config_leaves_the_card_alone():
    before = json.dumps(cards.get_card("meta-llama/Llama-3.2-1B").config)
    catalog.config("meta-llama/Llama-3.2-1B").rope_parameters["factor"] = 1.0
    assert json.dumps(cards.get_card("meta-llama/Llama-3.2-1B").config) == before


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Random Llamas on disk, with tied and separate embeddings, and biases; no width fills blocks evenly."""
    folders = {}
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=3000, hidden_size=312, intermediate_size=1004, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=True)
        folders[tied] = tmp_path_factory.mktemp(f"llama-{tied}")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folders[tied])
    return folders


def loaded_bytes(model) -> int:
    """Bytes of the weights' tensors: parameters, with scales and tables that bitsandbytes hangs on them."""
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
    settings = BitsAndBytesConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(
        llamas[tied], quantization_config=settings, dtype=torch.bfloat16, device_map="cpu")
    config = LlamaConfig.from_pretrained(llamas[tied])
    predicted = catalog.weight_bytes(config, precision, double_quant=double_quant)
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
        assert catalog.weight_bytes(name, "fp4") == sizes[3]
        assert catalog.weight_bytes(name, "fp16") == sizes[1]


def test_double_quantization_saves_what_qlora_says():
    """QLoRA, section 3: 0.373 bits for each quantized weight."""
    llama = "meta-llama/Llama-3.1-70B"
    saved = catalog.weight_bytes(llama, "nf4", double_quant=False) - catalog.weight_bytes(llama, "nf4")
    assert 8 * saved / catalog.linear_shapes(llama).inside == pytest.approx(0.373, abs=0.001)


def test_linear_shapes_are_those_of_the_layers(tiny):
    model, _ = tiny
    shapes = catalog.linear_shapes(model.config)
    assert [(matrix.rows, matrix.columns) for matrix in shapes.matrices] == [
        tuple(layer.weight.shape) for layer in catalog.linear_layers(model).values()]
    assert shapes.matrices[1] == catalog.Matrix(32, 64)  # k_proj of two heads
    assert shapes.matrices[1].size == 2048
    assert shapes.outside + shapes.inside == model.num_parameters() == catalog.count_parameters(model.config)


def test_an_unknown_precision_lists_the_known():
    with pytest.raises(ValueError, match="precision is 'int3'.*nf4"):
        catalog.weight_bytes("smollm2-135m", "int3")


# --- tables

def test_table_and_compare_follow_the_language():
    english = catalog.catalog_table("en")
    korean = catalog.catalog_table("ko")
    assert len(english) == len(korean) == len(cards.catalog_ids()) and "Model" in english.columns
    assert all(HANGUL.search(head) for head in korean.columns) and runtime.language() == "en"
    side = catalog.compare_models(
        ["smollm2-135m", "Qwen/Qwen2.5-7B-Instruct", "microsoft/Phi-3-small-8k-instruct"]
    )
    assert list(side.columns) == ["SmolLM2 135M", "Qwen2.5 7B", "Phi-3-small 7B (8K)"]
    assert side.loc["Weights in bf16 (GB)", "Qwen2.5 7B"] == 15.23
    assert side.loc["Layers", "SmolLM2 135M"] == 30
    assert all(HANGUL.search(head) for head in catalog.compare_models(["smollm2-135m"], "ko").index)
    with pytest.raises(ValueError, match="lang is 'fr'"):
        catalog.catalog_table("fr")
    assert runtime.language() == "en"
