"""Quantize whole models through the libraries that people use, each behind the same call, and compare the results.

| method | library | what it does |
|---|---|---|
| rtn | ours (rounding) | each weight to the nearest of 16 values of its group |
| gptq | ours (rounding) | columns one after another, each making up for the errors before it |
| awq | ours (rounding) | columns with large inputs are scaled up before they are rounded |
| int8, nf4, fp4 | bitsandbytes | LLM.int8 with outliers in 16 bit; 4-bit floats with one scale a block (QLoRA) |
| qat | torchao | a short training in which the forward pass already rounds |
| gguf | llama.cpp (deploy) | blocks with their own scales, more bits for some tensors: Q8_0, Q4_K_M and their neighbours |

Ours share one grid, one file format and one kernel (int4), so the table compares the algorithms and nothing else; tests hold
them against torchao and gptqmodel, which run on one layer what `gptq` here runs on a model. Embeddings, norms and the LM head
stay in 16 bit. The default model's weights were quantized once before, to Q4_1: what a
method loses on them is not what it would lose on the original.
Sources: arXiv 2208.07339 (LLM.int8), 2305.14314 (QLoRA), 2210.17323 (GPTQ), 2306.00978 (AWQ);
https://huggingface.co/docs/transformers/quantization/overview.
"""
from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import data, loading
from .calibration import Inputs, calibration_texts, inputs_of
from .comparison import compare
from .exporting import as_folder, replacing
from .gguf_files import QUANTIZATIONS, to_gguf
from .int4 import Int4Linear, replace_layers
from .loading import half_precision
from .rounding import (
    awq_round,
    awq_scales,
    blockwise_absmax,
    gptq_codes,
    gptq_round,
    nf4_levels,
    round_to_nearest,
)
from .runtime import check_choice, quiet, silenced
from .training import fast_dtype, linear_layers, progress

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METHODS", "awq_round", "blockwise_absmax", "compare", "gptq_round", "nf4_levels", "qat", "quantize",
           "round_to_nearest"]

METHODS = {"rtn": (4,), "int8": (8,), "nf4": (4,), "fp4": (4,), "gptq": (4,), "awq": (4,), "qat": (4,),
           "gguf": (2, 3, 4, 5, 6, 8)}  # and their bits
GGUF_OF_BITS = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0"}
CALIBRATED = ("gptq", "awq", "qat", "gguf")
GROUP_SIZE = 64  # divides the width of every model here; most tools say 128, which 576 is no multiple of
AT_ONCE = 35  # layers whose inputs are noted in one pass: fewer see more of the rounding before them, more are faster


def quantize(
    model_or_name: PreTrainedModel | str | Path, method: str, *, bits: int | None = None,
    calibration: Sequence[str] | Dataset | None = None, tokenizer: PreTrainedTokenizerBase | None = None,
    folder: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Quantize a model; what is given stays as it is.

    Args:
        model_or_name: what `cl.load` takes, or a model in memory (then with its `tokenizer`).
        method: a key of `METHODS`, or a GGUF quantization by its name (`deploy.QUANTIZATIONS`), such as "Q5_K_S".
        bits: one of the method's; by default 8 for int8 and 4 for the others. gguf: `GGUF_OF_BITS` says which it is.
        calibration: for gptq and awq texts, or a dataset with a column text or question and answer, that the model reads;
            for qat such questions and answers, which it is trained on. By default from the course's English data. gguf
            rounds without looking at data, unless it is given texts (a list): then columns with large inputs lose less.
        folder: write the result there as well, complete or not at all; `cl.load(folder)` reads it.

    Returns:
        The quantized model in evaluation mode, and the tokenizer. `save_pretrained` works on both. Of a GGUF it is a
        model in 16 bit with the file's values; `deploy.GgufModel` runs the file itself.

    Raises:
        ValueError: a method or bits that do not exist or do not go together, a calibration that is too short or that the
            method does not use, a model that is quantized already, widths that are no multiple of the group size.
        OSError: the folder cannot be written.
    """
    if method in QUANTIZATIONS:
        if bits is not None:
            raise ValueError(f"bits is {bits}, but {method} says itself how many it has; leave bits out")
        return _gguf(model_or_name, method, calibration, tokenizer, folder)
    check_choice("method", method, METHODS)
    if bits is None:
        bits = 8 if method == "int8" else 4
    if bits not in METHODS[method]:
        raise ValueError(f"bits is {bits}; {method} has {' or '.join(map(str, METHODS[method]))}")
    if calibration is not None and method not in CALIBRATED:
        raise ValueError(f"calibration was given, but {method} rounds without looking at data; leave it out, or use "
                         f"{' or '.join(CALIBRATED)}")
    if method == "gguf":
        return _gguf(model_or_name, GGUF_OF_BITS[bits], calibration, tokenizer, folder)
    quiet()
    with _folder_of(model_or_name, tokenizer) as source:
        if method in loading.QUANTIZED:
            model, tokenizer = loading.load(source, method)
        else:
            maker = {"rtn": _rtn, "awq": _awq, "gptq": _gptq, "qat": _qat}[method]
            model, tokenizer = maker(source, calibration)
    if folder is not None:
        save(model, tokenizer, folder)
    return model.eval(), tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write model and tokenizer to a folder that is complete or does not exist.

    Raises:
        FileExistsError: the folder holds something already. OSError: it cannot be written, for example on a full disk.
    """
    with replacing(folder) as made, silenced():  # transformers draws a bar for every file
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return Path(folder)


def qat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *, group_size: int = GROUP_SIZE,
        **settings: object):
    """Quantization-aware training: full fine-tuning whose forward pass rounds the weights to 4 bits, then real 4 bits.

    The gradient passes the rounding as if it were not there (straight-through estimator), so weights move to where rounding
    hurts less. Source: Jacob et al. 2018, arXiv 1712.05877, section 3; torchao's QATConfig.

    Args:
        model: in fp32 or bf16; its linear layers are replaced in place.
        dataset, settings: as for `finetune.finetune`.

    Returns:
        The FinetuneResult of the training, with the 4-bit model; its `eval_loss[1]` was measured with rounding on.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.qat import QATConfig

    from .finetune import finetune

    _check_widths(model, group_size)
    names = set(linear_layers(model))
    # symmetric: with zero points torchao 0.18 trains on other values than it converts to
    base = IntxWeightOnlyConfig(torch.int4, PerGroup(group_size))
    quantize_(model, QATConfig(base, step="prepare"), filter_fn=lambda module, name: name in names)
    result = finetune(model, tokenizer, dataset, method="full", **settings)
    quantize_(model, QATConfig(base, step="convert"), filter_fn=lambda module, name: name in names)
    half = loading.dtype_of(half_precision())
    replace_layers(model, {name: _from_torchao(layer, half) for name, layer in linear_layers(model).items()}, "qat")
    for weights in model.parameters():  # and no buffers: the rotary frequencies stay in fp32
        weights.data = weights.data.to(half)
    model.config.dtype = half
    return result


def _from_torchao(layer: torch.nn.Linear, dtype: torch.dtype) -> Int4Linear:
    """torchao's codes run from -8 to 7, ours from 0 to 15."""
    weights = layer.weight
    return Int4Linear.from_codes((weights.qdata + 8).to(torch.uint8), weights.scale, weights.zero_point + 8, dtype=dtype,
                                 bias=layer.bias)


def _gguf(model_or_name, quantization: str, calibration: Sequence[str] | None, tokenizer, folder: str | Path | None):
    with tempfile.TemporaryDirectory() as place, _folder_of(model_or_name, tokenizer) as source:
        with replacing(folder or Path(place) / "model") as made:
            made.mkdir()
            to_gguf(source, made / "model.gguf", quantization=quantization, calibration=calibration)
            for file in Path(source).iterdir():  # config and tokenizer: transformers does not get all of them from a GGUF
                if file.suffix in (".json", ".jinja", ".model") and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, made / file.name)
        return loading.load(folder or Path(place) / "model", half_precision())


def _rtn(source: Path | str, calibration: None):
    model, tokenizer = _dense(source)
    return replace_layers(model, {name: _int4(layer) for name, layer in linear_layers(model).items()}, "rtn"), tokenizer


def _awq(source: Path | str, calibration: Sequence[str] | Dataset | None):
    def rounded(layer: torch.nn.Linear, seen: Inputs) -> Int4Linear:
        gram = seen.gram.to(fast_dtype(layer.weight.device.type))
        some = layer.weight[::max(1, layer.out_features // 128)]  # 128 rows or so tell which exponent is best
        scales, _ = awq_scales(some, gram, seen.size)
        return _int4(layer, scales.to(layer.weight.dtype))

    return _calibrated(source, calibration, rounded, "awq", 16)


def _gptq(source: Path | str, calibration: Sequence[str] | Dataset | None):
    def rounded(layer: torch.nn.Linear, seen: Inputs) -> Int4Linear:
        codes, scale, zero = gptq_codes(layer.weight, seen.gram, group_size=GROUP_SIZE)
        return Int4Linear.from_codes(codes.flatten(1).to(torch.uint8), scale, zero, dtype=layer.weight.dtype, bias=layer.bias)

    # SmolLM2-135M: perplexity 67.7 after 16 paragraphs, 62.3 after 64; H has more unknowns than 16 have tokens
    return _calibrated(source, calibration, rounded, "gptq", 64)


def _calibrated(source: Path | str, calibration, rounded: Callable[[torch.nn.Linear, Inputs], Int4Linear], method: str,
                count: int):
    """Some layers at a time see the calibration texts through the layers that are rounded already, and are rounded."""
    model, tokenizer = _dense(source)
    ids = [tokenizer(text, return_tensors="pt").input_ids.to(model.device)
           for text in calibration_texts(calibration, tokenizer, count)]
    linears, made = linear_layers(model), {}
    names = list(linears)
    for start in progress(range(0, len(names), AT_ONCE)):
        part = {name: linears[name] for name in names[start:start + AT_ONCE]}
        for name, seen in inputs_of(model, part, ids).items():
            made[name] = rounded(part[name], seen)
            model.set_submodule(name, made[name])
    return replace_layers(model, made, method), tokenizer


def _qat(source: Path | str, calibration: Dataset | None):
    model, tokenizer = loading.load(source, "fp32")
    dataset = data.load_qa("en", "train").select(range(64)) if calibration is None else calibration
    kernel = model.config._attn_implementation
    qat(model, tokenizer, dataset)
    model.set_attn_implementation(kernel)  # training may have chosen another
    return model, tokenizer


def _dense(source: Path | str):
    model, tokenizer = loading.load(source, half_precision())
    _check_widths(model, GROUP_SIZE)
    return model, tokenizer


def _check_widths(model: PreTrainedModel, group_size: int) -> None:
    if getattr(model, "quantization_method", None):
        raise ValueError(f"the model is quantized already ({model.quantization_method}); start from its 16-bit weights")
    odd = {name: layer.in_features for name, layer in linear_layers(model).items() if layer.in_features % group_size}
    if odd:
        name, width = next(iter(odd.items()))
        raise ValueError(f"{name} has {width} inputs, which is no multiple of the group size {group_size}")


def _int4(layer: torch.nn.Linear, scale: torch.Tensor | None = None) -> Int4Linear:
    """The layer in 4 bits; with a scale its columns are multiplied by it before, and its inputs divided."""
    weights = layer.weight.detach()
    if scale is not None:
        weights = weights * scale
    return Int4Linear.from_weights(weights, group_size=GROUP_SIZE, bias=layer.bias,
                                   input_scale=None if scale is None else 1 / scale)


@contextmanager
def _folder_of(model_or_name: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Path | str]:
    """A folder (or hub id) to load from; for a model in memory a temporary one."""
    if isinstance(model_or_name, (str, Path)):
        yield loading.resolve(model_or_name)
        return
    with as_folder(model_or_name, tokenizer) as folder:
        yield folder
