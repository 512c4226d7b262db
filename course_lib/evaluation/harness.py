"""Benchmark scores with standard errors, by EleutherAI's lm-evaluation-harness.

Most published tables come from this harness (Gao et al., https://doi.org/10.5281/zenodo.5371628). A score
depends on the number of questions and of worked examples ("shots"), the chat template, and how the answer is
extracted. `responses` shows the model's answers; read some before you trust a score.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from .. import runtime
from . import tasks as task_files

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = ("task", "language", "shots", "metric", "value", "stderr", "questions")
SEED = 1234  # the harness's default


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: str | Sequence[str], *,
    num_fewshot: int | None = None, limit: int | None = None, batch_size: int = 8,
    chat_template: bool = False,
) -> DataFrame:
    """Score a model on benchmark tasks; `responses` and `scores` read single questions from the table.

    Args:
        tasks: names of `evaluation.TASKS`, which need no network, or of the harness's tasks on the hub, such
            as "mmlu", "gsm8k", "humaneval", "triviaqa", "kmmlu", "kobest". "course_choices_en" compares
            log-likelihoods; in "course_choices_written_en" the model writes a letter. Generated code runs in
            the sandbox (`evaluation/sandbox`).
        num_fewshot: worked examples before each question; by default the task decides. Code tasks take none.
        limit: only the first so many questions of each task (of each subject for mmlu and kmmlu).
        chat_template: put each question into a user's turn, for instruct models; by default plain text.

    Returns:
        A row for each task and metric, with the columns `COLUMNS`: `shots` is the number of examples used,
        `value` the mean over the questions, `stderr` its standard error (standard deviation / √questions).

    Raises:
        ValueError: an unknown task, a number out of range, too few examples, or no chat template.
        ConnectionError: a task needs the hub, which cannot be reached.
        ModuleNotFoundError: lm-eval is not installed.
    """
    names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    if not names:
        raise ValueError(f"tasks is empty; give one or more of {', '.join(task_files.TASKS)}")
    numbers = {"num_fewshot": (num_fewshot, 0), "limit": (limit, 1), "batch_size": (batch_size, 1)}
    for argument, (value, least) in numbers.items():
        if value is not None and (value < least or value != int(value)):
            raise ValueError(f"{argument} is {value}; it must be a whole number from {least}")
    if chat_template and not tokenizer.chat_template:
        raise ValueError("chat_template is True, but the tokenizer has none; use that of an instruct model")
    training = model.training
    with _quiet_harness():
        try:
            return _run(model, tokenizer, names, num_fewshot, batch_size, limit=limit,
                        apply_chat_template=chat_template)
        finally:
            model.train(training)


def _run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], num_fewshot: int | None,
    batch_size: int, **settings: object,
) -> DataFrame:
    import pandas as pd

    tasks = task_files.load(names)
    prepared = task_files.prepare(tasks, num_fewshot, SEED)
    # after `load`, which reports a missing lm-eval; simple_evaluate would spend seconds on system facts
    from lm_eval import evaluate

    from .shared_context import SharedContextLM

    runtime.set_seed(SEED)
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    results = evaluate(wrapped, prepared, bootstrap_iters=1000, fewshot_as_multiturn=True, **settings)
    table = pd.DataFrame([row for task in tasks for row in task_files.rows(task, results)], columns=COLUMNS)
    table.attrs["responses"] = _Responses(row for name, samples in results["samples"].items()
                                          for row in task_files.questions(name, samples))
    return table


class _Responses(tuple):
    """Rows in `DataFrame.attrs` that are not copied: pandas copies attrs deeply at every step."""

    def __deepcopy__(self, memo: dict) -> _Responses:
        return self


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Hide the harness's warnings, and its logs and progress bars unless progress is shown."""
    runtime.quiet()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if runtime.show_progress() else runtime.silenced():
            yield
    finally:
        logger.setLevel(level)


def responses(table: DataFrame) -> DataFrame:
    """The single questions behind a table of `evaluate`, a row for each question and metric.

    Columns: task, question (id), metric, score (0 to 1), output (written or chosen), target, prompt.

    Raises:
        ValueError: the table is not from `evaluate`, or lost its responses in a merge or concat.
    """
    import pandas as pd

    if "responses" not in table.attrs:
        raise ValueError("table remembers no responses; give the table that evaluate returned, "
                         "before any concat or merge")
    return pd.DataFrame(list(table.attrs["responses"]))


def scores(table: DataFrame, task: str, metric: str | None = None) -> list[float]:
    """The score of each question of a task, as `paired_bootstrap` takes them; by default the first metric's.

    Raises:
        ValueError: as in `responses`, or the table has no such task or metric.
    """
    rows = responses(table)
    runtime.check_choice("task", task, list(dict.fromkeys(rows["task"])))
    rows = rows[rows["task"] == task]
    metric = rows["metric"].iloc[0] if metric is None else metric
    runtime.check_choice("metric", metric, list(dict.fromkeys(rows["metric"])))
    return rows[rows["metric"] == metric]["score"].tolist()
