"""Quantization to llama.cpp's types: the type of each tensor, column importance, and the rounding.

`ggml_quantize_chunk`, the function that llama-quantize calls, rounds the rows. It comes from the library in
the package xllamacpp, because the package gguf has no K-quants.

Sources: https://github.com/ggml-org/llama.cpp (src/llama-quant.cpp), …/pull/1684 (K-quants), …/pull/4861
(importance matrix).
"""
from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from ..models.gguf_header import GgufHeader, GgufTensor, import_gguf

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# quantization → the type of most of its tensors; _S, _M and _L differ in how many others get more bits
QUANTIZATIONS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K", "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1",
    "Q4_0": "Q4_0", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K",
}
PLAIN = ("F32", "F16", "BF16")
# K-quants have blocks of 256 values: rows of other widths get the next larger type with blocks of 32
NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# small and sensitive tensors keep their type
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d",
         "shortconv.conv", "altup", "laurel", "per_layer_model_proj", "time_mix_", "attn_rel_b", "indexer.")


def tensor_types(header: GgufHeader, quantization: str, *, calibrated: bool = False) -> dict[str, str]:
    """Map each tensor's name to its type, for a dense model, as llama.cpp's `llama_tensor_get_type` does.

    Value and down projections, where errors hurt most, get more bits in some layers. The output matrix (the
    embedding if the two are tied) gets more bits too. Vectors and norms keep their type.

    Raises:
        ValueError: the header describes a model that is already quantized.
    """
    quantized = sorted(set(header.bytes_by_type()) - set(PLAIN))
    if quantized:
        raise ValueError(f"the source is quantized already ({', '.join(quantized)}), and a second rounding "
                         "adds to the first; start from the weights in F16, BF16 or F32")
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    return {tensor.name: _tensor_type(tensor, header.metadata, quantization, tied, calibrated)
            for tensor in header.tensors}


def _tensor_type(tensor: GgufTensor, metadata: dict, quantization: str, tied: bool, calibrated: bool) -> str:
    base = QUANTIZATIONS[quantization]
    matrix = len(tensor.shape) > 1 and tensor.name.endswith("weight")
    if not matrix or any(kept in tensor.name for kept in _KEPT):
        return tensor.type
    if base in PLAIN:
        return base
    if tensor.name == ("token_embd.weight" if tied else "output.weight"):
        chosen = "Q8_0" if base == "Q8_0" else "Q6_K"
    else:
        chosen = _more_bits(tensor.name, metadata, quantization, calibrated) or base
    width = tensor.shape[-1]
    if chosen.endswith("_K") and width % 256:
        chosen = NARROW[chosen]
    return chosen if width % 32 == 0 else "F16"


def _more_bits(name: str, metadata: dict, quantization: str, calibrated: bool) -> str | None:
    """The larger type of a tensor that gets more bits under this quantization, or None."""
    architecture = metadata["general.architecture"]
    layers, heads, kv_heads = (metadata.get(f"{architecture}.{key}", 1) for key in (
        "block_count", "attention.head_count", "attention.head_count_kv"))
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    kind = "attn_v" if "attn_qkv" in name else name.split(".")[-2]
    early = layer < layers // 8
    often = early or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    grouped = isinstance(heads, int) and isinstance(kv_heads, int) and heads // max(kv_heads, 1) >= 4
    return {
        ("Q2_K", "attn_v"): "Q4_K" if grouped else "Q3_K",
        ("Q2_K", "attn_output"): "Q3_K", ("Q2_K", "ffn_down"): "Q3_K",
        ("Q3_K_M", "attn_v"): "Q5_K" if layer < 2 else "Q4_K", ("Q3_K_M", "attn_output"): "Q4_K",
        ("Q3_K_M", "ffn_down"): "Q5_K" if layer < layers // 16 else "Q4_K",
        ("Q3_K_L", "attn_v"): "Q5_K", ("Q3_K_L", "attn_output"): "Q5_K", ("Q3_K_L", "ffn_down"): "Q5_K",
        ("Q4_K_S", "attn_v"): "Q5_K" if layer < 4 else None,
        ("Q4_K_S", "ffn_down"): "Q5_K" if early else None,
        ("Q4_K_M", "attn_v"): "Q6_K" if often else None, ("Q4_K_M", "ffn_down"): "Q6_K" if often else None,
        ("Q5_K_M", "attn_v"): "Q6_K" if often else None, ("Q5_K_M", "ffn_down"): "Q6_K" if often else None,
        ("Q4_0", "ffn_down"): "Q4_1" if calibrated and early else None,
        ("Q5_0", "ffn_down"): "Q5_1" if calibrated and early else None,
    }.get((quantization, kind))


def quantize_rows(weights: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Round a float32 matrix (rows, columns) to a ggml type; returns uint8 (rows, bytes per row).

    `importance` (columns,) weighs the error of each column.

    Raises:
        ValueError: a K-quant, if xllamacpp's library does not export llama.cpp's function.
    """
    import numpy as np

    gguf = import_gguf()
    number = gguf.GGMLQuantizationType[kind]
    function = _library_function()
    if kind in PLAIN or function is None:
        try:
            return gguf.quants.quantize(weights, number)
        except NotImplementedError:
            raise ValueError(f"{kind} needs llama.cpp's quantizer, which this build of xllamacpp does not "
                             "export; types without a K do: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0") from None
    width = weights.shape[-1]
    rows = np.ascontiguousarray(weights, np.float32).reshape(-1, width)
    packed = np.empty((len(rows), gguf.quant_shape_to_byte_shape((width,), number)[0]), np.uint8)
    columns = None if importance is None else np.ascontiguousarray(importance, np.float32)

    def round_slice(start: int) -> None:
        taken = rows[start:start + step]
        function(number, taken.ctypes.data, packed[start:start + step].ctypes.data, 0, len(taken), width,
                 None if columns is None else columns.ctypes.data)

    step = -(-len(rows) // (os.cpu_count() or 1))
    with ThreadPoolExecutor() as pool:  # ctypes releases the GIL
        list(pool.map(round_slice, range(0, len(rows), step)))
    return packed.reshape(*weights.shape[:-1], -1)


@lru_cache
def _library_function() -> Callable | None:
    """llama.cpp's `ggml_quantize_chunk`, or None if the library does not export it (Windows)."""
    try:
        import xllamacpp.xllamacpp as library

        function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return function


def input_importance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *,
    max_length: int = 512,
) -> dict[str, np.ndarray]:
    """Map each linear layer's weight name to the mean square of its inputs, (columns,), over all tokens.

    The error of W x grows with x², so columns with large inputs need a smaller rounding error.
    """
    import torch

    from .calibration import watch_inputs

    if isinstance(texts, str) or not texts:
        raise ValueError("calibration_texts must be a list of at least one text")
    options = {"return_tensors": "pt", "truncation": True, "max_length": max_length}
    ids = [tokenizer(text, **options).input_ids.to(model.device) for text in texts]
    sums: dict[str, torch.Tensor] = {}

    def note(name: str, inputs: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + inputs.detach().float().flatten(0, -2).square().sum(0)

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    watch_inputs(model, names, ids, note)
    tokens = sum(row.shape[1] for row in ids)
    return {f"{name}.weight": (total / tokens).cpu().numpy() for name, total in sums.items()}
