"""Parameter counts, weight sizes and tables of the models in `data/catalog.json`.

A card holds published facts and the values of the model's configuration. `skeleton` builds the model from the
configuration alone on torch's meta device, where tensors have a shape but no storage. Parameters are
therefore counted without weights or network; tests compare every count with the published figure. Sizes are
in bytes, and GB means 10^9 bytes (the "24 GB" of a GPU are 24 · 2^30 bytes, 7 % more). Quantized sizes follow
bitsandbytes (arXiv 2208.07339 and 2305.14314): it quantizes `nn.Linear` layers except the LM head, and keeps
embeddings, norms and biases in 16 bit, so small models with large vocabularies shrink less.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .. import runtime
from .cards import ModelCard, catalog_ids, get_card

if TYPE_CHECKING:
    import pandas
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "nf4", "fp4")
_BLOCK = 64  # weights that share a 4-bit scale
_NESTED_BLOCK = 256  # scales that share a scale of their own


@dataclass(frozen=True)
class Matrix:
    """The weight of one linear layer: `rows` outputs and `columns` inputs."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.rows * self.columns


@dataclass(frozen=True)
class LinearShapes:
    """The linear layers that bitsandbytes quantizes and LoRA adapts: all except the LM head."""

    outside: int  # parameters outside the matrices: embeddings, norms, biases, an untied LM head
    matrices: tuple[Matrix, ...]

    @property
    def inside(self) -> int:
        """The number of weights in the matrices."""
        return sum(matrix.size for matrix in self.matrices)


def config(model_id: str) -> PreTrainedConfig:
    """Return the transformers configuration of a card; this needs no network.

    Raises:
        LookupError, ValueError: unknown id, or transformers has no class for this model.
    """
    from transformers import AutoConfig

    card = get_card(model_id)
    if card.model_type is None:
        raise ValueError(
            f"{card.id} can't be built: transformers has no class for it (remote code is never run)")
    return AutoConfig.for_model(card.model_type, **copy.deepcopy(card.config))  # from_config may change it


def skeleton(model_id: str | PreTrainedConfig) -> PreTrainedModel:
    """Build a new model on the meta device, from a catalog id or a configuration.

    transformers chooses the attention: SDPA, or eager for Gemma 2, because SDPA has no soft-capping. Raises
    LookupError and ValueError as `config` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    values = config(model_id) if isinstance(model_id, str) else model_id
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(values)


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Return the linear layers by name, without the LM head."""
    import torch

    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head}


def linear_shapes(model_id: str | PreTrainedConfig) -> LinearShapes:
    """Return the `LinearShapes` of a catalog id or a configuration (errors as in `config`)."""
    return _shapes_of_card(get_card(model_id).id) if isinstance(model_id, str) else _shapes(model_id)


@lru_cache
def _shapes_of_card(card_id: str) -> LinearShapes:
    return _shapes(card_id)


def _shapes(model_id: str | PreTrainedConfig) -> LinearShapes:
    model = skeleton(model_id)
    matrices = tuple(Matrix(*layer.weight.shape) for layer in linear_layers(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())  # parameters() gives tied weights once
    return LinearShapes(total - sum(matrix.size for matrix in matrices), matrices)


def count_parameters(model_id: str | PreTrainedConfig) -> int:
    """Count the parameters of a catalog id or a configuration; tied weights count once.

    Built by hand in lesson 03. Raises LookupError and ValueError as `config` does.
    """
    shapes = linear_shapes(model_id)
    return shapes.outside + shapes.inside


def weight_bytes(model_id: str | PreTrainedConfig, precision: str, *, double_quant: bool = True) -> int:
    """Return the bytes of the weights in a precision, including the scales of quantized weights.

    - int8: 1 byte per weight, and an fp32 scale per row.
    - nf4, fp4: half a byte per weight, an fp32 scale per 64 weights, a table of 16 fp32 values per matrix.
      With `double_quant`, such a scale takes 1 byte; an fp32 scale per 256 of them is added, and per matrix a
      table of 256 fp32 values and an fp32 offset (QLoRA, arXiv 2305.14314, section 3).

    Buffers (rotary frequencies, some hundred bytes) do not count. A test compares the result with a model
    loaded by bitsandbytes 0.50.2. Built by hand in lesson 07.

    Raises:
        ValueError: unknown precision, or transformers has no class for the model.
        LookupError: unknown id.
    """
    runtime.check_choice("precision", precision, PRECISIONS)
    shapes = linear_shapes(model_id)
    if precision in ("fp32", "fp16", "bf16"):
        return (4 if precision == "fp32" else 2) * (shapes.outside + shapes.inside)
    if precision == "int8":
        return 2 * shapes.outside + sum(matrix.size + 4 * matrix.rows for matrix in shapes.matrices)
    return 2 * shapes.outside + sum(_bytes_4bit(matrix.size, double_quant) for matrix in shapes.matrices)


def _bytes_4bit(size: int, double_quant: bool) -> int:
    """Return the bytes of one matrix of `size` weights in the 4-bit format of bitsandbytes."""
    blocks = -(-size // _BLOCK)
    scales = blocks + 4 * -(-blocks // _NESTED_BLOCK) + 4 * 256 + 4 if double_quant else 4 * blocks
    return -(-size // 2) + scales + 4 * 16


def half_precision() -> str:
    """Return this machine's 16-bit precision: "bf16", or "fp16" on a GPU without bf16, such as a T4."""
    import torch

    return "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else "bf16"


def dtype_of(precision: str) -> torch.dtype:
    """Return the torch dtype of a precision; if quantized, the 16-bit dtype of the unquantized parameters."""
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return types[precision if precision in types else half_precision()]


def catalog_table(lang: str | None = None) -> pandas.DataFrame:
    """Return all models, one per row: name, parameters, context, training tokens, licence, release.

    `lang` ("en" or "ko") is the language of the column names; by default the language that is set.
    """
    import pandas

    keys = ("name", "parameters", "context", "training_tokens", "license", "released")
    with runtime.in_language(lang):
        heads = [runtime.text(f"catalog.head.{key}") for key in keys]
        rows = [[_values(card)[key] for key in keys] for card in map(get_card, catalog_ids())]
    return pandas.DataFrame(rows, columns=heads)


def compare_models(model_ids: list[str], lang: str | None = None) -> pandas.DataFrame:
    """Return the cards side by side, one model per column, with configuration and weights in GB.

    Raises:
        LookupError: unknown id.
    """
    import pandas

    columns = {}
    with runtime.in_language(lang):
        for card in map(get_card, model_ids):
            values = {key: value for key, value in _values(card).items() if key != "name"}
            for precision in ("bf16", "int8", "nf4"):
                size = weight_bytes(card.id, precision) if card.model_type else None
                values[f"weights_{precision}"] = size and round(size / 1e9, 2)
            columns[card.name] = {runtime.text(f"catalog.head.{key}"): value for key, value in values.items()}
    return pandas.DataFrame(columns, dtype=object)


def _values(card: ModelCard) -> dict[str, object]:
    """Return what tables show of a card, by the key of the row or column name."""
    shape = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
             "num_key_value_heads", "vocab_size")
    yes_no = {True: runtime.text("catalog.yes"), False: runtime.text("catalog.no"), None: None}
    return {"name": card.name, "id": card.load_id, "maker": card.maker,
            "parameters": card.parameters and card.parameters / 1e9, "context": card.context,
            "training_tokens": card.training_tokens and card.training_tokens / 1e12,
            **{key: card.config.get(key) for key in shape},
            "tie_word_embeddings": yes_no[card.config.get("tie_word_embeddings")],
            "languages": " ".join(card.languages), "license": card.license,
            "commercial_use": yes_no[card.commercial_use], "released": card.released or "",
            "note": card.note[runtime.language()] if card.note else ""}
