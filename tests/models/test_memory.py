"""The estimates against what torch, bitsandbytes, transformers and peft really allocate."""
import pytest
import torch
from datasets import Dataset

from course_lib import loading
from course_lib.inference import meters
from course_lib.models import catalog, memory
from course_lib.training import finetune

REAL = "smollm2-135m"


@pytest.mark.parametrize(
    "precision, double_quant",
    [("fp32", True), ("bf16", True), ("int8", True), ("nf4", True), ("nf4", False), ("fp4", True)],
)
def test_weights_of_the_real_model_are_within_one_percent(precision, double_quant):
    model, _ = loading.load(REAL, precision, double_quant=double_quant)
    estimated = memory.estimate_memory(REAL, precision, double_quant=double_quant).weights
    assert estimated == pytest.approx(meters.measured_bytes(model), rel=0.01)


def test_kv_cache_equals_a_real_cache(real):
    model, _ = real
    with torch.inference_mode():
        cache = model(torch.randint(0, 1000, (2, 37)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.kv_cache_bytes(model.config, context=37, batch=2, width=4) == held
    assert memory.estimate_memory(REAL, "fp32", context=37, batch=2).kv_cache == held


def test_kv_cache_of_a_sliding_window_stops_growing():
    gemma = catalog.config("google/gemma-2-2b")  # every other layer sees 4,096 tokens
    growth = memory.kv_cache_bytes(gemma, 8192) - memory.kv_cache_bytes(gemma, 4096)
    assert memory.kv_cache_bytes(gemma, 4096) == 2 * growth == 106_496 * 4096


def korean(tokenizer, rows, length):
    """`rows` conversations of exactly `length` tokens, two thirds of them labelled."""
    text = tokenizer("안녕하세요 " * 400)["input_ids"][:length]
    return Dataset.from_list(
        [{"input_ids": text, "labels": [-100] * (length // 3) + text[length // 3 :]}] * rows
    )


@pytest.mark.parametrize("method, precision, batch, context, checkpointing", [
    ("full", "fp32", 2, 96, False), ("lora", "bf16", 2, 96, False), ("qlora", "nf4", 2, 96, False),
    ("full", "fp32", 1, 256, False), ("lora", "bf16", 1, 256, False), ("qlora", "nf4", 1, 256, False),
    ("full", "fp32", 1, 256, True), ("lora", "bf16", 1, 256, True), ("lora", "bf16", 1, 576, False),
])
def test_a_training_step_is_predicted_within_15_percent(
    monkeypatch, method, precision, batch, context, checkpointing
):
    model, tokenizer = loading.load(REAL, precision)
    weights = meters.measured_bytes(model)
    monkeypatch.setattr(finetune, "tokenize_chat", lambda dataset, *_: dataset)
    with meters.peak_bytes() as peak:  # two steps: from the second on the optimizer's state is there
        finetune.finetune(model, tokenizer, korean(tokenizer, 2 * batch, context), method=method, max_steps=2,
                          batch_size=batch, bf16=True, fp16=False, activation_checkpointing=checkpointing)
    plan = memory.Training(method, checkpointing=checkpointing)
    estimated = memory.estimate_memory(REAL, precision, context=context, batch=batch, training=plan)
    assert estimated.peak == pytest.approx(weights + peak.bytes, rel=0.15)


def test_checkpointing_needs_less_and_longer_sequences_more():
    plain, checkpointed = (
        memory.estimate_memory(
            REAL, context=512, training=memory.Training("full", checkpointing=flag)
        ).activations
        for flag in (False, True)
    )
    assert checkpointed < 0.5 * plain
    eager, sdpa = (
        memory.estimate_memory(
            REAL, context=512, training=memory.Training("lora", attention=kind)
        ).activations
        for kind in memory.ATTENTION
    )
    assert eager > 1.5 * sdpa
    once, twice = (
        memory.estimate_memory(REAL, context=length, training=memory.Training(attention="sdpa")).activations
        for length in (2048, 4096)
    )
    assert 1.8 * once < twice < 2 * once  # the head's block does not grow


def test_full_training_counts_gradients_and_two_moments():
    parts = memory.estimate_memory(REAL, "fp32", training="full")
    assert (parts.gradients, parts.optimizer, parts.adapters, parts.kv_cache) == (
        4 * 134_515_008,
        8 * 134_515_008,
        0,
        0,
    )
    assert parts.total == parts.weights + parts.activations + parts.gradients + parts.optimizer
    assert parts.peak == parts.total - min(parts.activations, parts.gradients)
    assert memory.estimate_memory(REAL, "bf16", training="full").weights == parts.weights, (
        "finetune trains fp32 weights"
    )


def test_adapters_equal_pefts(tiny):
    from peft import LoraConfig, get_peft_model

    model, _ = tiny
    expected = memory.adapter_parameters(model.config, rank=8)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert adapted.get_nb_trainable_parameters()[0] == expected
    assert memory.adapter_parameters("Qwen/Qwen2.5-1.5B", rank=16) == 18_464_768


def test_qlora_of_a_7b_fits_16_gb_and_full_training_does_not():
    qlora = memory.estimate_memory(
        "Qwen/Qwen2.5-7B", "nf4", context=512, training=memory.Training("qlora", checkpointing=True)
    )
    assert (
        qlora.total
        < 16e9
        < memory.estimate_memory("Qwen/Qwen2.5-7B", "bf16", context=512, training="full").total
    )


@pytest.mark.parametrize("arguments, words", [
    ({"context": 0}, "context is 0"), ({"batch": -1}, "batch is -1"), ({"precision": "int3"}, "int3"),
    ({"training": "adapter"}, "adapter"), ({"precision": "nf4", "training": "full"}, "qlora needs"),
    ({"precision": "bf16", "training": "qlora"}, "qlora needs"),
])
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        memory.estimate_memory(REAL, **arguments)


@pytest.mark.parametrize("arguments, words", [({"rank": 0}, "rank is 0"), ({"optimizer": "lion"}, "lion"),
                                              ({"attention": "flash"}, "flash")])
def test_bad_training_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        memory.Training(**arguments)
