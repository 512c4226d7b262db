"""Students cut out of a teacher: chosen layers of a model, and a measure that helps to choose them.

Block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853, section 2.2) measures how much a layer changes
its input; layers with the least influence are removed first. Lesson 05 trains such students; lesson 09 drafts
with one.
"""
from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..loading import refuse_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_student(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Copy a model with only the given layers; embeddings and head are copied too.

    `layers` are ascending indices from 0 to num_hidden_layers - 1. Config and layer indices fit the new
    depth, so the KV cache, `save_pretrained` and `from_pretrained` work as usual.

    Raises:
        ValueError: the indices are not such a list, or the model is quantized.
    """
    kept = list(layers)
    depth = model.config.num_hidden_layers
    if not kept or kept != sorted(set(kept) & set(range(depth))):
        raise ValueError(f"layers is {kept}; it must hold different indices in ascending order, "
                         f"from 0 to {depth - 1}")
    refuse_quantized(model, "packed weights can't be trained", "load it in fp32 or bf16")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    for name, value in vars(model.config).items():  # layer_types, no_rope_layers, …
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[index] for index in kept])
    attention = model.config._attn_implementation
    student = type(model)._from_config(config, dtype=model.dtype, attn_implementation=attention)
    weights = {}
    for name, value in model.state_dict().items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer is None:
            weights[name] = value
        elif int(layer[1]) in kept:
            weights[name.replace(layer[0], f".layers.{kept.index(int(layer[1]))}.", 1)] = value
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


@torch.inference_mode()
def block_influence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str],
) -> list[float]:
    """Measure how much each layer changes its input: 1 - cosine similarity of input and output.

    The values are means over tokens (equation 1 of the paper); 0 means that the direction does not change.

    Raises:
        ValueError: texts is empty or holds an empty text.
    """
    if not texts or not all(texts):
        raise ValueError("texts is empty or holds an empty text; give at least one, all with text")
    decoder = model.get_decoder()
    sums = [0.0] * len(decoder.layers)
    count = 0

    def add(index: int, _: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        after = output[0] if isinstance(output, tuple) else output
        similarity = torch.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
        sums[index] += float((1 - similarity).sum())

    # hooks, because transformers' hidden states have the last layer's output only after the final norm
    hooks = [layer.register_forward_hook(partial(add, index)) for index, layer in enumerate(decoder.layers)]
    try:
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
            decoder(ids, use_cache=False)
            count += ids.shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    return [total / count for total in sums]
