"""Quantize whole models with one call, by the methods that are in common use.

| method | library | what it does |
|---|---|---|
| rtn | ours | round each weight to the nearest of 16 values of its group |
| gptq | ours | round column by column; later columns compensate for the errors |
| awq | ours | scale up columns with large inputs before rounding |
| int8 | bitsandbytes | 8-bit integers, with outliers in 16 bit (LLM.int8) |
| nf4, fp4 | bitsandbytes | 4-bit floats with one scale per block (QLoRA) |
| qat | torchao | a short training whose forward pass already rounds |

`cl.to_gguf` makes llama.cpp's quantizations. Our own methods share one grid, file format and kernel
(`models/int4.py`), so they differ in the algorithm only; tests compare them with torchao and gptqmodel.
Embeddings, norms and the LM head stay in 16 bit. The default model's weights were already quantized once, to
Q4_1, so its losses differ from those of the original model.

Sources: arXiv 2208.07339 (LLM.int8), 2305.14314 (QLoRA), 2210.17323 (GPTQ), 2306.00978 (AWQ);
https://huggingface.co/docs/transformers/quantization/overview.
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.texts import load_qa
from ..loading import QUANTIZED, check_plain_model, load, refuse_quantized, resolve
from ..models.catalog import dtype_of, half_precision, linear_layers
from ..models.int4 import Int4Linear, replace_layers
from ..runtime import check_choice, progress, quiet, replacing, silenced
from ..training.device import fast_dtype
from .calibration import InputStatistics, inputs_of, read_texts
from .ggml import QUANTIZATIONS
from .rounding import awq_scales, gptq_codes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHODS = ("rtn", "gptq", "awq", "qat", *QUANTIZED)
GROUP_SIZE = 64  # divides every model's width here; the usual 128 does not divide SmolLM2-135M's 576
# layers calibrated in one pass: with fewer, inputs reflect more of the earlier rounding; more are faster
LAYERS_A_PASS = 35


def quantize(
    model_or_name: PreTrainedModel | str | Path, method: str, *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration_texts: Sequence[str] | Dataset | None = None, training_data: Dataset | None = None,
    folder: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a quantized copy of a model, in evaluation mode, and its tokenizer.

    Args:
        model_or_name: what `cl.load` takes, or a model in memory (with its `tokenizer`).
        method: one of `METHODS`; int8 has 8 bits per weight, the others have 4.
        calibration_texts: for gptq and awq: texts, or a dataset with a column "text" or with "question" and
            "answer"; by default paragraphs of the course's English corpus.
        training_data: for qat: questions and answers; by default the course's English ones.
        folder: also write the result there, complete or not at all; `cl.load(folder)` reads it.

    Raises:
        ValueError: an unknown method, data that the method does not use, too few calibration tokens, a model
            that is already quantized, or a layer whose width is no multiple of the group size.
        OSError: the folder cannot be written.
    """
    if method == "gguf" or method in QUANTIZATIONS:
        raise ValueError(f"method is {method!r}, a format of llama.cpp; to_gguf(model, path, quantization=…) "
                         "writes it")
    check_choice("method", method, METHODS)
    for argument, data, methods in (("calibration_texts", calibration_texts, ("gptq", "awq")),
                                    ("training_data", training_data, ("qat",))):
        if data is not None and method not in methods:
            raise ValueError(f"{argument} was given, but {method} does not look at it; leave it out, or use "
                             f"{' or '.join(methods)}")
    quiet()
    with _source(model_or_name, tokenizer) as source:
        if method in QUANTIZED:
            model, tokenizer = load(source, method)
        elif method == "qat":
            model, tokenizer = _qat(source, training_data)
        else:
            model, tokenizer = {"rtn": _rtn, "awq": _awq, "gptq": _gptq}[method](source, calibration_texts)
    if folder is not None:
        save(model, tokenizer, folder)
    return model.eval(), tokenizer


@contextmanager
def _source(
    model_or_name: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[Path | str]:
    """Give the folder or hub id to load from; a model in memory is saved to a folder for the block."""
    if isinstance(model_or_name, (str, Path)):
        yield resolve(model_or_name)
        return
    check_plain_model(model_or_name, tokenizer)
    with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
        yield save(model_or_name, tokenizer, Path(work) / "model")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write model and tokenizer to a folder; after an error there is no partial folder.

    Raises:
        FileExistsError, OSError: the folder is not empty, or cannot be written (such as on a full disk).
    """
    with replacing(folder) as target, silenced():  # transformers draws a progress bar for every file
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return Path(folder)


def qat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *,
    group_size: int = GROUP_SIZE, **settings: object,
):
    """Quantization-aware training: fine-tune with weights rounded to 4 bits, then store them in 4 bits.

    The gradient ignores the rounding (straight-through estimator), so all weights move to values where
    rounding hurts less. Sources: Jacob et al. 2018, arXiv 1712.05877, section 3; torchao's QATConfig.

    Args:
        model: in fp32 or bf16; its linear layers are replaced in place.
        dataset, settings: as for `cl.finetune`.

    Returns:
        The FinetuneResult with the 4-bit model; its `eval_loss[1]` was measured with rounding on.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.qat import QATConfig

    from ..training.finetune import finetune

    _check_widths(model, group_size)
    names = set(linear_layers(model))
    # symmetric: with zero points torchao 0.18 trains on other values than it converts to
    base = IntxWeightOnlyConfig(torch.int4, PerGroup(group_size))
    quantize_(model, QATConfig(base, step="prepare"), filter_fn=lambda module, name: name in names)
    result = finetune(model, tokenizer, dataset, method="full", **settings)
    quantize_(model, QATConfig(base, step="convert"), filter_fn=lambda module, name: name in names)
    half = dtype_of(half_precision())
    rounded = {name: _from_torchao(layer, half) for name, layer in linear_layers(model).items()}
    replace_layers(model, rounded, "qat")
    for weights in model.parameters():  # not the buffers: rotary frequencies stay in fp32
        weights.data = weights.data.to(half)
    model.config.dtype = half
    return result


def _from_torchao(layer: torch.nn.Linear, dtype: torch.dtype) -> Int4Linear:
    """Convert torchao's codes, from -8 to 7, to ours, from 0 to 15."""
    weights = layer.weight
    return Int4Linear.from_codes((weights.qdata + 8).to(torch.uint8), weights.scale, weights.zero_point + 8,
                                 dtype=dtype, bias=layer.bias)


def _rtn(source: Path | str, calibration_texts: None):
    model, tokenizer = _load_dense(source)
    rounded = {name: _int4(layer) for name, layer in linear_layers(model).items()}
    return replace_layers(model, rounded, "rtn"), tokenizer


def _awq(source: Path | str, calibration_texts: Sequence[str] | Dataset | None):
    def rounded(layer: torch.nn.Linear, inputs: InputStatistics) -> Int4Linear:
        rows = layer.weight[::max(1, layer.out_features // 128)]  # about 128 rows suffice to choose α
        hessian = inputs.hessian.to(fast_dtype(layer.weight.device.type))
        scales, _ = awq_scales(rows, hessian, inputs.mean_abs)
        return _int4(layer, scales.to(layer.weight.dtype))

    return _calibrated(source, calibration_texts, 16, rounded, "awq")


def _gptq(source: Path | str, calibration_texts: Sequence[str] | Dataset | None):
    def rounded(layer: torch.nn.Linear, inputs: InputStatistics) -> Int4Linear:
        codes, scale, zero_point = gptq_codes(layer.weight, inputs.hessian, group_size=GROUP_SIZE)
        return Int4Linear.from_codes(codes.flatten(1).to(torch.uint8), scale, zero_point,
                                     dtype=layer.weight.dtype, bias=layer.bias)

    # SmolLM2-135M: perplexity 67.7 with 16 paragraphs, 62.3 with 64 (16 have too few tokens for H)
    return _calibrated(source, calibration_texts, 64, rounded, "gptq")


def _calibrated(
    source: Path | str, calibration_texts: Sequence[str] | Dataset | None, default_count: int,
    rounded: Callable[[torch.nn.Linear, InputStatistics], Int4Linear], method: str,
):
    """Round the layers in order, a few at a time, with inputs computed by the layers rounded before them."""
    model, tokenizer = _load_dense(source)
    ids = [tokenizer(text, return_tensors="pt").input_ids.to(model.device)
           for text in read_texts(calibration_texts, tokenizer, default_count)]
    layers = linear_layers(model)
    names = list(layers)
    replaced: dict[str, Int4Linear] = {}
    for start in progress(range(0, len(names), LAYERS_A_PASS)):
        for name, inputs in inputs_of(model, names[start:start + LAYERS_A_PASS], ids).items():
            replaced[name] = rounded(layers[name], inputs)
            model.set_submodule(name, replaced[name])
    return replace_layers(model, replaced, method), tokenizer


def _qat(source: Path | str, training_data: Dataset | None):
    model, tokenizer = load(source, "fp32")
    dataset = load_qa("en", "train").select(range(64)) if training_data is None else training_data
    kernel = model.config._attn_implementation
    qat(model, tokenizer, dataset)
    model.set_attn_implementation(kernel)  # training may have chosen another
    return model, tokenizer


def _load_dense(source: Path | str):
    model, tokenizer = load(source, half_precision())
    _check_widths(model, GROUP_SIZE)
    return model, tokenizer


def _check_widths(model: PreTrainedModel, group_size: int) -> None:
    refuse_quantized(model, "would be rounded a second time", "start from its 16-bit weights")
    for name, layer in linear_layers(model).items():
        if layer.in_features % group_size:
            raise ValueError(f"{name} has {layer.in_features} inputs, which is no multiple of the group size "
                             f"{group_size}")


def _int4(layer: torch.nn.Linear, scale: torch.Tensor | None = None) -> Int4Linear:
    """Round a layer to 4 bits; `scale` multiplies its columns before rounding and divides its inputs."""
    weights = layer.weight.detach()
    input_scale = None
    if scale is not None:
        weights = weights * scale
        input_scale = 1 / scale
    return Int4Linear.from_weights(weights, group_size=GROUP_SIZE, bias=layer.bias, input_scale=input_scale)
