"""Whole models: every method's result runs, is saved, comes back the same, and is worse than 16 bit by what it should be."""
import errno

import pytest
import torch
from datasets import Dataset

from course_lib import calibration, data, finetune, loading, quantize, training
from course_lib.gguf_files import QUANTIZATIONS
from course_lib.gguf_header import read_gguf_header
from course_lib.int4 import Int4Linear

QUESTIONS = Dataset.from_list([{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(12)])
TEXTS = data.load_corpus("en")["text"][:2]
CALIBRATION = {"awq": TEXTS, "gptq": TEXTS, "qat": QUESTIONS}
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model, ids=None):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None] if ids is None else ids).logits.float()


@pytest.mark.parametrize("method", ("rtn", "gptq", "int8", "nf4", "fp4", "awq", "qat", "Q5_K_S"))
def test_a_result_runs_and_comes_back_the_same(tiny_folder, tmp_path, method):
    model, tokenizer = quantize.quantize(tiny_folder, method, calibration=CALIBRATION.get(method), folder=tmp_path / "made")
    loaded, again = loading.load(tmp_path / "made")
    assert not model.training and again.chat_template == tokenizer.chat_template
    assert torch.equal(logits(model), logits(loaded))
    original, _ = loading.load(tiny_folder, "bf16")
    assert not torch.equal(logits(model), logits(original))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_model_in_memory_stays_as_it_is(tiny):
    model, tokenizer = tiny
    before = logits(model)
    rounded, _ = quantize.quantize(model, "rtn", tokenizer=tokenizer)
    assert torch.equal(logits(model), before) and type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert isinstance(rounded.model.layers[0].mlp.up_proj, Int4Linear)
    assert type(rounded.lm_head) is torch.nn.Linear


def test_bits_choose_the_gguf_quantization(tiny_folder, tmp_path):
    quantize.quantize(tiny_folder, "gguf", bits=8, calibration=TEXTS, folder=tmp_path / "made")
    assert read_gguf_header(tmp_path / "made" / "model.gguf").bytes_by_type().most_common(1)[0][0] == "Q8_0"
    assert set(quantize.GGUF_OF_BITS.values()) < set(QUANTIZATIONS)


def test_qat_ends_below_rounding_after_the_same_training(tiny_folder):
    """The same steps on the same samples: with rounding inside the loop, and rounded at the end."""
    settings = {"epochs": 12, "learning_rate": 3e-3, "batch_size": 4}
    model, tokenizer = loading.load(tiny_folder, "fp32")
    samples = training.tokenize_chat(QUESTIONS, tokenizer)
    plain = finetune.finetune(model, tokenizer, QUESTIONS, method="full", **settings).model
    rounded, _ = quantize.quantize(plain, "rtn", tokenizer=tokenizer)
    aware = quantize.qat(loading.load(tiny_folder, "fp32")[0], tokenizer, QUESTIONS, **settings).model
    assert training.answer_loss(aware, samples) < training.answer_loss(rounded, samples)


def test_the_default_calibration_is_the_courses(tiny):
    assert calibration.calibration_texts(None, tiny[1], 3) == data.load_corpus("en")["text"][:3]


def test_questions_are_read_in_the_chat_format(tiny):
    text = calibration.calibration_texts(QUESTIONS, tiny[1])[3]
    assert text == "<|im_start|>user\nWhat is 3?<|im_end|>\n<|im_start|>assistant\nIt is 3.<|im_end|>\n"


def test_inputs_are_summed_over_texts(tiny):
    """Against all inputs kept: the same sums, for layers early and late, in texts of different lengths."""
    model, tokenizer = tiny
    ids = [tokenizer(text, return_tensors="pt").input_ids[:, :50 + 10 * index] for index, text in enumerate(TEXTS)]
    names = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")
    layers, kept = {name: model.get_submodule(name) for name in names}, {name: [] for name in names}
    found = calibration.inputs_of(model, layers, ids)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, arguments, name=name: kept[name].append(arguments[0][0]))
    for row in ids:
        logits(model, row)
    for name in names:
        rows = torch.cat(kept[name])
        assert torch.allclose(found[name].gram, rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert torch.allclose(found[name].size, rows.abs().mean(0), rtol=1e-4)


@pytest.mark.parametrize("arguments, message", (
    ({"method": "int3"}, "method is 'int3'"),
    ({"method": "nf4", "bits": 3}, "bits is 3; nf4 has 4"),
    ({"method": "gguf", "bits": 7}, "gguf has 2 or 3 or 4 or 5 or 6 or 8"),
    ({"method": "Q4_0", "bits": 4}, "leave bits out"),
    ({"method": "rtn", "calibration": TEXTS}, "rounds without looking at data"),
    ({"method": "awq", "calibration": []}, "holds 0 texts with 0 tokens"),
    ({"method": "awq", "calibration": ["Too short."]}, "holds 1 texts with 10 tokens"),
    ({"method": "awq", "calibration": Dataset.from_list([{"prompt": "x"}])}, "has the columns prompt"),
    ({"method": "qat", "calibration": QUESTIONS.select([])}, "dataset is empty"),
))
def test_bad_input_is_named(tiny_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize.quantize(tiny_folder, **arguments)


def test_a_model_in_memory_needs_its_tokenizer(tiny):
    with pytest.raises(ValueError, match="tokenizer"):
        quantize.quantize(tiny[0], "rtn")


def test_what_is_quantized_is_not_rounded_again(tiny_folder, tmp_path):
    model, tokenizer = quantize.quantize(tiny_folder, "rtn", folder=tmp_path / "made")
    for source in (model, tmp_path / "made"):
        for method in ("rtn", "nf4"):
            with pytest.raises(ValueError, match="quantized"):
                quantize.quantize(source, method, tokenizer=tokenizer)


def test_a_width_that_is_no_multiple_of_the_group_is_named(tmp_path, tiny):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2)).save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="q_proj has 48 inputs, which is no multiple of the group size 64"):
        quantize.quantize(tmp_path, "rtn")


def test_a_full_disk_leaves_nothing_behind(tiny_folder, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match="disk is full"):
        quantize.quantize(tiny_folder, "rtn", folder=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tiny_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other files"):
        quantize.quantize(tiny_folder, "rtn", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_libraries_stay_silent(tiny_folder, tmp_path, capfd):
    quantize.quantize(tiny_folder, "awq", calibration=TEXTS, folder=tmp_path / "made")
    assert capfd.readouterr().out == ""
