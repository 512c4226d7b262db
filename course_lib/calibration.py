"""What layers see: calibration texts, and the statistics of the inputs that GPTQ and AWQ need.

A layer's inputs over a few thousand tokens are gigabytes; the two methods need only XᵀX and mean|x|, which are summed up
while the texts pass through. Sources: GPTQ, arXiv 2210.17323, section 3; AWQ, arXiv 2306.00978, section 3.2.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import data

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEWEST_TOKENS = 256


@dataclass
class Inputs:
    """What a layer saw: XᵀX, (D_in, D_in), and mean|x|, (D_in,), both in fp32."""

    gram: torch.Tensor
    size: torch.Tensor


class _Enough(Exception):
    """The forward pass need not go on: every layer that is asked about has seen its inputs."""


def inputs_of(model: PreTrainedModel, layers: dict[str, torch.nn.Linear], ids: Sequence[torch.Tensor]) -> dict[str, Inputs]:
    """The statistics of the layers' inputs over all texts, without a padding token among them.

    Args:
        layers: linear layers of the model, by name; the pass ends as soon as the last of them was reached.
        ids: token ids of shape (1, T), each text alone.
    """
    found: dict[str, Inputs] = {}
    tokens, missing, latest = sum(row.shape[1] for row in ids), set(), (None, "")

    def note(name: str):
        def hook(_, arguments) -> None:
            nonlocal latest
            if arguments[0] is latest[0]:  # query, key and value read the same input: one sum serves them all
                found[name] = found[latest[1]]
            else:
                latest = arguments[0], name
                rows = arguments[0].flatten(0, -2).float()
                gram, size = rows.T @ rows, rows.abs().sum(0) / tokens
                if name in found:
                    found[name].gram += gram
                    found[name].size += size
                else:
                    found[name] = Inputs(gram, size)
            missing.discard(name)
            if not missing:
                raise _Enough
        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            for row in ids:
                missing |= set(layers)
                with suppress(_Enough):
                    model(row, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def calibration_texts(
    calibration: Sequence[str] | Dataset | None, tokenizer: PreTrainedTokenizerBase, count: int = 64,
) -> list[str]:
    """The texts that a calibrated method reads: those given, or the first `count` paragraphs of the course's English corpus.

    Raises:
        ValueError: no text, too few tokens, or a dataset without a column that holds text.
    """
    if calibration is None:
        calibration = data.load_corpus("en")["text"][:count]
    columns = getattr(calibration, "column_names", None)
    if columns is not None:
        if "text" in columns:
            calibration = calibration["text"]
        elif {"question", "answer"} <= set(columns):
            calibration = [tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}],
                tokenize=False) for row in calibration]
        else:
            raise ValueError(f"calibration has the columns {', '.join(columns)}; it needs text, or question and answer")
    texts = list(calibration)
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) if texts else 0
    if tokens < FEWEST_TOKENS:
        raise ValueError(f"calibration holds {len(texts)} texts with {tokens} tokens; it needs at least "
                         f"{FEWEST_TOKENS} tokens, and thousands do better")
    return texts
