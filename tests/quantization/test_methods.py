"""Whole models: every method's result runs, is saved, comes back the same, and is worse than 16 bit by what
it should be."""
import errno

import pytest
import torch
from datasets import Dataset

from course_lib import loading
from course_lib.data import texts
from course_lib.inference import perplexity
from course_lib.models.int4 import Int4Linear
from course_lib.quantization import methods
from course_lib.training import finetune, samples

QUESTIONS = Dataset.from_list([
    {"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(12)])
TEXTS = texts.load_corpus("en")["text"][:2]
DATA = {"awq": {"calibration_texts": TEXTS}, "gptq": {"calibration_texts": TEXTS},
        "qat": {"training_data": QUESTIONS}}
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model, ids=None):
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 60)[None] if ids is None else ids).logits.float()


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_result_runs_and_comes_back_the_same(tiny_folder, tmp_path, method):
    model, tokenizer = methods.quantize(tiny_folder, method, **DATA.get(method, {}), folder=tmp_path / "made")
    loaded, again = loading.load(tmp_path / "made")
    assert not model.training and again.chat_template == tokenizer.chat_template
    assert torch.equal(logits(model), logits(loaded))
    original, _ = loading.load(tiny_folder, "bf16")
    assert not torch.equal(logits(model), logits(original))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_model_in_memory_stays_as_it_is(tiny):
    model, tokenizer = tiny
    before = logits(model)
    rounded, _ = methods.quantize(model, "rtn", tokenizer=tokenizer)
    assert torch.equal(logits(model), before) and type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert isinstance(rounded.model.layers[0].mlp.up_proj, Int4Linear)
    assert type(rounded.lm_head) is torch.nn.Linear


def test_qat_ends_below_rounding_after_the_same_training(tiny_folder):
    """The same steps on the same samples: with rounding inside the loop, and rounded at the end."""
    settings = {"epochs": 12, "learning_rate": 3e-3, "batch_size": 4}
    model, tokenizer = loading.load(tiny_folder, "fp32")
    tokenized = samples.tokenize_chat(QUESTIONS, tokenizer)
    plain = finetune.finetune(model, tokenizer, QUESTIONS, method="full", **settings).model
    rounded, _ = methods.quantize(plain, "rtn", tokenizer=tokenizer)
    aware = methods.qat(loading.load(tiny_folder, "fp32")[0], tokenizer, QUESTIONS, **settings).model
    assert perplexity.answer_loss(aware, tokenized) < perplexity.answer_loss(rounded, tokenized)


@pytest.mark.parametrize("arguments, message", (
    ({"method": "int3"}, "method is 'int3'"),
    ({"method": "Q4_0"}, "method is 'Q4_0', a format of llama.cpp; to_gguf"),
    ({"method": "gguf"}, "method is 'gguf', a format of llama.cpp; to_gguf"),
    ({"method": "rtn", "calibration_texts": TEXTS}, "calibration_texts was given, but rtn does not look"),
    ({"method": "gptq", "training_data": QUESTIONS}, "training_data was given, but gptq does not look at it"),
    ({"method": "awq", "calibration_texts": []}, "holds 0 texts with 0 tokens"),
    ({"method": "awq", "calibration_texts": ["Too short."]}, "holds 1 texts with 10 tokens"),
    ({"method": "awq", "calibration_texts": Dataset.from_list([{"prompt": "x"}])}, "has the columns prompt"),
    ({"method": "qat", "training_data": QUESTIONS.select([])}, "dataset is empty"),
))
def test_bad_input_is_named(tiny_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        methods.quantize(tiny_folder, **arguments)


def test_a_model_in_memory_needs_its_tokenizer(tiny):
    with pytest.raises(ValueError, match="tokenizer"):
        methods.quantize(tiny[0], "rtn")


def test_what_is_quantized_is_not_rounded_again(tiny_folder, tmp_path):
    model, tokenizer = methods.quantize(tiny_folder, "rtn", folder=tmp_path / "made")
    for source in (model, tmp_path / "made"):
        for method in ("rtn", "nf4"):
            with pytest.raises(ValueError, match="quantized"):
                methods.quantize(source, method, tokenizer=tokenizer)


def test_a_width_that_is_no_multiple_of_the_group_is_named(tmp_path, tiny):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2)).save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="q_proj has 48 inputs, which is no multiple of the group size 64"):
        methods.quantize(tmp_path, "rtn")


def test_a_full_disk_leaves_nothing_behind(tiny_folder, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match="disk is full"):
        methods.quantize(tiny_folder, "rtn", folder=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tiny_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other files"):
        methods.quantize(tiny_folder, "rtn", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_libraries_stay_silent(tiny_folder, tmp_path, capfd):
    methods.quantize(tiny_folder, "awq", calibration_texts=TEXTS, folder=tmp_path / "made")
    assert capfd.readouterr().out == ""
