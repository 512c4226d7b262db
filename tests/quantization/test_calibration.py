"""Calibration texts, and the statistics of what layers read of them."""
import torch
from datasets import Dataset

from course_lib.data import texts
from course_lib.quantization import calibration

QUESTIONS = Dataset.from_list([
    {"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(12)])
TEXTS = texts.load_corpus("en")["text"][:2]


def test_the_default_calibration_is_the_courses(tiny):
    assert calibration.read_texts(None, tiny[1], 3) == texts.load_corpus("en")["text"][:3]


def test_questions_are_read_in_the_chat_format(tiny):
    text = calibration.read_texts(QUESTIONS, tiny[1], 0)[3]
    assert text == "<|im_start|>user\nWhat is 3?<|im_end|>\n<|im_start|>assistant\nIt is 3.<|im_end|>\n"


def test_inputs_are_summed_over_texts(tiny):
    """Against all inputs kept: the same sums, for layers early and late, in texts of different lengths."""
    model, tokenizer = tiny
    ids = [tokenizer(text, return_tensors="pt").input_ids[:, :50 + 10 * index]
           for index, text in enumerate(TEXTS)]
    names = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")
    layers = {name: model.get_submodule(name) for name in names}
    kept = {name: [] for name in names}
    statistics = calibration.inputs_of(model, layers, ids)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, arguments, name=name: kept[name].append(arguments[0][0]))
    for row in ids:
        with torch.inference_mode():
            model(input_ids=row)
    for name in names:
        rows = torch.cat(kept[name])
        assert torch.allclose(statistics[name].hessian, rows.T @ rows, rtol=1e-4, atol=1e-4)
        assert torch.allclose(statistics[name].mean_abs, rows.abs().mean(0), rtol=1e-4)
