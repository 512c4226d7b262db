"""Our own bilingual texts as datasets, damaged on request; chat format; and the order of a curriculum.

Everything about data is at hand here: `load_records` reads anybody's files, `quality_filter` and `near_duplicates` clean
them, `synthesize` has a teacher write more. How our own texts were made, and how many there are, stands in `data/README.md`.
"""
from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

from .filters import near_duplicates, quality_filter
from .noise import KINDS, add_noise
from .records import load_records
from .runtime import LANGUAGES, check_choice, data_dir
from .synthesis import synthesize

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CurriculumSampler", "add_noise", "curriculum_weights", "load_choices", "load_corpus", "load_qa", "load_records",
           "near_duplicates", "quality_filter", "synthesize", "to_messages"]

QUALITIES = ("clean", "mixed", "noisy")
ORDERS = ("easy_to_hard", "hard_to_easy", "random")


# --- our own texts -----------------------------------------------------------------------------------------------

def load_qa(lang: str, split: str = "train") -> Dataset:
    """Our question-answer pairs in one language: columns question, answer, topic, id. Row i is the same pair in both.

    Args:
        lang: "en" or "ko".
        split: "train", "validation" or "test"; no pair has a near-duplicate in another split.
    """
    check_choice("lang", lang, LANGUAGES)
    check_choice("split", split, ("train", "validation", "test"))
    columns = {"question": f"{lang}.question", "answer": f"{lang}.answer", "topic": "topic", "id": "id"}
    return load_records(data_dir() / "qa.jsonl", columns, split=split)


def load_corpus(lang: str, split: str = "train", quality: str = "clean", seed: int = 0) -> Dataset:
    """Our explanatory paragraphs: columns text, topic, id and kind, "clean" or the kind of damage (`noise.KINDS`).

    Args:
        split: "train" or "test".
        quality: "clean"; "mixed": half of the paragraphs damaged; "noisy": all. Each kind of damage is equally frequent, and
            the damaged half of "mixed" is the same in "noisy".
        seed: which paragraphs are hit, by what, and how; the same on every machine.
    """
    from datasets import Dataset

    check_choice("lang", lang, LANGUAGES)
    check_choice("split", split, ("train", "test"))
    check_choice("quality", quality, QUALITIES)
    rows = load_records(data_dir() / "corpus.jsonl", {"text": lang, "topic": "topic", "id": "id"}, split=split).to_list()
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    hit = order[:{"clean": 0, "mixed": len(rows) // 2, "noisy": len(rows)}[quality]]
    kinds = {row: KINDS[place % len(KINDS)] for place, row in enumerate(hit)}
    for row, record in enumerate(rows):
        record["kind"] = kinds.get(row, "clean")
        if row in kinds:
            record["text"] = add_noise(record["text"], kinds[row], lang, random.Random(f"{seed} {record['id']}"))
    return Dataset.from_list(rows)


def load_choices(lang: str) -> Dataset:
    """Our multiple-choice questions, for evaluation: columns question, choices (4), answer (0 to 3), topic, id."""
    check_choice("lang", lang, LANGUAGES)
    columns = {"question": f"{lang}.question", "choices": f"{lang}.choices", "answer": "answer", "topic": "topic", "id": "id"}
    return load_records(data_dir() / "choices.jsonl", columns)


# --- chat and curriculum ---------------------------------------------------------------------------------------------

def to_messages(dataset: Dataset) -> Dataset:
    """Questions and answers as chat messages: columns prompt (the user's message) and completion (the assistant's).

    In this form TRL's SFTTrainer applies the model's own chat template and puts no loss on the prompt
    (https://huggingface.co/docs/trl/dataset_formats, "prompt-completion").

    Raises:
        ValueError: the dataset has no column question or answer.
    """
    for column in ("question", "answer"):
        check_choice("a column of dataset that is needed", column, dataset.column_names)
    return dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}],
                                    "completion": [{"role": "assistant", "content": row["answer"]}]},
                       remove_columns=dataset.column_names)


def curriculum_weights(
    difficulty: Sequence[float] | torch.Tensor, step: int, *, total_steps: int, order: str = "easy_to_hard",
    start: float = 0.2, root: float = 2.0,
) -> torch.Tensor:
    """Weights w_i(t) of the training loss Σ w_i(t) L_i: which samples count at step t. Shape (N,), ≥ 0, sum 1.

    The competence c(t) = min(1, (t/T (1 - c₀^p) + c₀^p)^(1/p)) of Platanios et al. 2019 (arXiv 1903.09848) is the share of
    samples that is open at step t; open samples weigh the same, the others nothing. Samples as difficult as the last open
    one are open too. Built by hand in lesson 04.

    Args:
        difficulty: one number a sample, larger is harder, such as the loss under the model, or the length. Shape (N,).
        step: t, from 0; beyond `total_steps` everything is open.
        total_steps: T, the steps until everything is open.
        order: "easy_to_hard", "hard_to_easy", or "random": all samples open from the start, as in ordinary training. For a
            growing set in random order hand in random difficulties (Wu et al. 2021, arXiv 2012.03107, compare these too).
        start: c₀, the share open at step 0, above 0 and at most 1.
        root: p; 1 opens at a constant rate, 2 is the paper's square root: faster at first.

    Raises:
        ValueError: an argument out of range, or a difficulty that is no number.
    """
    check_choice("order", order, ORDERS)
    values = torch.as_tensor(difficulty, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or values.isnan().any():
        raise ValueError(f"difficulty has shape {tuple(values.shape)} and {int(values.isnan().sum())} NaN; it must be a "
                         "non-empty row of numbers")
    if step < 0 or total_steps < 1 or not 0 < start <= 1 or root <= 0:
        raise ValueError(f"step is {step}, total_steps {total_steps}, start {start}, root {root}; allowed are step from 0, "
                         "total_steps from 1, start above 0 to 1, root above 0")
    competence = min(1.0, (step / total_steps * (1 - start**root) + start**root) ** (1 / root))
    if order == "random":
        competence = 1.0
    if order == "hard_to_easy":
        values = -values
    # rounded first: 0.2 of 10 samples must not become 3 by an error of 1e-16
    last_open = values.sort().values[max(1, math.ceil(round(competence * len(values), 9))) - 1]
    is_open = (values <= last_open).float()
    return is_open / is_open.sum()


class CurriculumSampler(Sampler[int]):
    """Draws the samples of each training step by `curriculum_weights`: an unbiased estimate of Σ w_i(t) L_i.

    A step draws without replacement while enough samples are open. Every iteration starts anew from the seed and draws the
    same, so that a resumed `transformers.Trainer`, which skips the batches it has seen, goes on as if never interrupted, and
    so that several processes agree. To use it with a Trainer, override one method and train for `max_steps=total_steps`:

        class CurriculumTrainer(transformers.Trainer):  # or trl.SFTTrainer, without packing
            def _get_train_sampler(self, train_dataset=None):
                return CurriculumSampler(difficulty, batch_size, total_steps)

    Args:
        batch_size: samples in one optimizer step: batch per device × accumulation steps × processes.
        total_steps: optimizer steps of the run.
        open_after: share of the run after which everything is open, above 0 and at most 1.
        difficulty, order, start, root: as in `curriculum_weights`.
        seed: of the draws.
    """

    def __init__(
        self, difficulty: Sequence[float] | torch.Tensor, batch_size: int, total_steps: int, order: str = "easy_to_hard",
        *, open_after: float = 0.5, start: float = 0.2, root: float = 2.0, seed: int = 0,
    ) -> None:
        if batch_size < 1 or total_steps < 1 or not 0 < open_after <= 1:
            raise ValueError(f"batch_size is {batch_size}, total_steps {total_steps}, open_after {open_after}; allowed are "
                             "batch_size and total_steps from 1, open_after above 0 to 1")
        self.batch_size, self.total_steps, self.seed = batch_size, total_steps, seed
        self._options = {"difficulty": torch.as_tensor(difficulty, dtype=torch.float64), "order": order, "start": start,
                         "root": root, "total_steps": math.ceil(open_after * total_steps)}
        curriculum_weights(step=0, **self._options)  # wrong arguments show now, not in the first training step

    def __len__(self) -> int:
        return self.batch_size * self.total_steps

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(self.total_steps):
            weights = curriculum_weights(step=step, **self._options)
            too_few = int((weights > 0).sum()) < self.batch_size
            yield from torch.multinomial(weights, self.batch_size, replacement=too_few, generator=generator).tolist()
