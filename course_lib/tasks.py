"""Our benchmark tasks, as lm-evaluation-harness reads them: the YAML files in data/tasks/ name the functions of this module.

A task is a YAML file (what is asked, what is generated, which metric) over a file of records that hold both languages. The
harness's command line runs them too, with the package on the path and no hub:

    lm_eval --model hf --model_args pretrained=FOLDER --include_path data/tasks --tasks course_choices_en

Format: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md
"""
from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, urlopen

from . import answers
from .exporting import need_package
from .runtime import LANGUAGES, check_choice, data_dir

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

KINDS = ("choices", "choices_written", "word_problems", "closed_book", "code")
NAMES = tuple(f"course_{kind}_{lang}" for kind in KINDS for lang in LANGUAGES)  # offline
OFFICIAL = {"mmlu": "en", "gsm8k": "en", "humaneval": "en", "triviaqa": "en", "kmmlu": "ko", "kobest": "ko"}  # from the hub
CODE_TIMEOUT = 10.0  # seconds for one program and its tests


# --- what the YAML files name ------------------------------------------------------------------------------------

def read(file: str, lang: str, **_: object) -> DatasetDict:
    """The records of a file under data/ in one language, by split ("test", "fewshot"); without a split all are "test".

    What stands under the language's name in a record ("question", "choices", "prompt") comes up beside the other fields.
    """
    from datasets import Dataset, DatasetDict

    check_choice("lang", lang, LANGUAGES)
    splits: dict[str, list[dict]] = {}
    for line in (data_dir() / file).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        part = record[lang] if isinstance(record[lang], dict) else {"question": record[lang]}
        rest = {name: value for name, value in record.items() if name not in (*LANGUAGES, "split")}
        splits.setdefault(record.get("split", "test"), []).append(rest | part)
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def score_choice(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the letter in the model's text is the right one."""
    return {"exact_match": float(answers.choice(results[0]) == doc["answer"])}


def score_number(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the number in the model's text is the answer."""
    return {"exact_match": float(answers.number(results[0]) == Fraction(doc["answer"]))}


def score_answer(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """Whether the text is one of the accepted answers, and whether it contains one."""
    accepted = doc["answers"]
    return {"exact_match": float(answers.same_answer(results[0], accepted)),
            "contains": float(answers.contains_answer(results[0], accepted))}


def score_code(doc: dict, results: Sequence[str]) -> dict[str, float]:
    """1 if the function that the model wrote passes the hidden tests, run in the sandbox."""
    from .sandbox import run_untrusted

    tests = doc["tests"] if "tests" in doc else f"{doc['test']}\ncheck({doc['entry_point']})\n"  # ours, HumanEval's
    program = answers.code(doc["prompt"], results[0], doc["entry_point"])
    return {"pass@1": float(run_untrusted(program, CODE_TIMEOUT, check=tests).passed)}


# --- loading -----------------------------------------------------------------------------------------------------

def load(names: Sequence[str]) -> list[Task | Group]:
    """The harness's task objects of these names: ours, the official ones, and any other that the harness has.

    Raises:
        ValueError: a name that nobody knows, or a task that would run generated code in this process.
        ConnectionError: a task's questions lie on the hub, which cannot be reached, and not in its cache.
        ModuleNotFoundError: lm-eval is not installed.
    """
    need_package("lm_eval", "0.4.12")
    from lm_eval.tasks import TaskManager

    own = {*NAMES, "humaneval"}
    others = [name for name in names if name not in own]
    manager = TaskManager(include_path=str(data_dir() / "tasks"), include_defaults=bool(others))  # its own take seconds to list
    for name in others:
        _check(name, manager)
    loaded: list[Task | Group] = []
    with _hub_as_it_is(any(name not in NAMES for name in names)):
        for name in names:
            try:
                found = manager.load([name])
            except ConnectionError as error:
                raise ConnectionError(f"task {name!r} needs its questions from the Hugging Face Hub, which cannot be reached, "
                                      f"and they are not in the local cache; offline there are {', '.join(NAMES)}") from error
            loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
    return loaded


def _check(name: str, manager: object) -> None:
    """Refuse names that the harness doesn't know, and tasks whose scoring executes what the model wrote."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise ValueError(f"task {name!r} is unknown; there are {', '.join(NAMES)}, from the hub {', '.join(OFFICIAL)}, and "
                         "whatever `lm_eval ls tasks` lists")
    if (entry.cfg or {}).get("unsafe_code"):
        raise ValueError(f"task {name!r} runs generated code in this very process; 'humaneval' and 'course_code_en' run it in "
                         "the sandbox")


def language(name: str) -> str | None:
    """The language of a task of ours or of an official one, "en" or "ko"; None for others."""
    if name in NAMES:
        return name[-2:]
    return next((lang for prefix, lang in OFFICIAL.items() if name == prefix or name.startswith(prefix + "_")), None)


@contextmanager
def _hub_as_it_is(needed: bool) -> Iterator[None]:
    """Where the hub can't be reached, say so to the libraries for a while: they'd try for half a minute a task."""
    import datasets
    import huggingface_hub

    places = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    if needed and not hub_reachable():
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def hub_reachable() -> bool:
    """Whether the Hugging Face Hub can be reached; found out within seconds, with nothing loaded."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if not getproxies():
        return _reachable(huggingface_hub.constants.ENDPOINT)
    try:
        urlopen(Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:  # it answers
        return True
    except OSError:
        return False
    return True


def _reachable(address: str) -> bool:
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), timeout=5):
            return True
    except OSError:
        return False


# --- what the harness found --------------------------------------------------------------------------------------

def leaves(one: Task | Group) -> list[Task]:
    """The tasks of a group, such as the subjects of mmlu; a task is its own."""
    return one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]


def prepare(loaded: Sequence[Task | Group], num_fewshot: int | None, seed: int) -> dict[str, dict]:
    """Set the examples of each task; the result is what `lm_eval.evaluate` takes: all tasks and all groups by name.

    `lm_eval.simple_evaluate` does the same, but first spends seconds on asking the system about itself.
    """
    found = {task.task_name: task for one in loaded for task in leaves(one)}
    for name, task in found.items():
        pool = len(task.sampler.df) - (task.fewshot_cfg.split == task.config.test_split) if hasattr(task, "sampler") else 0
        usual = task.config.num_fewshot
        if usual != 0 and (num_fewshot or 0) > pool:
            raise ValueError(f"num_fewshot is {num_fewshot}, but task {name!r} has only {pool} examples")
        if usual is None or usual and num_fewshot is not None:
            task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(seed)
    groups = [group for one in loaded if hasattr(one, "get_all_groups") for group in (one, *one.get_all_groups())]
    return {"tasks": found, "groups": {group.name: group for group in groups}}


def rows(one: Task | Group, found: dict) -> Iterator[tuple]:
    """The rows of `evaluate.harness` for a task, or for a group: its total if it has one, else its parts."""
    parts = [part.task_name for part in leaves(one)]
    name = one.name if hasattr(one, "get_all_tasks") else parts[0]
    scores = found["results"].get(name, {})
    metrics = [key for key in scores if "," in key and "_stderr," not in key]
    if not metrics:
        yield from (row for part in leaves(one) if part is not one for row in rows(part, found))
        return
    shots = found["n-shot"].get(name, found["n-shot"][parts[0]])
    count = sum(found["n-samples"][part]["effective"] for part in parts)
    for key in metrics:
        metric, _, way = key.partition(",")
        error = scores.get(f"{metric}_stderr,{way}")  # "N/A" for a single question
        yield (name, language(name), shots, _label(metric, way), scores[key],
               error if isinstance(error, float) else math.nan, count)


def _label(metric: str, way: str) -> str:
    """The metric, with the way in which the answer was looked for where a task has several."""
    return metric if way == "none" else f"{metric} ({way})"


def questions(name: str, samples: Sequence[dict]) -> Iterator[dict]:
    """The rows of `evaluate.answers`: one for each question, metric and way to look for the answer."""
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], (int, float)):  # an f1 has no value for one question
                output, target = _said(sample, metric)
                yield {"task": name, "question": sample["doc"].get("id", sample["doc_id"]),
                       "metric": _label(metric, sample["filter"]), "score": float(sample[metric]), "output": output,
                       "target": target, "prompt": sample["arguments"][0][0]}


def _said(sample: dict, metric: str) -> tuple[str, object]:
    """(what the model wrote or chose, what it should have)."""
    target, choices = sample["target"], [argument[1] for argument in sample["arguments"]]
    if len(choices) == 1:
        return sample["resps"][0][0], target
    choices = [choice.strip() for choice in choices]
    weights = [len(choice) if metric == "acc_norm" else 1 for choice in choices]
    likelihoods = [pair[0] / weight for pair, weight in zip(sample["filtered_resps"], weights, strict=True)]
    chosen = choices[likelihoods.index(max(likelihoods))]
    return chosen, choices[target] if isinstance(target, int) else target
