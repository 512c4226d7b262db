"""Calibration texts, and the statistics of layer inputs that GPTQ and AWQ need.

The inputs of a layer over a few thousand tokens would take gigabytes, so only XᵀX and mean|x| are summed.
Sources: GPTQ, arXiv 2210.17323, section 3; AWQ, arXiv 2306.00978, section 3.2.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..data.texts import load_corpus

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWEST_TOKENS = 256


@dataclass
class InputStatistics:
    """Statistics of a layer's inputs: H = XᵀX, (D_in, D_in), and mean|x|, (D_in,), both in fp32.

    2H is the Hessian of the squared output error ‖X (W - Q)ᵀ‖² with respect to each row of the weights.
    """

    hessian: torch.Tensor
    mean_abs: torch.Tensor


class _Enough(Exception):
    """Ends a forward pass early, once every watched layer has received its inputs."""


def watch_inputs(
    model: PreTrainedModel, layers: Iterable[str], ids: Sequence[torch.Tensor],
    note: Callable[[str, torch.Tensor], None],
) -> None:
    """Run the texts through the model and call `note(name, inputs)` with each layer's inputs, (1, T, D_in).

    Args:
        layers: names of modules; each pass ends once all of them have been reached.
        ids: token ids of shape (1, T), one text each, so that no padding is among the inputs.
    """
    names = set(layers)
    missing: set[str] = set()

    def watch(name: str):
        def hook(_, arguments) -> None:
            note(name, arguments[0])
            missing.discard(name)
            if not missing:
                raise _Enough
        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with torch.inference_mode():
            for row in ids:
                missing |= names
                with suppress(_Enough):
                    model(row, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def inputs_of(
    model: PreTrainedModel, layers: Iterable[str], ids: Sequence[torch.Tensor],
) -> dict[str, InputStatistics]:
    """The statistics of the layers' inputs over all texts; arguments as in `watch_inputs`."""
    statistics: dict[str, InputStatistics] = {}
    tokens = sum(row.shape[1] for row in ids)
    latest = (None, "")

    def note(name: str, inputs: torch.Tensor) -> None:
        nonlocal latest
        if inputs is latest[0]:  # query, key and value share their input and so its sums
            statistics[name] = statistics[latest[1]]
            return
        latest = (inputs, name)
        rows = inputs.flatten(0, -2).float()
        hessian = rows.T @ rows
        mean_abs = rows.abs().sum(0) / tokens
        if name in statistics:
            statistics[name].hessian += hessian
            statistics[name].mean_abs += mean_abs
        else:
            statistics[name] = InputStatistics(hessian, mean_abs)

    watch_inputs(model, layers, ids, note)
    return statistics


def read_texts(
    calibration_texts: Sequence[str] | Dataset | None, tokenizer: PreTrainedTokenizerBase, default_count: int,
) -> list[str]:
    """Calibration texts as a checked list; by default the English corpus's first `default_count` paragraphs.

    Raises:
        ValueError: fewer than `FEWEST_TOKENS` tokens, or a dataset without a column of text.
    """
    source = load_corpus("en")["text"][:default_count] if calibration_texts is None else calibration_texts
    columns = getattr(source, "column_names", ())
    if "text" in columns:
        source = source["text"]
    elif {"question", "answer"} <= set(columns):
        source = [tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}],
            tokenize=False) for row in source]
    elif columns:
        raise ValueError(f"calibration_texts has the columns {', '.join(columns)}; it needs text, or "
                         "question and answer")
    texts = list(source)
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) if texts else 0
    if tokens < FEWEST_TOKENS:
        raise ValueError(f"calibration_texts holds {len(texts)} texts with {tokens} tokens; it needs at "
                         f"least {FEWEST_TOKENS} tokens, and thousands do better")
    return texts
