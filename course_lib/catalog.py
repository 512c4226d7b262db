"""The model families as data: what a small model is, how much it weighs, and which one to take for a task.

`data/catalog.json` holds one card a model: published facts (each with the key of a page it comes from) and the
values of its configuration. From the configuration alone, with no network and no weights, a *skeleton* is built on
torch's meta device: real layers whose tensors have a shape and no storage. So parameters are counted, not quoted, and
the tests hold every count against the published figure. Lesson 01 shows the table, lesson 03 builds the skeletons,
lesson 07 derives the bytes of quantized weights, lesson 10 reads published benchmarks and asks for recommendations.

Units: parameters and tokens are plain counts, sizes are bytes, and a GB is 10^9 bytes as on a model card (a GPU's
"24 GB" are 24 · 2^30 bytes, 7 % more: the difference is on the safe side).

Bytes of a quantized model, after bitsandbytes (Dettmers et al. 2022, arXiv 2208.07339; 2023, arXiv 2305.14314): only
`nn.Linear` layers are quantized, and not the LM head; embeddings, norms and biases stay at 16 bit. That is why a small
model with a large vocabulary shrinks less than its precision promises.
"""
from __future__ import annotations

import importlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING

from . import runtime
from .cards import ModelCard, contents, get, hub_facts, ids  # noqa: F401 - the catalog's names, whichever file holds them
from .published import benchmarks, measures  # noqa: F401

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedConfig, PreTrainedModel

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "nf4", "fp4")
_SELECTION = ("MARGIN", "TIERS", "Recommendation", "recommend")
_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a 4-bit scale, and scales that share a scale of their own


def config(model_id: str) -> PreTrainedConfig:
    """A transformers configuration from the card, without the network.

    Raises:
        LookupError: unknown id. ValueError: transformers has no class for this model.
    """
    from transformers import AutoConfig

    card = get(model_id)
    if card.model_type is None:
        raise ValueError(f"{card.id} can't be built: transformers has no class for it (remote code is never run)")
    return AutoConfig.for_model(card.model_type, **json.loads(json.dumps(card.config)))  # a copy: from_config may write


def skeleton(model_id: str | PreTrainedConfig) -> PreTrainedModel:
    """A model on the meta device, for an id of the catalog or a configuration; a new one a call.

    Attention is what transformers chooses for the family: SDPA, or eager for Gemma 2, whose soft-capping SDPA lacks.

    Raises:
        LookupError, ValueError: as `config`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    values = config(model_id) if isinstance(model_id, str) else model_id
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(values)


def count_parameters(model_id: str | PreTrainedConfig) -> int:
    """Unique parameters, tied weights once, counted on the skeleton. Built by hand in lesson 03.

    Raises:
        LookupError, ValueError: as `config`.
    """
    kept, linears = shapes(model_id)
    return kept + sum(size for size, _ in linears)


def weight_bytes(model_id: str | PreTrainedConfig, precision: str, *, double_quant: bool = True) -> int:
    """Bytes of the weights and of what is needed to read them; agrees with bitsandbytes 0.50.2 (a test loads a model).

    int8: 1 byte a weight and an fp32 scale a row. nf4, fp4: half a byte a weight, an fp32 scale for 64 weights and a
    table of 16 fp32 values a matrix; with `double_quant` 1 byte for each scale, an fp32 scale for 256 of these, and a
    table of 256 fp32 values and an fp32 offset a matrix (QLoRA, arXiv 2305.14314, section 3). Buffers are left out
    (rotary frequencies: some hundred bytes). Built by hand in lesson 07.

    Args:
        model_id: an id of the catalog, or a transformers configuration.
        precision: "fp32", "fp16", "bf16", "int8", "nf4" or "fp4".
        double_quant: of nf4 and fp4; ignored otherwise.

    Raises:
        ValueError: unknown precision, or no class in transformers. LookupError: unknown id.
    """
    runtime.check_choice("precision", precision, PRECISIONS)
    kept, linears = shapes(model_id)
    if precision in ("fp32", "fp16", "bf16"):
        return (4 if precision == "fp32" else 2) * (kept + sum(size for size, _ in linears))
    if precision == "int8":
        return 2 * kept + sum(size + 4 * rows for size, rows in linears)
    return 2 * kept + sum(_bytes_4bit(size, double_quant) for size, _ in linears)


def _bytes_4bit(size: int, double_quant: bool) -> int:
    """Bytes of one matrix of `size` weights in bitsandbytes' 4-bit format."""
    blocks = -(-size // _BLOCK)
    scales = blocks + 4 * -(-blocks // _NESTED_BLOCK) + 4 * 256 + 4 if double_quant else 4 * blocks
    return -(-size // 2) + scales + 4 * 16


def shapes(model_id: str | PreTrainedConfig) -> tuple[int, tuple[tuple[int, int], ...]]:
    """(parameters outside, (weights, rows) of each) linear layer but the LM head: what bitsandbytes and LoRA work on.

    Raises:
        LookupError, ValueError: as `config`.
    """
    return _shapes_of_card(get(model_id).id) if isinstance(model_id, str) else _measure(skeleton(model_id))


@lru_cache
def _shapes_of_card(card_id: str) -> tuple[int, tuple[tuple[int, int], ...]]:
    return _measure(skeleton(card_id))


def _measure(model: PreTrainedModel) -> tuple[int, tuple[tuple[int, int], ...]]:
    import torch

    head = model.get_output_embeddings()
    linears = tuple((module.weight.numel(), module.out_features) for module in model.modules()
                    if isinstance(module, torch.nn.Linear) and module is not head)
    total = sum(parameter.numel() for parameter in model.parameters())  # parameters() gives tied weights once
    return total - sum(size for size, _ in linears), linears


def table(lang: str | None = None) -> pandas.DataFrame:
    """All models, one a row: name, parameters, context, training tokens, licence, release.

    Args:
        lang: of the heads, "en" or "ko"; by default the language that is set.
    """
    import pandas

    keys = ("name", "parameters", "context", "training_tokens", "licence", "released")
    with runtime.in_language(lang):
        heads = [runtime.text(f"catalog.head.{key}") for key in keys]
        rows = [[_values(card)[key] for key in keys] for card in map(get, ids())]
    return pandas.DataFrame(rows, columns=heads)


def compare(model_ids: list[str], lang: str | None = None) -> pandas.DataFrame:
    """Cards side by side, one model a column, with the numbers of its configuration and its weights in GB.

    Raises:
        LookupError: unknown id.
    """
    import pandas

    columns = {}
    with runtime.in_language(lang):
        for card in map(get, model_ids):
            values = {key: value for key, value in _values(card).items() if key != "name"}
            for precision in ("bf16", "int8", "nf4"):
                known = card.model_type is not None
                values[f"weights_{precision}"] = round(weight_bytes(card.id, precision) / 1e9, 2) if known else None
            columns[card.name] = {runtime.text(f"catalog.head.{key}"): value for key, value in values.items()}
    return pandas.DataFrame(columns, dtype=object)


def _values(card: ModelCard) -> dict[str, object]:
    """What tables show of a card, by the key of its head."""
    shape = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
             "vocab_size")
    yes_no = {True: runtime.text("catalog.yes"), False: runtime.text("catalog.no"), None: None}
    return {"name": card.name, "id": card.load_id, "maker": card.maker,
            "parameters": card.parameters and card.parameters / 1e9, "context": card.context,
            "training_tokens": card.training_tokens and card.training_tokens / 1e12,
            **{key: card.config.get(key) for key in shape},
            "tie_word_embeddings": yes_no[card.config.get("tie_word_embeddings")],
            "languages": " ".join(card.languages), "licence": card.licence, "commercial_use": yes_no[card.commercial_use],
            "released": card.released or "", "note": card.note[runtime.language()] if card.note else ""}


def __getattr__(name: str):
    """`recommend` and what belongs to it, from `selection`, which is built upon this module and so can't come first."""
    if name in _SELECTION:
        return getattr(importlib.import_module(".selection", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
