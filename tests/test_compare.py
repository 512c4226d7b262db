"""The table of quantizers: every figure against one that is counted or measured another way."""
import math

import pytest

from course_lib import compare, loading
from course_lib.export import gguf as gguf_files
from course_lib.export import onnx as onnx_files
from course_lib.inference import meters, perplexity
from course_lib.models import catalog

TEXTS = ["The sky is blue today.", "Water boils at a hundred degrees."]
METHODS = ("bf16", "nf4", "rtn", "Q8_0")


@pytest.fixture(scope="module")
def table(tiny_folder):
    return compare.compare_quantizations(tiny_folder, METHODS, texts=TEXTS)


def test_a_row_for_each_model_and_method(table, tiny_folder):
    assert list(table.index) == [(str(tiny_folder), method) for method in METHODS]
    assert tuple(table.columns) == compare.COLUMNS
    assert (table > 0).all(axis=None)


def test_bits_are_those_of_the_file(table, tiny):
    model, _ = tiny
    parameters = model.num_parameters()
    bits = table["bits_per_weight"].droplevel(0)
    assert bits["bf16"] == pytest.approx(16, rel=0.05)  # and the file's head
    kept = parameters - sum(layer.weight.numel() for layer in catalog.linear_layers(model).values())
    expected = (16 * kept + 4.5 * (parameters - kept)) / parameters
    assert bits["rtn"] == pytest.approx(expected, rel=0.1) and bits["nf4"] < 0.7 * bits["bf16"]
    assert bits["Q8_0"] == pytest.approx(8.5, rel=0.2)  # and the file's head


def test_perplexity_is_that_of_the_model(table, tiny_folder):
    for method, loaded in (("bf16", loading.load(tiny_folder)), ("nf4", loading.load(tiny_folder, "nf4"))):
        model, tokenizer = loaded
        samples = [{"input_ids": ids, "labels": ids} for ids in tokenizer(TEXTS)["input_ids"]]
        assert table.loc[(str(tiny_folder), method), "perplexity"] == pytest.approx(
            math.exp(perplexity.answer_loss(model, samples)), rel=1e-3)


def test_memory_of_the_real_model_is_its_weights_and_little_more(real_folder, tmp_path):
    """In a process of its own; the tiny model would drown in what libraries allocate."""
    model, _ = loading.load(real_folder)
    row = compare.figures(real_folder, "bf16", TEXTS)
    assert 0.9 < 1e6 * row["memory_mb"] / meters.measured_bytes(model) < 1.6


def test_unknown_methods_are_named(tiny_folder):
    with pytest.raises(ValueError, match="method is 'int5'"):
        compare.compare_quantizations(tiny_folder, ("bf16", "int5"))


def test_a_token_reads_the_head_but_not_another_table(tiny, tiny_folder, tmp_path):
    """Tied, the embedding is the LM head and read whole; untied, a token reads a row of it, which is left
    out."""
    model, tokenizer = tiny
    stored = sum(weight.nbytes for weight in model.parameters())  # tied weights once
    embedding = model.get_input_embeddings().weight
    tied = 0 if model.config.tie_word_embeddings else embedding.nbytes
    assert compare.bytes_read(tiny_folder) == stored - tied
    gguf_files.to_gguf(tiny_folder, tmp_path / "model.gguf", quantization="F32")
    expected = 4 * (model.num_parameters() - (embedding.numel() if tied else 0))
    assert compare.bytes_read(tmp_path) == pytest.approx(expected)


def test_an_onnx_folder_is_read_as_the_model_it_came_from(tiny, tiny_folder, tmp_path):
    model, tokenizer = tiny
    rows = tokenizer(TEXTS)["input_ids"]
    folder = onnx_files.to_onnx(tiny_folder, tmp_path / "onnx", precision="fp32")
    loss = perplexity.answer_loss(model.float(), [{"input_ids": row, "labels": row} for row in rows])
    assert compare.onnx_loss(folder, rows) == pytest.approx(loss, rel=1e-3)
    products = 4 * (model.num_parameters() - model.get_input_embeddings().weight.numel())
    assert compare.bytes_read(folder) >= 0.9 * products
