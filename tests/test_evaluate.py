"""Perplexity against its definition, the harness against scores computed here, the bootstrap against its promises."""
import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from course_lib import evaluate, tasks, training

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = "Small models run on a laptop. They answer in a moment, and nobody else reads along. " * 4
TEXTS = ["The sky is blue.", "물은 섭씨 100도에서 끓습니다.", LONG]
CHOICES, WRITTEN, WORDS, FACTS = ("course_choices_en", "course_choices_written_ko", "course_word_problems_en",
                                  "course_closed_book_ko")


# --- perplexity --------------------------------------------------------------------------------------------------

def token_losses(model, ids, max_length):
    """The loss of each token but the first with as much context as fits, one forward pass a token: no windows."""
    losses = []
    for place in range(1, len(ids)):
        context = ids[max(0, place + 1 - max_length):place]
        with torch.inference_mode():
            logits = model(torch.tensor([context])).logits[0, -1].float()
        losses.append(float(-logits.log_softmax(-1)[ids[place]]))
    return losses


def test_short_texts_are_scored_as_they_are(tiny):
    model, tokenizer = tiny
    found = evaluate.perplexity(model, tokenizer, TEXTS[:2])
    losses = [loss for text in TEXTS[:2] for loss in token_losses(model, tokenizer(text)["input_ids"], 256)]
    assert found.tokens == len(losses) and found.nats == pytest.approx(sum(losses), rel=1e-4)
    assert found.per_token == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_stride_1_gives_every_token_its_full_context(tiny):
    model, tokenizer = tiny
    losses = token_losses(model, tokenizer(LONG)["input_ids"], 32)
    found = evaluate.perplexity(model, tokenizer, LONG, stride=1, max_length=32, batch_size=64)
    assert found.tokens == len(losses) and found.nats == pytest.approx(sum(losses), rel=1e-4)


@pytest.mark.parametrize("stride, max_length", [(1, 2), (1, 16), (7, 16), (15, 16), (50, 100), (300, 400)])
@pytest.mark.parametrize("size", [2, 3, 15, 16, 17, 31, 100, 333])
def test_windows_hold_each_token_once_with_context(size, stride, max_length):
    ids = list(range(1000, 1000 + size))
    windows = list(evaluate._windows(ids, max_length, stride))
    scored = [label for window in windows for label in window["labels"] if label != training.IGNORED]
    assert scored == ids[1:]
    for window in windows:
        assert len(window["input_ids"]) == len(window["labels"]) <= max_length
        assert window["labels"][0] == training.IGNORED  # the loss shifts: what stands first is never predicted


def test_characters_compare_tokenizers(tiny):
    model, tokenizer = tiny
    found = evaluate.perplexity(model, tokenizer, ["abcd", "efg"])
    assert (found.tokens, found.characters) == (5, 5)  # a token a byte; the first has no context
    korean = evaluate.perplexity(model, tokenizer, "물이다")
    assert (korean.tokens, korean.characters) == (8, 2)  # three bytes a syllable
    assert korean.per_character == pytest.approx(korean.per_token ** 4)
    assert korean.bits_per_character == pytest.approx(math.log2(korean.per_character))


def test_a_start_token_lets_every_character_count(tiny):
    model, tokenizer = tiny
    starts = copy.deepcopy(tokenizer)
    from tokenizers.processors import TemplateProcessing
    starts._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    found = evaluate.perplexity(model, starts, "abcd")
    assert (found.tokens, found.characters) == (4, 4)


def test_perplexity_does_not_depend_on_the_batch(tiny):
    model, tokenizer = tiny
    model.train()
    found = [evaluate.perplexity(model, tokenizer, TEXTS, batch_size=size, max_length=64).nats for size in (1, 3)]
    assert found[0] == pytest.approx(found[1], rel=1e-4) and model.training


@pytest.mark.parametrize("texts, settings, message", [
    ([], {}, "texts are 0"), (["a", ""], {}, "texts are 2, and none has two tokens"), (["abc"], {"stride": 0}, "stride 0"),
    (["abc"], {"stride": 16, "max_length": 16}, "stride 16"), (["abc"], {"max_length": 257}, "max_length is 257"),
    (["abc"], {"max_length": 1}, "max_length is 1"), (["abc"], {"batch_size": 0}, "batch_size 0"),
])
def test_perplexity_refuses(tiny, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate.perplexity(*tiny, texts, **settings)


# --- the harness -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def table(tiny_folder):
    from course_lib import loading

    return evaluate.harness(*loading.load(tiny_folder, "fp32"), [CHOICES, WRITTEN, WORDS, FACTS], limit=6)


def test_a_row_for_each_task_and_metric(table):
    assert tuple(table.columns) == evaluate.COLUMNS
    assert table[["task", "language", "shots", "metric"]].values.tolist() == [
        [CHOICES, "en", 0, "acc"], [CHOICES, "en", 0, "acc_norm"], [WRITTEN, "ko", 0, "exact_match"],
        [WORDS, "en", 5, "exact_match"], [FACTS, "ko", 5, "exact_match"], [FACTS, "ko", 5, "contains"]]
    assert set(table["questions"]) == {6} and table["value"].between(0, 1).all()


def test_values_and_errors_are_those_of_the_scores(table):
    for row in table.itertuples():
        found = evaluate.scores(table, row.task, row.metric)
        assert len(found) == 6 and row.value == pytest.approx(np.mean(found))
        assert row.stderr == pytest.approx(np.std(found, ddof=1) / math.sqrt(6))
    assert evaluate.scores(table, CHOICES) == evaluate.scores(table, CHOICES, "acc")


def log_likelihood(model, tokenizer, prompt, continuation):
    start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(prompt + continuation)["input_ids"]
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_choices_are_the_likeliest(table, tiny):
    """Log-likelihoods computed here, without the harness."""
    rows = evaluate.answers(table)
    for index, doc in enumerate(tasks.read("choices.jsonl", "en")["test"].select(range(6))):
        prompt = f"Question: {doc['question']}\nAnswer:"
        likelihoods = [log_likelihood(*tiny, prompt, f" {choice}") for choice in doc["choices"]]
        for metric, weights in (("acc", [1] * 4), ("acc_norm", [len(choice) for choice in doc["choices"]])):
            best = int(np.argmax([value / weight for value, weight in zip(likelihoods, weights, strict=True)]))
            row = rows[(rows["task"] == CHOICES) & (rows["metric"] == metric)].iloc[index]
            assert (row["output"], row["score"]) == (doc["choices"][best], float(best == doc["answer"]))
            assert row["target"] == doc["choices"][doc["answer"]] and row["question"] == doc["id"]


def test_answers_show_what_was_asked_and_written(table):
    rows = evaluate.answers(table)
    assert list(rows.columns) == ["task", "question", "metric", "score", "output", "target", "prompt"]
    word = rows[rows["task"] == WORDS].iloc[0]
    assert word["prompt"].count("Question:") == 6 and word["prompt"].endswith("\nAnswer:")
    assert word["prompt"].count("\n#### ") == 5 and word["question"] == "word-006"
    fact = rows[rows["task"] == FACTS].iloc[0]
    assert fact["prompt"].startswith("질문: 이탈리아의 수도는 어디입니까?\n정답: 로마\n\n질문: ")


def test_two_runs_are_equal_and_quiet(tiny, capfd):
    model, tokenizer = tiny
    model.train()
    first, second = (evaluate.harness(model, tokenizer, [CHOICES, FACTS], num_fewshot=1, limit=3, batch_size=size)
                     for size in (2, 2))
    assert model.training
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(evaluate.answers(first), evaluate.answers(second))
    assert capfd.readouterr() == ("", "") and set(first["shots"]) == {1}


def test_examples_never_hold_the_question_itself(tiny):
    table = evaluate.harness(*tiny, CHOICES, num_fewshot=2, limit=4)
    for row in evaluate.answers(table).itertuples():
        questions = [part.partition("\nAnswer:")[0] for part in row.prompt.split("Question: ")[1:]]
        assert len(set(questions)) == 3


def test_a_chat_template_makes_turns(tiny):
    rows = evaluate.answers(evaluate.harness(*tiny, FACTS, num_fewshot=1, limit=1, chat_template=True))
    assert rows["prompt"][0].startswith("<|im_start|>user\n질문: 이탈리아의")
    assert rows["prompt"][0].count("<|im_start|>assistant\n") == 2
    plain = copy.deepcopy(tiny[1])
    plain.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has none"):
        evaluate.harness(tiny[0], plain, FACTS, limit=1, chat_template=True)


def test_a_group_gives_its_total(tiny, monkeypatch, tmp_path):
    """As mmlu, whose subjects are tasks of their own."""
    from lm_eval.tasks import TaskManager

    both = {"group": "both", "task": [CHOICES, "course_choices_ko"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tmp_path / "both.yaml").write_text(json.dumps(both), encoding="utf-8")
    manager = TaskManager(include_path=[tasks.data_dir() / "tasks", tmp_path], include_defaults=False)
    monkeypatch.setattr(tasks, "load", lambda names: list(manager.load(names)["groups"].values()))
    table = evaluate.harness(*tiny, "both", limit=5)
    assert table[["task", "metric", "questions"]].values.tolist() == [["both", "acc", 10]]
    found = [evaluate.scores(table, name, "acc") for name in both["task"]]
    assert table["value"][0] == pytest.approx(np.mean(found))


@pytest.mark.parametrize("names, settings, message", [
    ([], {}, "tasks is empty"), (CHOICES, {"limit": 0}, "limit is 0"), (CHOICES, {"limit": 0.5}, "limit is 0.5"),
    (CHOICES, {"num_fewshot": -1}, "num_fewshot is -1"), (CHOICES, {"batch_size": 0}, "batch_size is 0"),
    (FACTS, {"num_fewshot": 6}, "num_fewshot is 6, but task 'course_closed_book_ko' has only 5 examples"),
    (CHOICES, {"num_fewshot": 128}, "num_fewshot is 128, but task 'course_choices_en' has only 127 examples"),
])
def test_the_harness_refuses(names, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate.harness(torch.nn.Linear(1, 1), None, names, **settings)


def test_tables_that_forgot(table):
    assert len(evaluate.scores(table[table["metric"] == "acc"].round(2), CHOICES)) == 6
    assert pd.concat([table, table]).shape[0] == 2 * len(table)
    with pytest.raises(ValueError, match="remembers no answers"):
        evaluate.answers(pd.DataFrame({"task": [CHOICES]}))
    with pytest.raises(ValueError, match="task is 'mmlu'; it must be one of course_choices_en"):
        evaluate.scores(table, "mmlu")
    with pytest.raises(ValueError, match="metric is 'f1'; it must be one of acc, acc_norm"):
        evaluate.scores(table, CHOICES, "f1")


def test_the_real_model_knows_more_than_chance_in_english(real):
    table = evaluate.harness(*real, CHOICES, limit=32)
    assert table["value"][0] > 0.25 + 2 * table["stderr"][0]


# --- do two models differ? ---------------------------------------------------------------------------------------

def test_equal_models_do_not_differ():
    found = evaluate.paired_bootstrap([1, 0, 1, 1], [1, 0, 1, 1])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_clear_difference_is_found():
    rng = np.random.default_rng(0)
    better, worse = rng.random(200) < 0.7, rng.random(200) < 0.4
    found = evaluate.paired_bootstrap(better, worse)
    assert found.low > 0 and found.p_value < 0.001 and found.difference == pytest.approx(better.mean() - worse.mean())
    other = evaluate.paired_bootstrap(worse, better)
    assert other.high < 0 and other.difference == -found.difference and other.low == pytest.approx(-found.high, abs=0.01)


def test_the_interval_holds_the_truth_at_its_rate():
    """400 pairs of models that are equally good: some 95 % of the intervals hold 0, some 5 % of the p-values are below 0.05."""
    rng = np.random.default_rng(1)
    pairs = [(rng.random(100) < 0.5, rng.random(100) < 0.5) for _ in range(400)]
    found = [evaluate.paired_bootstrap(a, b, samples=1000, seed=run) for run, (a, b) in enumerate(pairs)]
    assert 0.915 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.985
    assert 0.015 < np.mean([one.p_value < 0.05 for one in found]) < 0.085


def test_the_interval_is_the_normal_one_for_many_questions():
    rng = np.random.default_rng(2)
    a, b = rng.random(2000), rng.random(2000)
    found, error = evaluate.paired_bootstrap(a, b), np.std(a - b, ddof=1) / math.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.03)


def test_pairing_cancels_what_is_hard_for_both():
    """The same questions right and wrong, but for eight: far below two standard errors of either score, and yet clear."""
    a = [1] * 60 + [0] * 40
    b = [1] * 52 + [0] * 48
    found = evaluate.paired_bootstrap(a, b)
    assert 0 < found.low and found.p_value < 0.02
    assert found.difference < 2 * math.sqrt(0.6 * 0.4 / 100 + 0.52 * 0.48 / 100)


def test_the_bootstrap_repeats_itself():
    a, b = [1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]
    assert evaluate.paired_bootstrap(a, b, seed=3) == evaluate.paired_bootstrap(a, b, seed=3)
    assert evaluate.paired_bootstrap(a, b, confidence=0.5).high < evaluate.paired_bootstrap(a, b).high


@pytest.mark.parametrize("a, b, settings, message", [
    ([1], [1, 0], {}, "scores_a has the shape"), ([], [], {}, "scores_a has the shape"),
    ([float("nan")], [1], {}, "rows of numbers"),
    ([1], [0], {"samples": 10}, "samples is 10"), ([1], [0], {"confidence": 1}, "confidence 1"),
])
def test_the_bootstrap_refuses(a, b, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate.paired_bootstrap(a, b, **settings)
