"""How well a model predicts given text: loss on labelled tokens, perplexity of whole texts.

The loss of a token is -log p(token | tokens before it), in nats (natural logarithm). Perplexity is exp(mean
loss per token): predicting is as hard as guessing among that many equally likely tokens. Logits are computed
for labelled positions only (`models/lm_head.py`); all of them would need more memory than the model.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _score(
    model: PreTrainedModel, samples: Dataset | Sequence[dict], batches: Iterable[Sequence[int]],
) -> list[tuple[float, int]]:
    """(nats, number) of each sample's labelled tokens; each batch of indices is one forward pass."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from ..models.lm_head import IGNORED, Head, head_loss, labelled, shifted

    def padded(rows: Iterable[Sequence[int]], filler: int) -> torch.Tensor:
        tensors = [torch.as_tensor(row, dtype=torch.long, device=model.device) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

    scores = [(0.0, 0)] * len(samples)
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            rows = [samples[index] for index in batch]
            inputs = {"input_ids": padded((row["input_ids"] for row in rows), 0),
                      "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
                      "labels": padded((row["labels"] for row in rows), IGNORED)}
            hidden, targets = labelled(model, inputs)
            counts = (shifted(inputs["labels"]) != IGNORED).sum(1).tolist()
            for index, states, tokens in zip(batch, hidden.split(counts), targets.split(counts), strict=True):
                nats = head_loss(states, Head.of(model), tokens, num_items=1)[2]
                scores[index] = float(nats), len(tokens)
    model.train(training)
    return scores


def _in_order(count: int, batch_size: int) -> Iterator[range]:
    return (range(start, min(start + batch_size, count)) for start in range(0, count, batch_size))


def answer_loss(model: PreTrainedModel, samples: Dataset | Sequence[dict], batch_size: int = 8) -> float:
    """Mean cross-entropy in nats over all labelled tokens of all tokenized samples.

    Raises:
        ValueError: no sample has a label to predict.
    """
    scores = _score(model, samples, _in_order(len(samples), batch_size))
    tokens = sum(count for _, count in scores)
    if not tokens:
        raise ValueError(f"samples are {len(samples)}, and none has a label to predict; give at least one")
    return sum(nats for nats, _ in scores) / tokens


def perplexities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *,
    max_length: int = 512, batch_tokens: int = 512,
) -> list[float]:
    """The perplexity of each text: exp(mean negative log-likelihood per token).

    Only the first `max_length` tokens of a text count; fewer than two tokens give infinity. Texts of similar
    length share a forward pass of at most `batch_tokens` tokens; a longer text gets its own.
    """
    import torch

    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if len(texts) else []
    batches = []
    left = sorted((row for row in range(len(ids)) if len(ids[row]) > 1), key=lambda row: len(ids[row]))
    while left:
        count = max(1, batch_tokens // len(ids[left[-1]]))
        batches.append(left[-count:])
        del left[-count:]
    scores = _score(model, [{"input_ids": row, "labels": row} for row in ids], batches)
    means = [nats / tokens if tokens else math.inf for nats, tokens in scores]
    return torch.tensor(means, dtype=torch.float64).exp().tolist()  # gives infinity where math.exp raises


@dataclass(frozen=True)
class PerplexityResult:
    """The likelihood of texts under a model.

    Attributes:
        nats: negative log-likelihood of all scored tokens, natural logarithm.
        tokens, characters: numbers of scored tokens and their Unicode characters (a Hangul syllable is one).
        per_token: exp(nats / tokens); compares only models with the same tokenizer.
        per_character: exp(nats / characters); compares any two models on the same texts.
        bits_per_character: log2(per_character), the cost of coding a character with this model.
    """

    nats: float
    tokens: int
    characters: int

    @property
    def per_token(self) -> float:
        return math.exp(self.nats / self.tokens)

    @property
    def per_character(self) -> float:
        return math.exp(self.nats / self.characters)

    @property
    def bits_per_character(self) -> float:
        return self.nats / self.characters / math.log(2)


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], *,
    stride: int | None = None, max_length: int | None = None, batch_size: int = 4,
) -> PerplexityResult:
    """The perplexity of texts, each by itself; long texts are read in overlapping windows.

    A window scores only tokens that no earlier window held; the others are their context. So every token is
    scored once, except a text's first token: it has no context and does not count, nor do its characters,
    unless the tokenizer puts a start token before it.
    Source: https://huggingface.co/docs/transformers/perplexity.

    Args:
        stride: tokens between the starts of two windows, 1 to max_length - 1; by default half a window. A
            smaller stride is slower and gives tokens more context.
        max_length: tokens per window; by default 1024, or the model's context if that is shorter.

    Raises:
        ValueError: no text has two tokens, or a number is out of range.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1024
    max_length = min(1024, context) if max_length is None else max_length
    stride = max(1, max_length // 2) if stride is None else stride
    if not 2 <= max_length <= context or not 1 <= stride < max_length or batch_size < 1:
        raise ValueError(f"max_length is {max_length}, stride {stride}, batch_size {batch_size}; allowed are "
                         f"max_length from 2 to the model's context of {context}, stride from 1 to "
                         "max_length - 1, batch_size from 1")
    windows = []
    characters = 0
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        characters += len(text) - _unscored(text, ids, tokenizer)
        windows += _windows(ids, max_length, stride)
    if not windows:
        raise ValueError(f"texts are {len(texts)}, and none has two tokens; there is nothing to predict")
    windows.sort(key=lambda window: len(window["input_ids"]))  # similar lengths in a batch need less padding
    scores = _score(model, windows, _in_order(len(windows), batch_size))
    return PerplexityResult(sum(nats for nats, _ in scores), sum(tokens for _, tokens in scores), characters)


def _windows(ids: list[int], max_length: int, stride: int) -> Iterator[dict[str, list[int]]]:
    """Samples for `_score` that label each token but the first exactly once."""
    from ..models.lm_head import IGNORED

    done = 1  # nothing predicts the first token
    for start in range(0, len(ids), stride):
        end = min(start + max_length, len(ids))
        if end > done:
            yield {"input_ids": ids[start:end], "labels": [IGNORED] * (done - start) + ids[done:end]}
            done = end


def _unscored(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of characters of the first token, which nothing predicts; 0 if it is a start token."""
    if not ids or ids[0] in tokenizer.all_special_ids:
        return 0 if ids else len(text)
    return min(len(text), max(1, len(tokenizer.decode(ids[:1]))))
