"""The course's bilingual texts as datasets: questions with answers, paragraphs, multiple choice.

`data/README.md` says how they were written, and how many there are.
"""
from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..runtime import LANGUAGES, check_choice, data_dir
from .noise import NOISE_KINDS, add_noise
from .records import load_records

if TYPE_CHECKING:
    from datasets import Dataset

QUALITIES = ("clean", "mixed", "noisy")


def load_qa(lang: str, split: str = "train") -> Dataset:
    """Load the course's question-answer pairs: columns question, answer, topic, id.

    Both languages have the same rows. `split` is "train", "validation" or "test"; no pair has a
    near-duplicate in another split.
    """
    check_choice("lang", lang, LANGUAGES)
    check_choice("split", split, ("train", "validation", "test"))
    columns = {"question": f"{lang}.question", "answer": f"{lang}.answer", "topic": "topic", "id": "id"}
    return load_records(data_dir() / "qa.jsonl", columns, split=split)


def load_corpus(lang: str, split: str = "train", quality: str = "clean", seed: int = 0) -> Dataset:
    """Load the course's explanatory paragraphs: columns text, topic, id, kind.

    Args:
        split: "train" or "test".
        quality: "clean", "mixed" (half of the paragraphs damaged) or "noisy" (all). The kinds of damage
            (`cl.data.NOISE_KINDS`) are equally frequent; "noisy" contains the damaged half of "mixed".
        seed: decides which paragraphs are damaged, by what, and how; the same on every machine.
    """
    from datasets import Dataset

    check_choice("lang", lang, LANGUAGES)
    check_choice("split", split, ("train", "test"))
    check_choice("quality", quality, QUALITIES)
    columns = {"text": lang, "topic": "topic", "id": "id"}
    rows = load_records(data_dir() / "corpus.jsonl", columns, split=split).to_list()
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    damaged = order[:{"clean": 0, "mixed": len(rows) // 2, "noisy": len(rows)}[quality]]
    kinds = {row: NOISE_KINDS[turn % len(NOISE_KINDS)] for turn, row in enumerate(damaged)}
    for row, record in enumerate(rows):
        record["kind"] = kinds.get(row, "clean")
        if row in kinds:
            rng = random.Random(f"{seed} {record['id']}")
            record["text"] = add_noise(record["text"], kinds[row], lang, rng)
    return Dataset.from_list(rows)


def load_choices(lang: str) -> Dataset:
    """Load the multiple-choice questions: columns question, choices (4), answer (0 to 3), topic, id."""
    check_choice("lang", lang, LANGUAGES)
    columns = {"question": f"{lang}.question", "choices": f"{lang}.choices"}
    columns |= {"answer": "answer", "topic": "topic", "id": "id"}
    return load_records(data_dir() / "choices.jsonl", columns)


def to_messages(dataset: Dataset) -> Dataset:
    """Convert questions and answers to messages: columns prompt (user), completion (assistant).

    TRL's SFTTrainer applies the model's chat template to this format and puts no loss on the prompt
    (https://huggingface.co/docs/trl/dataset_formats, "prompt-completion").

    Raises:
        ValueError: the dataset has no column question or answer.
    """
    for column in ("question", "answer"):
        check_choice("a column of dataset that is needed", column, dataset.column_names)
    return dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}],
                                    "completion": [{"role": "assistant", "content": row["answer"]}]},
                       remove_columns=dataset.column_names)
