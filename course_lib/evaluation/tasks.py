"""Our benchmark tasks for lm-evaluation-harness, and the harness's results as rows.

A task is a YAML file in data/tasks/ and a file of records in both languages. The YAML file names the prompt,
the metric, and the functions of this module that read and score. The harness's command line runs these tasks
too, without the hub, if the package is on the path:

    lm_eval --model hf --model_args pretrained=FOLDER --include_path data/tasks --tasks course_choices_en

Format: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING

from ..runtime import LANGUAGES, check_choice, data_dir, need_package
from . import answers

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

KINDS = ("choices", "choices_written", "word_problems", "closed_book", "code")
TASKS = tuple(f"course_{kind}_{lang}" for kind in KINDS for lang in LANGUAGES)  # offline
# from the hub
OFFICIAL = {"mmlu": "en", "gsm8k": "en", "humaneval": "en", "triviaqa": "en", "kmmlu": "ko", "kobest": "ko"}
CODE_TIMEOUT = 10.0  # seconds for one program and its tests


# --- what the YAML files name ---------------------------------------------------------------------

def read_questions(file: str, lang: str, **_: object) -> DatasetDict:
    """The records of a file under data/ in one language, by split: "test" by default, or "fewshot"."""
    from datasets import Dataset, DatasetDict

    check_choice("lang", lang, LANGUAGES)
    splits: dict[str, list[dict]] = {}
    for line in (data_dir() / file).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        # fields under the language's name ("question", "choices", "prompt") move up beside the others
        words = record[lang] if isinstance(record[lang], dict) else {"question": record[lang]}
        fields = {name: value for name, value in record.items() if name not in (*LANGUAGES, "split")}
        splits.setdefault(record.get("split", "test"), []).append(fields | words)
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def score_choice(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the model's text names the right letter."""
    return {"exact_match": float(answers.choice(results[0]) == doc["answer"])}


def score_number(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the model's text gives the right number."""
    return {"exact_match": float(answers.number(results[0]) == Fraction(doc["answer"]))}


def score_answer(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """Whether the text is one of the accepted answers, and whether it contains one."""
    accepted = doc["answers"]
    return {"exact_match": float(answers.same_answer(results[0], accepted)),
            "contains": float(answers.contains_answer(results[0], accepted))}


def score_code(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the function that the model wrote passes the hidden tests, run in the sandbox."""
    from .sandbox.run import run_untrusted

    ours = "tests" in doc  # else HumanEval's
    tests = doc["tests"] if ours else f"{doc['test']}\ncheck({doc['entry_point']})\n"
    program = answers.code(doc["prompt"], results[0], doc["entry_point"])
    return {"pass@1": float(run_untrusted(program, CODE_TIMEOUT, check=tests).passed)}


# --- loading --------------------------------------------------------------------------------------

def load(names: Sequence[str]) -> list[Task | Group]:
    """The harness's task objects by name: our tasks, the official ones, and all others of the harness.

    Raises:
        ValueError: an unknown name, or a task that would run generated code in this process.
        ConnectionError: the questions are on the hub, which cannot be reached, and not in its cache.
        ModuleNotFoundError: lm-eval is not installed.
    """
    need_package("lm_eval", "0.4.12")
    from lm_eval.tasks import TaskManager

    others = [name for name in names if name not in (*TASKS, "humaneval")]
    # the harness's own tasks take seconds to list
    manager = TaskManager(include_path=str(data_dir() / "tasks"), include_defaults=bool(others))
    for name in others:
        _check(name, manager)
    tasks: list[Task | Group] = []
    with _hub_as_it_is(any(name not in TASKS for name in names)):
        for name in names:
            try:
                loaded = manager.load([name])
            except ConnectionError as error:
                raise ConnectionError(f"task {name!r} needs its questions from the Hugging Face Hub, which "
                                      "cannot be reached, and they are not in the local cache; offline there "
                                      f"are {', '.join(TASKS)}") from error
            tasks += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return tasks


def _check(name: str, manager: object) -> None:
    """Refuse names that the harness does not know, and tasks that run generated code in this process."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise ValueError(f"task {name!r} is unknown; there are {', '.join(TASKS)}, from the hub "
                         f"{', '.join(OFFICIAL)}, and whatever `lm_eval ls tasks` lists")
    if (entry.cfg or {}).get("unsafe_code"):
        raise ValueError(f"task {name!r} runs generated code in this very process; 'humaneval' and "
                         "'course_code_en' run it in the sandbox")


def language(name: str) -> str | None:
    """The language of one of our tasks or an official one, "en" or "ko"; None for others."""
    if name in TASKS:
        return name[-2:]
    return next((lang for prefix, lang in OFFICIAL.items() if f"{name}_".startswith(f"{prefix}_")), None)


@contextmanager
def _hub_as_it_is(needed: bool) -> Iterator[None]:
    """Set the libraries offline if the hub is unreachable; else they retry for half a minute per task."""
    from datasets import config
    from huggingface_hub import constants

    modules = (constants, config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    if needed and not hub_reachable():
        for module in modules:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def hub_reachable() -> bool:
    """Whether the Hugging Face Hub can be reached; waits 5 seconds at most."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # an error of httpx or of httpx2: it depends on the version of huggingface_hub
        return False
    return True  # any answer counts


# --- tasks and results as rows ---------------------------------------------------------------------

def subtasks(task: Task | Group) -> list[Task]:
    """The tasks of a group, such as the subjects of mmlu; for a task, the task itself."""
    return task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]


def prepare(loaded: Sequence[Task | Group], num_fewshot: int | None, seed: int) -> dict[str, dict]:
    """Set the examples of each task; return tasks and groups by name, as `lm_eval.evaluate` takes them."""
    tasks = {task.task_name: task for entry in loaded for task in subtasks(entry)}
    for name, task in tasks.items():
        usual = task.config.num_fewshot
        examples = 0
        if hasattr(task, "sampler"):  # a question is no example for itself
            examples = len(task.sampler.df) - (task.fewshot_cfg.split == task.config.test_split)
        if usual != 0 and (num_fewshot or 0) > examples:
            raise ValueError(f"num_fewshot is {num_fewshot}, but task {name!r} has only {examples} examples")
        if usual is None or usual and num_fewshot is not None:
            task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(seed)
    groups = [group for entry in loaded if hasattr(entry, "get_all_groups")
              for group in (entry, *entry.get_all_groups())]
    return {"tasks": tasks, "groups": {group.name: group for group in groups}}


def rows(task: Task | Group, results: dict) -> Iterator[tuple]:
    """The rows of `evaluate` for a task, or for a group: its total if it has one, else its tasks' rows."""
    names = [subtask.task_name for subtask in subtasks(task)]
    name = task.name if hasattr(task, "get_all_tasks") else names[0]
    scores = results["results"].get(name, {})
    metrics = [key for key in scores if "," in key and "_stderr," not in key]
    if not metrics:
        for subtask in subtasks(task):
            if subtask is not task:
                yield from rows(subtask, results)
        return
    shots = results["n-shot"].get(name, results["n-shot"][names[0]])
    count = sum(results["n-samples"][subtask]["effective"] for subtask in names)
    for key in metrics:
        metric, _, filtered_by = key.partition(",")
        error = scores.get(f"{metric}_stderr,{filtered_by}")  # "N/A" for a single question
        yield (name, language(name), shots, _label(metric, filtered_by), scores[key],
               error if isinstance(error, float) else math.nan, count)


def _label(metric: str, filtered_by: str) -> str:
    """The metric, with the name of the filter that extracted the answer, if there is one."""
    return metric if filtered_by == "none" else f"{metric} ({filtered_by})"


def questions(name: str, samples: Sequence[dict]) -> Iterator[dict]:
    """The rows of `evaluation.responses`: one for each question, metric and filter."""
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], (int, float)):  # f1 has no value for a single question
                output, target = _output_and_target(sample, metric)
                yield {"task": name, "question": sample["doc"].get("id", sample["doc_id"]),
                       "metric": _label(metric, sample["filter"]), "score": float(sample[metric]),
                       "output": output, "target": target, "prompt": sample["arguments"][0][0]}


def _output_and_target(sample: dict, metric: str) -> tuple[str, object]:
    """What the model wrote or chose, and the right answer."""
    target = sample["target"]
    choices = [argument[1] for argument in sample["arguments"]]
    if len(choices) == 1:
        return sample["resps"][0][0], target
    choices = [choice.strip() for choice in choices]
    weights = [len(choice) if metric == "acc_norm" else 1 for choice in choices]
    likelihoods = [pair[0] / weight for pair, weight in zip(sample["filtered_resps"], weights, strict=True)]
    chosen = choices[likelihoods.index(max(likelihoods))]
    return chosen, choices[target] if isinstance(target, int) else target
