"""A teacher's predictions for distillation: from a model in memory, from a file, or as answers in text.

`store_teacher_topk` writes a teacher's most likely tokens to a dataset, so `SupervisedDistillationTrainer`
needs no teacher in memory. `respond_and_collect` keeps only the answers. Lesson 05 uses both.
"""
from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.records import read_appended
from ..loading import GREEDY
from ..models.lm_head import IGNORED, Head, labelled, rows_of_a_block, shifted
from ..runtime import progress, replacing
from .samples import LabelledCollator, check_tokenized

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LiveTarget:
    """Log-probabilities of a teacher in memory, from its final hidden states (N, H) at labelled positions."""

    def __init__(self, head: Head, hidden: torch.Tensor, temperature: float) -> None:
        self._head = head
        self._weight = head.weight.detach()
        self._hidden = hidden.to(self._weight.dtype)
        self._temperature = temperature
        self._start = 0
        self._block = self._hidden[:0] @ self._weight.T

    def __call__(self, rows: slice, log_q: torch.Tensor | None = None) -> torch.Tensor:
        """log t of these rows, (n, V) in fp32; the student's log q is not used."""
        start, stop, _ = rows.indices(len(self._hidden))
        if start < self._start or stop > self._start + len(self._block):
            # calls ask for a few rows at a time, in order: compute a larger block, and keep only the latest
            size = rows_of_a_block(self._weight, self._weight.dtype)
            self._start = start
            self._block = self._hidden[start:max(stop, start + size)] @ self._weight.T
        products = self._block[start - self._start:stop - self._start]
        return self._head.finish(products).div_(self._temperature).log_softmax(-1)


@dataclass(frozen=True)
class StoredTarget:
    """Log-probabilities of a stored teacher: k stored tokens, and an estimate for the others.

    Of the other V - k tokens, only the total probability is known. It is distributed in proportion to the
    student's own probabilities, which adds the least possible divergence and no gradient among those tokens.
    With k = V the loss is exact. `tokens` and `logprobs` are (N, k), of the labelled rows.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor

    def __call__(self, rows: slice, log_q: torch.Tensor) -> torch.Tensor:
        """log t of these rows, (n, V) in the dtype of the student's log q (n, V)."""
        known = self.tokens[rows].long().to(log_q.device)
        values = self.logprobs[rows].to(log_q)
        teacher_rest = (1 - values.exp().sum(1, keepdim=True)).clamp(min=torch.finfo(log_q.dtype).tiny)
        rest = log_q.scatter(1, known, -math.inf)
        # a sum, not 1 minus the known: for a confident student, that difference is rounding noise
        scale = teacher_rest.log() - rest.logsumexp(1, keepdim=True)
        return rest.add_(scale).scatter_(1, known, values)


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless the temperature is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0, and finite")


def store_teacher_topk(
    teacher: PreTrainedModel, dataset: Dataset, path: str | Path, *, k: int = 64, temperature: float = 2.0,
    batch_size: int = 8,
) -> Dataset:
    """Run the teacher over a tokenized dataset once, and store its k most likely tokens.

    The result is `dataset` with teacher_tokens and teacher_logprobs, both (labelled positions, k) per sample;
    the log-probabilities are at `temperature`. `path` becomes an Arrow folder (k · 8 bytes per labelled
    token), which `datasets.load_from_disk` reads without a teacher. It is written whole or not at all.

    Raises:
        ValueError: k or temperature is out of range, or the dataset lacks input_ids or labels.
        FileExistsError: `path` exists.
    """
    from datasets import Features, List, Value, load_from_disk

    vocabulary = teacher.get_output_embeddings().weight.shape[0]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k is {k}; it must be from 1 to the vocabulary's {vocabulary}")
    check_temperature(temperature)
    check_tokenized(dataset)
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"path {str(path)!r} exists; load it with datasets.load_from_disk, or "
                              "remove it")
    features = Features({**dataset.features, "teacher_tokens": List(List(Value("int32"))),
                         "teacher_logprobs": List(List(Value("float32"))),
                         "teacher_temperature": Value("float32"), "teacher_vocabulary": Value("int32")})

    def predict(columns: dict[str, list]) -> dict[str, list]:
        rows = zip(*columns.values(), strict=True)
        batch = LabelledCollator()([dict(zip(columns, row, strict=True)) for row in rows])
        counts = (shifted(batch["labels"]) != IGNORED).sum(1).tolist()
        tokens, logprobs = _top_k(teacher, batch, k, temperature)
        return {"teacher_tokens": [rows.tolist() for rows in tokens.split(counts)],
                "teacher_logprobs": [rows.tolist() for rows in logprobs.split(counts)],
                "teacher_temperature": [temperature] * len(counts),
                "teacher_vocabulary": [vocabulary] * len(counts)}

    with replacing(path) as folder:
        stored = dataset.map(predict, batched=True, batch_size=batch_size, features=features,
                             new_fingerprint="teacher-top-k", cache_file_name=f"{folder}.arrow")
        stored.save_to_disk(folder)
        del stored  # Windows doesn't remove a file that is mapped into memory
    return load_from_disk(path)


@torch.inference_mode()
def _top_k(
    teacher: PreTrainedModel, batch: dict[str, torch.Tensor], k: int, temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and log-probabilities, both (N, k), of the labelled positions of a batch, on the CPU."""
    teacher.eval()
    hidden, _ = labelled(teacher, {name: value.to(teacher.device) for name, value in batch.items()})
    target = LiveTarget(Head.of(teacher), hidden, temperature)
    pieces = [target(slice(start, start + 128)).topk(k)
              for start in range(0, max(len(hidden), 1), 128)]  # at least one piece, if an empty one
    tokens = torch.cat([piece.indices for piece in pieces])
    return tokens.int().cpu(), torch.cat([piece.values for piece in pieces]).cpu()


def respond_and_collect(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], path: str | Path,
    *, max_new_tokens: int = 128, batch_size: int = 8,
) -> Dataset:
    """Response-level distillation: collect the teacher's greedy answers (question, answer).

    The teacher may have any tokenizer, because only its text is used. Each batch is appended to `path` (JSON
    Lines) at once; a second call asks only the remaining questions. The result leaves out answers that
    max_new_tokens cuts off; `path` holds them with finished = false. Empty answers are not stored.

    Raises:
        ValueError: no questions, an empty one, or sizes below 1.
    """
    from datasets import Dataset

    for name, size in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    questions = list(dict.fromkeys(unicodedata.normalize("NFC", question) for question in questions))
    if not questions or not all(question.strip() for question in questions):
        raise ValueError("questions is empty or holds an empty question; give at least one, all with text")
    path = Path(path)
    known = {row["question"]: row for row in read_appended(path, ("question", "answer", "finished"))}
    left = [question for question in questions if question not in known]
    with path.open("a", encoding="utf-8") as file:
        for start in progress(range(0, len(left), batch_size)):
            asked = left[start:start + batch_size]
            answers = _answers(teacher, tokenizer, asked, max_new_tokens)
            for question, (answer, finished) in zip(asked, answers, strict=True):
                if answer:
                    known[question] = {"question": question, "answer": answer, "finished": finished}
                    file.write(json.dumps(known[question], ensure_ascii=False) + "\n")
            file.flush()
    # an answer that was cut off would teach the student not to stop
    rows = [known[question] for question in questions if question in known and known[question]["finished"]]
    return Dataset.from_dict({column: [row[column] for row in rows] for column in ("question", "answer")})


@torch.inference_mode()
def _answers(model, tokenizer, questions: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
    """Greedy answers to a batch of questions, each with whether it came to its end."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
        tokenizer_kwargs={"padding_side": "left"}).to(model.device)
    output = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens,
                            pad_token_id=tokenizer.pad_token_id)
    answers = output[:, inputs["input_ids"].shape[1]:]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    ends = model.generation_config.eos_token_id  # Gemma ends a turn with another token
    ends = set(ends if isinstance(ends, list) else [ends])
    finished = [not ends.isdisjoint(row) for row in answers.tolist()]
    return list(zip(map(str.strip, texts), finished, strict=True))
