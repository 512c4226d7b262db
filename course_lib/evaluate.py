"""How good is a model: perplexity, benchmarks with their standard errors, and whether two models really differ.

A score without its conditions says little: how many questions, how many worked examples in the prompt ("shots"), with or
without the chat template, base or instruct, and how an answer is found in the text. `harness` runs EleutherAI's
lm-evaluation-harness (Gao et al., https://doi.org/10.5281/zenodo.5371628), which published tables mostly come from, and
keeps these conditions beside the score. `answers` shows every question with what the model said; read some before you
believe a number.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import runtime, tasks

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("task", "language", "shots", "metric", "value", "stderr", "questions")
SEED = 1234  # the harness's own


# --- perplexity --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PerplexityResult:
    """What a model makes of texts.

    Attributes:
        nats: negative log-likelihood of all scored tokens, natural logarithm.
        tokens: how many tokens were scored.
        characters: Unicode characters that these tokens spell; a Hangul syllable is one.
        per_token: exp(nats / tokens). Compares models with the same tokenizer only: longer tokens are harder to guess.
        per_character: exp(nats / characters). Compares any two models on the same texts.
        bits_per_character: the logarithm of that to base 2: what coding a character with this model costs.
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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], *, stride: int | None = None,
    max_length: int | None = None, batch_size: int = 4,
) -> PerplexityResult:
    """Perplexity of texts, each for itself, long ones in windows that overlap, so that every token is scored once.

    After https://huggingface.co/docs/transformers/perplexity: a window moves on by `stride` tokens, and in each only the
    tokens that no window before it held are scored, the others are their context. A text's first token has no context and
    isn't scored, unless the tokenizer puts a start token before it; its characters don't count either.

    Args:
        texts: one language at a time, to keep them apart.
        stride: tokens between the starts of two windows, 1 to max_length - 1; by default half a window. Smaller is slower
            and closer to the model's best.
        max_length: tokens in a window; by default 1024, or the model's context if that is shorter.

    Raises:
        ValueError: no texts, none with two tokens, or a number out of range.
    """
    from .training import IGNORED, answer_loss

    texts = [texts] if isinstance(texts, str) else list(texts)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1024
    max_length = min(1024, context) if max_length is None else max_length
    stride = max(1, max_length // 2) if stride is None else stride
    if not 2 <= max_length <= context or not 1 <= stride < max_length or batch_size < 1:
        raise ValueError(f"max_length is {max_length}, stride {stride}, batch_size {batch_size}; allowed are max_length from 2 "
                         f"to the model's context of {context}, stride from 1 to max_length - 1, batch_size from 1")
    windows, characters = [], 0
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        characters += len(text) - _unscored(text, ids, tokenizer)
        windows += _windows(ids, max_length, stride)
    tokens = sum(label != IGNORED for window in windows for label in window["labels"])
    if not tokens:
        raise ValueError(f"texts are {len(texts)}, and none has two tokens; perplexity needs something to predict")
    windows.sort(key=lambda window: len(window["input_ids"]))  # those in a batch are padded to the longest
    return PerplexityResult(answer_loss(model, windows, batch_size) * tokens, tokens, characters)


def _windows(ids: list[int], max_length: int, stride: int) -> Iterator[dict[str, list[int]]]:
    """Samples as `training.answer_loss` takes them, in which each token but the first is labelled once."""
    from .training import IGNORED

    done = 1  # the first token is predicted by nothing
    for start in range(0, len(ids), stride):
        end = min(start + max_length, len(ids))
        if end > done:
            yield {"input_ids": ids[start:end], "labels": [IGNORED] * (done - start) + ids[done:end]}
            done = end


def _unscored(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters of the token that nothing predicts: none if it is a start token."""
    if not ids or ids[0] in tokenizer.all_special_ids:
        return 0 if ids else len(text)
    return min(len(text), max(1, len(tokenizer.decode(ids[:1]))))


# --- benchmarks --------------------------------------------------------------------------------------------------

def harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: str | Sequence[str], *, num_fewshot: int | None = None,
    limit: int | None = None, batch_size: int = 8, chat_template: bool = False,
) -> DataFrame:
    """Scores of a model on benchmark tasks, with standard errors. The table remembers each question: see `answers`.

    Args:
        tasks: names out of `tasks.NAMES`, which need no network: "course_choices_en" (multiple choice by log-likelihood),
            "course_choices_written_en" (the same questions, the model writes a letter), "course_word_problems_en",
            "course_closed_book_en", "course_code_en", and the same with "_ko"; or out of `tasks.OFFICIAL` ("mmlu", "gsm8k",
            "humaneval", "triviaqa", "kmmlu", "kobest") or anything else that the harness has, from the hub. Generated code
            runs in `course_lib.sandbox`.
        num_fewshot: worked examples before each question; by default what the task says. Code tasks take none.
        limit: only the first so many questions of each task (of each subject for mmlu and kmmlu).
        batch_size: questions in one forward pass.
        chat_template: put each question into a user's turn, as an instruct model expects it. By default plain text.

    Returns:
        A row for each task and metric, with the columns of `COLUMNS`. `shots` is num_fewshot as it was used, `value` the mean
        over the questions, `stderr` its standard error: the spread of the questions' scores / √questions.

    Raises:
        ValueError: an unknown task, a number out of range, more examples than a task has, a chat template that isn't there.
        ConnectionError: a task needs the hub, which cannot be reached. ModuleNotFoundError: lm-eval is not installed.
    """
    names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    _check(names, num_fewshot, limit, batch_size)
    if chat_template and not tokenizer.chat_template:
        raise ValueError("chat_template is True, but the tokenizer has none; use the tokenizer of an instruct model")
    training = model.training
    with _quiet_harness():
        try:
            return _run(model, tokenizer, names, num_fewshot, batch_size, limit=limit, apply_chat_template=chat_template)
        finally:
            model.train(training)


def _check(names: list[str], num_fewshot: int | None, limit: int | None, batch_size: int) -> None:
    if not names:
        raise ValueError(f"tasks is empty; give one or more of {', '.join(tasks.NAMES)}")
    for argument, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1), ("batch_size", batch_size, 1)):
        if value is not None and (value < least or value != int(value)):
            raise ValueError(f"{argument} is {value}; it must be a whole number from {least}")


def _run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], num_fewshot: int | None, batch_size: int,
    **settings: object,
) -> DataFrame:
    import pandas as pd

    loaded = tasks.load(names)
    prepared = tasks.prepare(loaded, num_fewshot, SEED)
    from lm_eval import evaluate  # after `load`, which says so if it is missing

    from .shared_context import SharedContextLM

    runtime.set_seed(SEED)
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = evaluate(wrapped, prepared, bootstrap_iters=1000, fewshot_as_multiturn=True, **settings)
    table = pd.DataFrame([row for one in loaded for row in tasks.rows(one, found)], columns=COLUMNS)
    table.attrs["answers"] = _Answers(row for name, some in found["samples"].items() for row in tasks.questions(name, some))
    return table


class _Answers(tuple):
    """Rows that travel with a table in `DataFrame.attrs`, which pandas copies at every step: these stay where they are."""

    def __deepcopy__(self, memo: dict) -> _Answers:
        return self


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """The harness's logs and bars only where somebody watches, and its warnings never."""
    runtime.quiet()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if runtime.show_progress() else runtime.silenced():
            yield
    finally:
        logger.setLevel(level)


def answers(table: DataFrame) -> DataFrame:
    """What lies behind a table of `harness`: a row for each question and metric.

    Columns: task, question (its id), metric, score (0 to 1), output (what the model wrote or chose), target, prompt.

    Raises:
        ValueError: the table isn't one of `harness`, or was merged with another, by which it forgot.
    """
    import pandas as pd

    if "answers" not in table.attrs:
        raise ValueError("table remembers no answers; give the table that harness returned, before any concat or merge")
    return pd.DataFrame(list(table.attrs["answers"]))


def scores(table: DataFrame, task: str, metric: str | None = None) -> list[float]:
    """The score of each question of a task, in the task's order: what `paired_bootstrap` compares.

    Args:
        metric: by default the task's first.

    Raises:
        ValueError: as `answers`; or no such task or metric in the table.
    """
    rows = answers(table)
    runtime.check_choice("task", task, list(dict.fromkeys(rows["task"])))
    rows = rows[rows["task"] == task]
    metric = rows["metric"].iloc[0] if metric is None else metric
    runtime.check_choice("metric", metric, list(dict.fromkeys(rows["metric"])))
    return rows[rows["metric"] == metric]["score"].tolist()


# --- do two models differ? ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class BootstrapResult:
    """The difference of two means over the same questions.

    Attributes:
        difference: mean score of a minus that of b.
        low, high: the confidence interval. If it holds 0, the questions can't tell the two apart.
        p_value: how often a difference at least as large, in either direction, would arise by the choice of questions if
            there were none in truth; two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    scores_a: Sequence[float], scores_b: Sequence[float], *, samples: int = 10_000, seed: int = 0, confidence: float = 0.95,
) -> BootstrapResult:
    """Whether two models differ, from their scores on the same questions in the same order.

    Questions are drawn anew with replacement, `samples` times, always for both models together: a hard question is hard for
    both, and this shared part cancels (Koehn 2004, https://aclanthology.org/W04-3250). The interval lies between the
    percentiles of the differences so found; for the p-value they are shifted to mean 0 (Efron and Tibshirani 1993, "An
    Introduction to the Bootstrap", chapters 13 and 16).

    Raises:
        ValueError: lists of different or no length, a score that is no number, samples below 100, confidence outside (0, 1).
    """
    import numpy as np

    a, b = np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError(f"scores_a has the shape {a.shape}, scores_b {b.shape}; both must be rows of numbers, one for each of "
                         "the same questions")
    if samples < 100 or not 0 < confidence < 1:
        raise ValueError(f"samples is {samples}, confidence {confidence}; allowed are samples from 100, confidence "
                         "between 0 and 1")
    differences = a - b
    values, counts = np.unique(differences, return_counts=True)  # to draw questions is to draw these, as often as they come
    drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), size=samples) @ values / len(a)
    difference = float(differences.mean())
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    as_large = np.abs(drawn - difference) >= abs(difference) - 1e-12
    return BootstrapResult(difference, float(low), float(high), float((1 + as_large.sum()) / (1 + samples)))
