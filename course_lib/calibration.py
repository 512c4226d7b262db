"""What layers see: calibration texts, and the statistics of the inputs that GPTQ and AWQ need.

A layer's inputs over a few thousand tokens are gigabytes; the two methods need only XᵀX and mean|x|, which are summed up
while the texts pass through. Sources: GPTQ, arXiv 2210.17323, section 3; AWQ, arXiv 2306.00978, section 3.2.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


def watch_inputs(
    model: PreTrainedModel, layers: Iterable[str], ids: Sequence[torch.Tensor], note: Callable[[str, torch.Tensor], None],
) -> None:
    """Send the texts through the model and call `note(name, inputs)` with what each of the layers reads, (1, T, D_in).

    Args:
        layers: names of modules; a pass ends as soon as the last of them was reached.
        ids: token ids of shape (1, T), each text alone, so that no padding is among the inputs.
    """
    names, missing = set(layers), set()

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


def inputs_of(model: PreTrainedModel, layers: Iterable[str], ids: Sequence[torch.Tensor]) -> dict[str, Inputs]:
    """The statistics of the layers' inputs over all texts; arguments as in `watch_inputs`."""
    found: dict[str, Inputs] = {}
    tokens, latest = sum(row.shape[1] for row in ids), (None, "")

    def note(name: str, inputs: torch.Tensor) -> None:
        nonlocal latest
        if inputs is latest[0]:  # query, key and value read the same input: one sum serves them all
            found[name] = found[latest[1]]
            return
        latest = inputs, name
        rows = inputs.flatten(0, -2).float()
        gram, size = rows.T @ rows, rows.abs().sum(0) / tokens
        if name in found:
            found[name].gram += gram
            found[name].size += size
        else:
            found[name] = Inputs(gram, size)

    watch_inputs(model, layers, ids, note)
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
