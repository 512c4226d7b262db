"""Scales that are multiplied at every token, multiplied once instead: into the weights of the next layer.

An RMS norm ends with an elementwise scale, y = g ⊙ x̂, and a linear layer follows: W y = (W diag(g)) x̂. So the columns of
W take the scale, and the norm only divides. Batch norm in evaluation mode is an affine map for each channel, which the
convolution before it can do as well. The outputs stay the same up to rounding; a device multiplies less, and a quantizer
sees the weights that are really used. Shown in lesson 08.

Sources: Jacob et al. 2018, "Quantization and Training of Neural Networks", arXiv 1712.05877, section 3.2 (batch norm);
Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456, section 4 (RMS norm).
"""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
_FEED_FORWARD = (("gate_proj", "up_proj"), ("gate_up_proj",))


def fold_norms(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with every RMS norm's scale in the linear layers that read it, and the norms' scales at one.

    In each layer: the input norm goes into the query, key and value projections, the norm before the feed-forward part
    into gate and up. The final norm goes into the LM head, unless that is tied to the embedding: then it stays as it is,
    because the embedding's own use must not be scaled.

    Raises:
        ValueError: a layer of another make (LayerNorm, mixture of experts), or a quantized model.
    """
    if getattr(model, "quantization_method", None):
        raise ValueError("the model is quantized, so its columns cannot be scaled; load it in bf16 or fp32")
    folded = copy.deepcopy(model)
    body = folded.get_decoder()
    for layer in body.layers:
        before = "pre_feedforward_layernorm" if hasattr(layer, "pre_feedforward_layernorm") else "post_attention_layernorm"
        for norm, block, choices in (("input_layernorm", "self_attn", _ATTENTION), (before, "mlp", _FEED_FORWARD)):
            _fold(_part(layer, norm), _readers(_part(layer, block), choices))
    head = folded.get_output_embeddings()
    if head.weight is not folded.get_input_embeddings().weight:
        _fold(_part(body, "norm"), [head])
    return folded


def _part(module: nn.Module, name: str) -> nn.Module:
    part = getattr(module, name, None)
    if part is None:
        raise ValueError(f"model: {type(module).__name__} has no {name!r}; fold_norms knows decoders of the Llama family")
    return part


def _readers(block: nn.Module, choices: tuple[tuple[str, ...], ...]) -> list[nn.Linear]:
    for names in choices:
        if all(isinstance(getattr(block, name, None), nn.Linear) for name in names):
            return [getattr(block, name) for name in names]
    raise ValueError(f"model: {type(block).__name__} has none of the linear layers {' or '.join(map(str, choices))}")


@torch.no_grad()
def _fold(norm: nn.Module, readers: list[nn.Linear]) -> None:
    if getattr(norm, "bias", None) is not None or isinstance(norm, nn.LayerNorm):
        raise ValueError(f"model: {type(norm).__name__} is no RMS norm; it subtracts a mean, or adds a bias")
    # Gemma scales by 1 + weight: a vector of ones, whose root mean square is one, shows the scale itself
    effective = norm(torch.ones_like(norm.weight, dtype=torch.float32)).float()
    stored = norm.weight.float()
    offset = 1.0 if (effective - stored - 1).abs().max() < (effective - stored).abs().max() else 0.0
    for linear in readers:
        linear.weight.copy_(linear.weight.float() * (stored + offset))  # rows: outputs, columns: inputs
    norm.weight.fill_(1.0 - offset)


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, batch_norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what the convolution and the batch norm after it do in evaluation mode.

    With μ, σ² the running statistics: W' = W · γ / √(σ² + ε), b' = (b − μ) · γ / √(σ² + ε) + β, for each output channel.

    Raises:
        ValueError: the channels differ, or the batch norm keeps no running statistics.
    """
    if batch_norm.num_features != conv.out_channels:
        raise ValueError(f"batch_norm has {batch_norm.num_features} channels, but conv gives {conv.out_channels}")
    if batch_norm.running_mean is None:
        raise ValueError("batch_norm keeps no running statistics (track_running_stats=False): what it does depends on the "
                         "batch, and cannot be folded")
    scale = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    shift = torch.zeros_like(scale)
    if batch_norm.affine:
        scale, shift = scale * batch_norm.weight, batch_norm.bias
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter((bias - batch_norm.running_mean) * scale + shift)
    return folded
