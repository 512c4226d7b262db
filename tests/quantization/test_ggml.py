"""llama.cpp's types: which tensor gets which, how exactly rows are rounded, which columns are spared."""
import gguf
import numpy as np
import pytest
import torch

from course_lib.models.gguf_header import GgufHeader, GgufTensor
from course_lib.quantization import ggml

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
OFTEN = (0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29)
ALL = range(30)
# quantization → type of most matrices, of the tied embedding, of the others: (type, the layers that have it)
LLAMA_CPP = {
    "Q4_K_M": ("Q4_K", "Q6_K", {"attn_v": [("Q6_K", OFTEN)], "ffn_down": [("Q6_K", OFTEN)]}),
    "Q4_K_S": ("Q4_K", "Q6_K", {"attn_v": [("Q5_K", range(4))], "ffn_down": [("Q5_K", range(3))]}),
    "Q5_K_M": ("Q5_K", "Q6_K", {"attn_v": [("Q6_K", OFTEN)], "ffn_down": [("Q6_K", OFTEN)]}),
    "Q5_K_S": ("Q5_K", "Q6_K", {}),
    "Q3_K_M": ("Q3_K", "Q6_K", {"attn_v": [("Q4_K", ALL), ("Q5_K", range(2))], "attn_output": [("Q4_K", ALL)],
                                "ffn_down": [("Q4_K", ALL), ("Q5_K", range(1))]}),
    "Q3_K_L": ("Q3_K", "Q6_K", {"attn_v": [("Q5_K", ALL)], "attn_output": [("Q5_K", ALL)],
                                "ffn_down": [("Q5_K", ALL)]}),
    "Q3_K_S": ("Q3_K", "Q6_K", {}),
    "Q2_K": ("Q2_K", "Q6_K", {"attn_v": [("Q4_K", ALL)], "attn_output": [("Q3_K", ALL)],
                              "ffn_down": [("Q3_K", ALL)]}),
    "Q6_K": ("Q6_K", "Q6_K", {}), "Q8_0": ("Q8_0", "Q8_0", {}), "Q4_0": ("Q4_0", "Q6_K", {}),
}


@pytest.mark.parametrize("quantization", LLAMA_CPP)
def test_tensor_types_are_llama_cpps(quantization):
    """As auto-round 0.16.1's port of `llama_tensor_get_type` answers for 30 layers with 8 heads of 2 kv
    heads."""
    names = ["token_embd.weight", *(f"blk.{layer}.{matrix}.weight" for layer in ALL for matrix in MATRICES)]
    metadata = {"general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count": 8,
                "llama.attention.head_count_kv": 2}
    header = GgufHeader(3, metadata, [GgufTensor(name, (256, 256), "BF16", 0, 0) for name in names], 0)
    base, embedding, others = LLAMA_CPP[quantization]
    expected = dict.fromkeys(names, base) | {"token_embd.weight": embedding}
    for matrix, kinds in others.items():
        for kind, layers in kinds:
            expected |= {f"blk.{layer}.{matrix}.weight": kind for layer in layers}
    assert ggml.tensor_types(header, quantization) == expected


@pytest.mark.parametrize("kind, bound", [("Q8_0", 0.008), ("Q6_K", 0.02), ("Q5_K", 0.04), ("Q5_0", 0.05),
                                         ("Q4_K", 0.09), ("Q4_0", 0.1), ("Q3_K", 0.2), ("Q2_K", 0.3)])
def test_rows_are_rounded_as_the_format_says(kind, bound):
    weights = np.random.default_rng(0).standard_normal((48, 512)).astype(np.float32)
    packed = ggml.quantize_rows(weights, kind)
    back = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    assert np.linalg.norm(back - weights) < bound * np.linalg.norm(weights)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "BF16"])
def test_without_the_library_numpy_rounds_alike(kind, monkeypatch):
    weights = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    ours = ggml.quantize_rows(weights, kind)
    monkeypatch.setattr(ggml, "_library_function", lambda: None)
    theirs = ggml.quantize_rows(weights, kind)
    assert ours.dtype == theirs.dtype and np.mean(ours == theirs) > 0.99
    with pytest.raises(ValueError, match="Q4_K needs llama.cpp's quantizer.*Q8_0, Q5_1"):
        ggml.quantize_rows(np.zeros((1, 256), np.float32), "Q4_K")


def test_importance_spares_the_columns_that_matter():
    generator = np.random.default_rng(2)
    weights = generator.standard_normal((32, 256)).astype(np.float32)
    importance = np.full(256, 0.01, np.float32)
    importance[::8] = 100.0
    errors = []
    for given in (None, importance):
        packed = ggml.quantize_rows(weights, "Q4_K", given)
        back = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_K)
        errors.append(float((np.square(back - weights) * importance).sum()))
    assert errors[1] < 0.8 * errors[0]


def test_importance_is_the_mean_square_of_a_layers_input(tiny):
    model, tokenizer = tiny
    seen = []
    layer = model.model.layers[0].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    importance = ggml.input_importance(model, tokenizer, ["ab", "cdef"])
    hook.remove()
    expected = torch.cat(seen).square().mean(0)
    assert np.allclose(importance["model.layers.0.mlp.down_proj.weight"], expected.numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match="calibration_texts must be a list"):
        ggml.input_importance(model, tokenizer, [])
