"""The harness against scores computed here; what a table remembers, what is refused."""
import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from course_lib import runtime
from course_lib.evaluation import harness, tasks

pytestmark = pytest.mark.usefixtures("one_thread")
CHOICES, WRITTEN, WORDS, FACTS = ("course_choices_en", "course_choices_written_ko", "course_word_problems_en",
                                  "course_closed_book_ko")


@pytest.fixture(scope="module")
def table(tiny_folder):
    from course_lib import loading

    return harness.evaluate(*loading.load(tiny_folder, "fp32"), [CHOICES, WRITTEN, WORDS, FACTS], limit=6)


def test_a_row_for_each_task_and_metric(table):
    assert tuple(table.columns) == harness.COLUMNS
    assert table[["task", "language", "shots", "metric"]].values.tolist() == [
        [CHOICES, "en", 0, "acc"], [CHOICES, "en", 0, "acc_norm"], [WRITTEN, "ko", 0, "exact_match"],
        [WORDS, "en", 5, "exact_match"], [FACTS, "ko", 5, "exact_match"], [FACTS, "ko", 5, "contains"]]
    assert set(table["questions"]) == {6} and table["value"].between(0, 1).all()


def test_values_and_errors_are_those_of_the_scores(table):
    for row in table.itertuples():
        scores = harness.scores(table, row.task, row.metric)
        assert len(scores) == 6 and row.value == pytest.approx(np.mean(scores))
        assert row.stderr == pytest.approx(np.std(scores, ddof=1) / math.sqrt(6))
    assert harness.scores(table, CHOICES) == harness.scores(table, CHOICES, "acc")


def log_likelihood(model, tokenizer, prompt, continuation):
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + continuation)["input_ids"]
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_choices_are_the_likeliest(table, tiny):
    """Log-likelihoods computed here, without the harness."""
    rows = harness.responses(table)
    for index, doc in enumerate(tasks.read_questions("choices.jsonl", "en")["test"].select(range(6))):
        prompt = f"Question: {doc['question']}\nAnswer:"
        likelihoods = [log_likelihood(*tiny, prompt, f" {choice}") for choice in doc["choices"]]
        lengths = [len(choice) for choice in doc["choices"]]
        for metric, weights in (("acc", [1] * 4), ("acc_norm", lengths)):
            best = int(np.argmax(np.divide(likelihoods, weights)))
            row = rows[(rows["task"] == CHOICES) & (rows["metric"] == metric)].iloc[index]
            assert (row["output"], row["score"]) == (doc["choices"][best], float(best == doc["answer"]))
            assert row["target"] == doc["choices"][doc["answer"]] and row["question"] == doc["id"]


def test_answers_show_what_was_asked_and_written(table):
    rows = harness.responses(table)
    assert list(rows.columns) == ["task", "question", "metric", "score", "output", "target", "prompt"]
    word = rows[rows["task"] == WORDS].iloc[0]
    assert word["prompt"].count("Question:") == 6 and word["prompt"].endswith("\nAnswer:")
    assert word["prompt"].count("\n#### ") == 5 and word["question"] == "word-006"
    fact = rows[rows["task"] == FACTS].iloc[0]
    assert fact["prompt"].startswith("질문: 이탈리아의 수도는 어디입니까?\n정답: 로마\n\n질문: ")


def test_two_runs_are_equal_and_quiet(tiny, capfd):
    model, tokenizer = tiny
    model.train()
    first, second = (harness.evaluate(model, tokenizer, [CHOICES, FACTS], num_fewshot=1, limit=3,
                                      batch_size=2) for _ in range(2))
    assert model.training
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(harness.responses(first), harness.responses(second))
    assert capfd.readouterr() == ("", "") and set(first["shots"]) == {1}


def test_examples_never_hold_the_question_itself(tiny):
    table = harness.evaluate(*tiny, CHOICES, num_fewshot=2, limit=4)
    for row in harness.responses(table).itertuples():
        questions = [part.partition("\nAnswer:")[0] for part in row.prompt.split("Question: ")[1:]]
        assert len(set(questions)) == 3


def test_a_chat_template_makes_turns(tiny):
    rows = harness.responses(harness.evaluate(*tiny, FACTS, num_fewshot=1, limit=1, chat_template=True))
    assert rows["prompt"][0].startswith("<|im_start|>user\n질문: 이탈리아의")
    assert rows["prompt"][0].count("<|im_start|>assistant\n") == 2
    plain = copy.deepcopy(tiny[1])
    plain.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has none"):
        harness.evaluate(tiny[0], plain, FACTS, limit=1, chat_template=True)


def test_a_group_gives_its_total(tiny, monkeypatch, tmp_path):
    """As mmlu, whose subjects are tasks of their own."""
    from lm_eval.tasks import TaskManager

    both = {"group": "both", "task": [CHOICES, "course_choices_ko"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tmp_path / "both.yaml").write_text(json.dumps(both), encoding="utf-8")
    manager = TaskManager(include_path=[runtime.data_dir() / "tasks", tmp_path], include_defaults=False)
    monkeypatch.setattr(tasks, "load", lambda names: list(manager.load(names)["groups"].values()))
    table = harness.evaluate(*tiny, "both", limit=5)
    assert table[["task", "metric", "questions"]].values.tolist() == [["both", "acc", 10]]
    scores = [harness.scores(table, name, "acc") for name in both["task"]]
    assert table["value"][0] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("names, settings, message", [
    ([], {}, "tasks is empty"), (CHOICES, {"limit": 0}, "limit is 0"),
    (CHOICES, {"limit": 0.5}, "limit is 0.5"), (CHOICES, {"num_fewshot": -1}, "num_fewshot is -1"),
    (CHOICES, {"batch_size": 0}, "batch_size is 0"),
    (FACTS, {"num_fewshot": 6}, "num_fewshot is 6, but task 'course_closed_book_ko' has only 5 examples"),
    (CHOICES, {"num_fewshot": 128}, "num_fewshot is 128, but task 'course_choices_en' has only 127 examples"),
])
def test_the_harness_refuses(names, settings, message):
    with pytest.raises(ValueError, match=message):
        harness.evaluate(torch.nn.Linear(1, 1), None, names, **settings)


def test_tables_that_forgot(table):
    assert len(harness.scores(table[table["metric"] == "acc"].round(2), CHOICES)) == 6
    assert pd.concat([table, table]).shape[0] == 2 * len(table)
    with pytest.raises(ValueError, match="remembers no responses"):
        harness.responses(pd.DataFrame({"task": [CHOICES]}))
    with pytest.raises(ValueError, match="task is 'mmlu'; it must be one of course_choices_en"):
        harness.scores(table, "mmlu")
    with pytest.raises(ValueError, match="metric is 'f1'; it must be one of acc, acc_norm"):
        harness.scores(table, CHOICES, "f1")


def test_the_real_model_knows_more_than_chance_in_english(real):
    table = harness.evaluate(*real, CHOICES, limit=32)
    assert table["value"][0] > 0.25 + 2 * table["stderr"][0]
