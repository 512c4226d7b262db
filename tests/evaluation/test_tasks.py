"""The benchmark files, held against their own rules; and the harness's view of them."""
import doctest
import json
import re
import socket
import threading
import types
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from course_lib import runtime
from course_lib.data import filters, texts
from course_lib.evaluation import answers, tasks

FOLDER = Path(__file__).parents[2] / "data"
FILES = {"word_problems": ("word", 40), "closed_book": ("fact", 60), "code": ("code", 20)}
every_language = pytest.mark.parametrize("lang", runtime.LANGUAGES)


def stored(kind):
    return [json.loads(line) for line in (FOLDER / "tasks" / f"{kind}.jsonl").read_text("utf-8").splitlines()]


WORD_PROBLEMS, FACTS, CODE = (stored(kind) for kind in FILES)


# --- the files ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", FILES)
def test_files_are_tidy(kind):
    mark, least = FILES[kind]
    records = stored(kind)
    assert (FOLDER / "tasks" / f"{kind}.jsonl").read_text("utf-8") == "".join(
        json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    numbers = range(1, len(records) + 1)
    assert [record["id"] for record in records] == [f"{mark}-{number:03}" for number in numbers]
    splits = Counter(record.get("split", "test") for record in records)
    assert splits["test"] >= least and splits["fewshot"] == (0 if kind == "code" else 5)


def asked(record, lang):
    words = record[lang]
    return words if isinstance(words, str) else words.get("question") or words["prompt"]


@every_language
def test_texts_are_in_their_language_and_style(lang):
    for record in [*WORD_PROBLEMS, *FACTS]:
        text = asked(record, lang)
        assert text == " ".join(text.split()) and text.endswith("?"), record["id"]
        assert bool(re.search("[가-힣]", text)) == (lang == "ko"), record["id"]
        if lang == "ko":
            assert all(re.search(r"(니다\.|니까\?)$", said) for said in filters.sentences(text)), record["id"]
    for record in CODE:
        text = record[lang]["prompt"].split('"""')[1].partition(">>>")[0]
        assert bool(re.search("[가-힣]", text)) == (lang == "ko"), record["id"]
        sentences = filters.sentences(text.strip())
        assert lang == "en" or all(sentence.endswith("니다.") for sentence in sentences), record["id"]


@every_language
def test_no_question_is_asked_twice(lang):
    """Neither here nor in the other files of the course, from which lessons fine-tune."""
    ours = [asked(record, lang) for record in [*WORD_PROBLEMS, *FACTS, *CODE]]
    questions = list(ours)
    for split in ("train", "validation", "test"):
        questions += texts.load_qa(lang, split)["question"]
    questions += texts.load_choices(lang)["question"]
    alike = [group for group in filters.near_duplicates(questions, threshold=0.5) if group[0] < len(ours)]
    # "What is the capital of …?" may be asked of several
    facts = range(len(WORD_PROBLEMS), len(WORD_PROBLEMS) + len(FACTS))
    assert [group for group in alike if not all(row in facts for row in group)] == []
    assert len({filters.normalise(text) for text in questions}) == len(questions)


@pytest.mark.parametrize("record", WORD_PROBLEMS, ids=lambda record: record["id"])
def test_worked_answers_compute(record):
    for step in record["steps"]:
        left, right = step.split(" = ")
        assert re.fullmatch(r"[-+*/ .\d]+", left)
        assert eval(left) == pytest.approx(float(right), abs=1e-9)
    assert Fraction(record["steps"][-1].split(" = ")[1]) == Fraction(record["answer"])
    assert all(re.search(r"\d", record[lang]) for lang in runtime.LANGUAGES)
    assert any(list(answers._numbers(answers._plain(record[lang]))) for lang in runtime.LANGUAGES)
    numbers = [Counter(re.findall(r"\d+(?:[.,]\d+)*", record[lang])) for lang in runtime.LANGUAGES]
    # English spells some out, Korean writes 45인승
    missing = (numbers[0] - numbers[1]) + (numbers[1] - numbers[0])
    assert sum(missing.values()) <= 6, missing


def run_here(program):
    """Our own texts, so no sandbox: whether they run to their end."""
    try:
        exec(program, {"__name__": "there"})
    except Exception:
        return False
    return True


@pytest.mark.parametrize("record", CODE, ids=lambda record: record["entry_point"])
def test_solutions_pass_and_wrong_ones_fail(record):
    for lang in runtime.LANGUAGES:
        prompt = record[lang]["prompt"]
        assert f"def {record['entry_point']}(" in prompt
        assert run_here(prompt + record["solution"] + record["tests"])
        assert run_here(prompt + record["wrong"]) and not run_here(prompt + record["wrong"] + record["tests"])
        assert not run_here(prompt + "    pass\n" + record["tests"])
        names = {}
        exec(prompt + record["solution"], names)
        docstring = prompt.split('"""')[1]
        examples = doctest.DocTestParser().get_doctest(docstring, names, record["id"], None, None)
        assert examples.examples and not doctest.DocTestRunner(verbose=False).run(examples).failed
    assert record["tests"].count("assert") > len(examples.examples) + 1, "hidden tests beyond the examples"
    heads = {record[lang]["prompt"].splitlines()[0] for lang in runtime.LANGUAGES}
    assert len(heads) == 1


@every_language
def test_accepted_answers_are_accepted(lang):
    for record in FACTS:
        accepted = record[lang]["answers"]
        assert len({answers.normalise_answer(answer) for answer in accepted}) == len(accepted), record["id"]
        for answer in accepted:
            written = f"정답은 {answer}입니다." if lang == "ko" else f"The answer is {answer}."
            assert answers.same_answer(answer, accepted), record["id"]
            assert answers.same_answer(written, accepted), record["id"]
            assert answers.contains_answer(written, accepted), record["id"]
        assert not answers.contains_answer(asked(record, lang), accepted), record["id"]


def test_the_data_card_counts_right():
    card = (FOLDER / "README.md").read_text("utf-8")
    for kind, what in (("word_problems", "problems"), ("closed_book", "questions"), ("code", "functions")):
        records = stored(kind)
        count = sum(record.get("split", "test") == "test" for record in records)
        more = f" and {len(records) - count} worked examples" if len(records) > count else ""
        assert f"| {count} {what}{more} in each language |" in card


# --- what the YAML files say ----------------------------------------------------------------------

def test_there_is_a_file_for_each_task():
    stems = {path.stem for path in (FOLDER / "tasks").glob("[a-z]*.yaml")}
    assert {f"course_{stem}" for stem in stems - {"humaneval"}} == set(tasks.TASKS)


@pytest.mark.parametrize("kind", tasks.KINDS)
def test_the_two_languages_differ_in_words_only(kind):
    def read(lang):
        class Loader(yaml.SafeLoader):
            pass
        Loader.add_constructor("!function", lambda loader, node: node.value)
        text = (FOLDER / "tasks" / f"{kind}_{lang}.yaml").read_text("utf-8")
        return yaml.load(re.sub(rf"\b(lang(?:uage)?: ){lang}\b|_{lang}\b", r"\1LANG", text), Loader)

    english, korean = read("en"), read("ko")
    assert english.keys() == korean.keys()
    fields = [re.findall(r"\{\{.*?\}\}", task.get("doc_to_text", "")) for task in (english, korean)]
    assert fields[0] == fields[1]
    for task in (english, korean):
        for key in ("doc_to_text", "generation_kwargs"):  # what is in words
            task.pop(key, None)
    assert english == korean


@every_language
def test_read_brings_up_one_language(lang):
    facts = tasks.read_questions("tasks/closed_book.jsonl", lang, version=1)
    assert set(facts) == {"test", "fewshot"}
    assert facts["test"][0] == {"id": "fact-006", **FACTS[5][lang]}
    assert tasks.read_questions("choices.jsonl", lang)["test"].num_rows == 128
    problems = tasks.read_questions("tasks/word_problems.jsonl", lang)
    assert problems["test"]["question"][0] == WORD_PROBLEMS[5][lang]
    with pytest.raises(ValueError, match="lang is 'fr'"):
        tasks.read_questions("choices.jsonl", "fr")


def test_the_harness_reads_every_task():
    loaded = {task.task_name: task for task in tasks.load(tasks.TASKS)}
    assert list(loaded) == list(tasks.TASKS)
    for task in loaded.values():
        doc = task.eval_docs[0]
        assert task.doc_to_text(doc) and "{{" not in task.doc_to_text(doc)
    problem = WORD_PROBLEMS[0] | {"question": WORD_PROBLEMS[0]["ko"]}
    example = loaded["course_word_problems_ko"].doc_to_target(problem)
    assert example == "3 * 12 = 36. 36 - 10 = 26.\n#### 26"


# --- scores ---------------------------------------------------------------------------------------

def test_scores_of_texts():
    assert tasks.score_number({"answer": "4.5"}, ["That makes 4.50 kg."]) == {"exact_match": 1.0}
    assert tasks.score_number({"answer": "4.5"}, ["I don't know"]) == {"exact_match": 0.0}
    assert tasks.score_choice({"answer": 2}, [" C."]) == {"exact_match": 1.0}
    assert tasks.score_choice({"answer": 2}, ["Rome"]) == {"exact_match": 0.0}
    scores = tasks.score_answer({"answers": ["오슬로"]}, ["수도는 오슬로입니다."])
    assert scores == {"exact_match": 0.0, "contains": 1.0}


@pytest.fixture
def sandbox(monkeypatch):
    """A stand-in for the sandbox, which has its own tests: notes programs, and runs them here (our own)."""
    programs = []

    def run_untrusted(code, timeout, *, check=""):
        programs.append((code, timeout, check))
        return types.SimpleNamespace(passed=run_here(f"{code}\n{check}"), output="", reason="")

    monkeypatch.setattr("course_lib.evaluation.sandbox.run.run_untrusted", run_untrusted)
    return programs


@every_language
def test_code_is_scored_in_the_sandbox(sandbox, lang):
    for doc in tasks.read_questions("tasks/code.jsonl", lang)["test"]:
        block = f"```python\n{doc['prompt']}{doc['solution']}```"
        assert tasks.score_code(doc, [doc["solution"]]) == {"pass@1": 1.0}, doc["id"]
        assert tasks.score_code(doc, [block]) == {"pass@1": 1.0}, doc["id"]
        assert tasks.score_code(doc, [doc["wrong"]]) == {"pass@1": 0.0}, doc["id"]
    assert len(sandbox) == 3 * len(CODE) and all(check.startswith("assert") for _, _, check in sandbox)
    assert not any("assert" in code for code, _, _ in sandbox)


# --- the harness's own tasks ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def manager():
    """The harness's list of our tasks and some of its own: of all it takes seconds to make."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    folders = [own / name for name in (*tasks.OFFICIAL, "mbpp")]
    return lm_eval.tasks.TaskManager(include_path=[*folders, FOLDER / "tasks"], include_defaults=False)


@pytest.fixture
def known(manager, monkeypatch, tmp_path):
    """`load` with that list, and empty caches."""
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: manager)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_official_tasks_are_the_harness_s(manager):
    assert set(tasks.OFFICIAL) <= set(manager.all_tasks)
    for name in tasks.OFFICIAL:
        tasks._check(name, manager)


@pytest.mark.parametrize("name", tasks.OFFICIAL)
def test_without_the_hub_the_task_is_named(known, name):
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError, match=rf"task '{name}' needs .* offline there are course_choices_en"):
        tasks.load([name])
    assert datasets.config.HF_HUB_OFFLINE is before


def test_the_hub_is_asked_by_its_own_client(monkeypatch):
    """Whatever it answers, it can be reached; and where its client is told to stay offline, nobody asks."""
    from huggingface_hub import constants

    asked = []

    def answer(request):
        asked.append(request)
        return types.SimpleNamespace(status_code=503)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert not tasks.hub_reachable()  # tests have no network
    monkeypatch.setattr("huggingface_hub.get_session",
                        lambda: types.SimpleNamespace(head=lambda url, timeout: answer((url, timeout))))
    assert tasks.hub_reachable() and asked == [(constants.ENDPOINT, 5)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not tasks.hub_reachable() and len(asked) == 1


def test_behind_a_proxy_the_proxy_is_asked(monkeypatch):
    from huggingface_hub import close_session

    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = threading.Thread(target=refuse_one, args=(server, requests := []))
        proxy.start()
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        close_session()  # the next one reads the environment anew
        try:
            assert not tasks.hub_reachable()
        finally:
            close_session()
            proxy.join()
    assert requests[0].startswith(b"CONNECT ")


def refuse_one(server, requests):
    """A proxy that notes one request and refuses it."""
    connection, _ = server.accept()
    with connection:
        requests.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def test_unknown_tasks_are_refused_with_the_known_ones(known):
    with pytest.raises(ValueError, match="task 'mmlo' is unknown; there are course_.*from the hub mmlu"):
        tasks.load(["mmlo"])


@pytest.mark.parametrize("name", ["mbpp", "humaneval_instruct", "humaneval_plus"])
def test_tasks_that_execute_code_here_are_refused(known, name):
    with pytest.raises(ValueError, match=f"'{name}' runs generated code in this very process"):
        tasks.load([name])


def test_humaneval_is_ours_and_runs_in_the_sandbox(sandbox, monkeypatch):
    import datasets

    record = {"task_id": "HumanEval/0", "prompt": "def one():\n", "entry_point": "one",
              "canonical_solution": "    return 1\n",
              "test": "def check(candidate):\n    assert candidate() == 1\n"}
    rows = datasets.DatasetDict(test=datasets.Dataset.from_list([record]))
    hub = {"openai/openai_humaneval": rows}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, **_: hub[path])
    monkeypatch.setattr(tasks, "hub_reachable", lambda: True)
    task, = tasks.load(["humaneval"])
    doc = task.eval_docs[0]
    assert not getattr(task, "UNSAFE_CODE", False) and task.doc_to_text(doc) == record["prompt"]
    assert task.process_results(doc, [record["canonical_solution"]]) == {"pass@1": 1.0}
    assert task.process_results(doc, ["    return 2\n"]) == {"pass@1": 0.0}
    assert sandbox[0][2].endswith("check(one)\n")


def test_languages_of_tasks():
    languages = {"course_code_ko": "ko", "mmlu_anatomy": "en", "kmmlu_law": "ko", "gsm8k": "en",
                 "hellaswag": None}
    assert {name: tasks.language(name) for name in languages} == languages
