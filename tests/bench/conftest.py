"""The benchmarks with a tiny model and short texts."""
from dataclasses import replace

import pytest

from bench import training
from course_lib import runtime
from course_lib.data import texts


@pytest.fixture
def small(monkeypatch, tiny_folder):
    """The benchmarks with the tiny model, short texts and one pair."""
    monkeypatch.setattr(runtime, "profile", lambda: replace(runtime.PROFILES["cpu"], model=tiny_folder))
    monkeypatch.setattr(training, "PAIRS", 1)
    short = texts.load_qa("en", "validation").map(
        lambda row: {"question": row["question"][:20], "answer": row["answer"][:20]}
    )
    monkeypatch.setattr(texts, "load_qa", lambda lang, split: short)
    short_texts = texts.load_corpus("en", "test").map(lambda row: {"text": row["text"][:150]})
    monkeypatch.setattr(texts, "load_corpus", lambda lang, split="train": short_texts)
    return tiny_folder
