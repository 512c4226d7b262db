"""Fold the scales of norms into the weights of neighbouring layers. Shown in lesson 08.

RMS norm ends with an elementwise scale, y = g ⊙ x̂. If a linear layer follows, W y = (W diag(g)) x̂, so the
columns of W can hold g. Batch norm in evaluation mode is an affine map of each channel, which the convolution
before it can absorb. The outputs stay equal up to rounding, with fewer multiplications.

Sources: batch norm, Jacob et al. 2018 (arXiv 1712.05877, section 3.2); RMS norm, Ashkboos et al. 2024
("QuaRot", arXiv 2404.00456, section 4).
"""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..loading import refuse_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
_FEED_FORWARD = (("gate_proj", "up_proj"), ("gate_up_proj",))


def fold_norms(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model and move its RMS norms' scales into the linear layers that read their outputs.

    In each layer, the input norm's scale goes into the query, key and value projections, and that of the norm
    before the feed-forward block into gate and up. The final norm's scale goes into the LM head, unless the
    head is tied to the embedding, which must not be scaled.

    Raises:
        ValueError: an unsupported layer (LayerNorm, mixture of experts), or a quantized model.
    """
    refuse_quantized(model, "its columns cannot be scaled")
    folded = copy.deepcopy(model)
    body = folded.get_decoder()
    for layer in body.layers:
        # Gemma's post_attention_layernorm stands before the residual sum, and no linear layer reads it
        before_mlp = next((name for name in ("pre_feedforward_layernorm", "post_attention_layernorm")
                           if hasattr(layer, name)), "post_attention_layernorm")
        _fold(_child(layer, "input_layernorm"), _readers(_child(layer, "self_attn"), _ATTENTION))
        _fold(_child(layer, before_mlp), _readers(_child(layer, "mlp"), _FEED_FORWARD))
    head = folded.get_output_embeddings()
    if head.weight is not folded.get_input_embeddings().weight:
        _fold(_child(body, "norm"), [head])
    return folded


def _child(module: nn.Module, name: str) -> nn.Module:
    child = getattr(module, name, None)
    if child is None:
        raise ValueError(f"model: {type(module).__name__} has no {name!r}; fold_norms knows decoders of the "
                         "Llama family")
    return child


def _readers(block: nn.Module, choices: tuple[tuple[str, ...], ...]) -> list[nn.Linear]:
    for names in choices:
        if all(isinstance(getattr(block, name, None), nn.Linear) for name in names):
            return [getattr(block, name) for name in names]
    wanted = " or ".join(map(str, choices))
    raise ValueError(f"model: {type(block).__name__} has none of the linear layers {wanted}")


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
    """Return one convolution that computes `conv` followed by `batch_norm` in evaluation mode.

    For each output channel, with running mean μ and variance σ²:
    W' = W · γ / √(σ² + ε), b' = (b − μ) · γ / √(σ² + ε) + β.

    Raises:
        ValueError: the channels differ, or the batch norm keeps no running statistics.
    """
    if batch_norm.num_features != conv.out_channels:
        raise ValueError(f"batch_norm has {batch_norm.num_features} channels, but conv gives "
                         f"{conv.out_channels}")
    if batch_norm.running_mean is None:
        raise ValueError("batch_norm keeps no running statistics (track_running_stats=False): what it does "
                         "depends on the batch, and cannot be folded")
    scale = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    if batch_norm.affine:
        scale = scale * batch_norm.weight
    bias = ((0 if conv.bias is None else conv.bias) - batch_norm.running_mean) * scale
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
    folded.bias = nn.Parameter(bias + batch_norm.bias if batch_norm.affine else bias)
    return folded
