"""Stored teachers against live ones, in the loss and in training; collected answers against single chats."""
import copy
import json

import pytest
import torch
from datasets import concatenate_datasets, load_from_disk

from course_lib import loading
from course_lib.models.lm_head import DIVERGENCES, Head, head_loss
from course_lib.training import device, teacher_store
from course_lib.training.distill import SupervisedDistillationTrainer
from course_lib.training.samples import LabelledCollator
from course_lib.training.teacher_store import (
    LiveTarget,
    StoredTarget,
    respond_and_collect,
    store_teacher_topk,
)
from tests.training.distill_two_processes import noisy_copy, random_samples

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def logits_of(model, ids):
    return model(ids).logits


# --- a stored teacher: the loss ----------------------------------------------------------------------------

ROWS = 9
VOCABULARY = 31
WIDTH = 8


class Case:
    def __init__(self, sharp=1.0):
        random = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(ROWS, WIDTH, generator=random)
        weight, teacher = sharp * torch.randn(2, VOCABULARY, WIDTH, generator=random)
        self.head = Head(weight.requires_grad_())
        self.teacher = Head(teacher)
        self.targets = torch.randint(VOCABULARY, (ROWS,), generator=random)

    def loss(self, target, kind, tau=2.0):
        return head_loss(self.hidden, self.head, self.targets, teacher=target, temperature=tau, alpha=1.0,
                         divergence=kind)[0]

    def live(self, kind, tau=2.0):
        return self.loss(LiveTarget(self.teacher, self.hidden, tau), kind, tau)

    def stored(self, kind, k, tau=2.0):
        kept = LiveTarget(self.teacher, self.hidden, tau)(slice(None), None).topk(k)
        return self.loss(StoredTarget(kept.indices.int(), kept.values), kind, tau)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_all_tokens_stored_is_the_live_teacher(kind, tau):
    case = Case()
    live = case.live(kind, tau)
    stored = case.stored(kind, VOCABULARY, tau)
    assert stored.item() == pytest.approx(live.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, case.head.weight)[0] for loss in (live, stored)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_fewer_tokens_give_a_lower_bound_that_rises_with_k(kind):
    case = Case()
    # a sum over tokens can only hide differences
    losses = [case.stored(kind, k).item() for k in range(1, VOCABULARY + 1)]
    assert all(fewer <= more + 1e-5 for fewer, more in zip(losses, losses[1:], strict=False))
    assert 0 < losses[0] < 0.9 * losses[-1] and losses[-1] == pytest.approx(case.live(kind).item(), abs=1e-5)


def grouped(logits, targets, tokens, values, kind, tau):
    """The same loss over k + 1 outcomes, the known tokens and "any other", in float64 by autograd."""
    log_q = (logits.double() / tau).log_softmax(-1)
    known = log_q.gather(1, tokens)
    rest = log_q.scatter(1, tokens, float("-inf")).logsumexp(1, keepdim=True)
    mine = torch.cat((known, rest), 1)
    its = torch.cat((values.double(), (1 - values.double().exp().sum(1, keepdim=True)).log()), 1)
    middle = torch.logaddexp(mine, its) - torch.log(torch.tensor(2.0, dtype=torch.float64))

    def kl(p, q):
        return (p.exp() * (p - q)).sum(1).mean()

    parts = {"forward_kl": lambda: kl(its, mine), "reverse_kl": lambda: kl(mine, its),
             "jsd": lambda: (kl(its, middle) + kl(mine, middle)) / 2}
    return tau**2 * parts[kind]()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_what_is_not_stored_counts_as_one_outcome(kind, k):
    case = Case()
    kept = LiveTarget(case.teacher, case.hidden, 2.0)(slice(None), None).topk(k)
    expected = grouped(case.hidden @ case.head.weight.T, case.targets, kept.indices, kept.values, kind, 2.0)
    ours = case.stored(kind, k)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, case.head.weight)[0] for loss in (ours, expected)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5


@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 80.0])
def test_a_student_sure_of_the_stored_tokens_keeps_the_target_a_distribution(margin):
    log_q = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    log_q[:, 3] += margin  # 1 - its probability is 0 in fp32 from about 17 on
    log_q = log_q.log_softmax(-1)
    log_t = StoredTarget(torch.tensor([[3, 7]] * 4), torch.tensor([[0.6, 0.3]] * 4).log())(slice(0, 4), log_q)
    assert log_t.exp().sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-4)
    assert log_t.exp()[:, [3, 7]].flatten().tolist() == pytest.approx([0.6, 0.3] * 4)
    others = torch.ones(20, dtype=torch.bool).index_fill(0, torch.tensor([3, 7]), False)
    ratio = (log_t - log_q)[:, others]
    assert (ratio - ratio[:, :1]).abs().max() < 1e-3  # spread in proportion to the student's


# --- a stored teacher: the dataset -------------------------------------------------------------------------

def fast(model, folder, **settings):
    options = {"bf16": False, "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.01}
    return device.training_arguments(folder, model, **{**options, **settings})


def curve(model, samples, folder, teacher=None, plan=None, **settings):
    trainer = SupervisedDistillationTrainer(copy.deepcopy(model), fast(model, folder, **settings),
                                            teacher=teacher, train_dataset=samples,
                                  **(plan or {}))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_from_the_file_equals_training_with_the_teacher(tiny, tmp_path):
    model = tiny[0]
    samples = random_samples()
    teacher = noisy_copy(model)
    plan = {"divergence": "jsd", "temperature": 3.0}  # the loss itself is compared for each divergence above
    stored = store_teacher_topk(teacher, samples, tmp_path / "all", k=259, temperature=3.0, batch_size=5)
    live = curve(model, samples, tmp_path / "a", teacher, plan)
    assert curve(model, stored, tmp_path / "b", None, plan) == pytest.approx(live, abs=1e-5)
    some = store_teacher_topk(teacher, samples, tmp_path / "some", k=64, temperature=3.0)
    first = curve(model, some, tmp_path / "c", None, plan)[0]
    assert first == pytest.approx(live[0], rel=0.1) and first < live[0]


def test_the_file_holds_the_likeliest_tokens_of_each_labelled_position(tiny, tmp_path):
    teacher = noisy_copy(tiny[0])
    samples = random_samples(7)
    returned = store_teacher_topk(teacher, samples, tmp_path / "deep" / "top", k=5, temperature=1.5,
                                  batch_size=3)
    stored = load_from_disk(tmp_path / "deep" / "top")
    assert returned.to_list() == stored.to_list() and len(stored) == 7
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["top"]
    for before, after in zip(samples, stored, strict=True):
        assert {key: after[key] for key in before} == before
        logits = logits_of(teacher, torch.tensor([before["input_ids"]]))[0]  # alone, without padding
        rows = [place - 1 for place, label in enumerate(before["labels"]) if label != -100 and place > 0]
        expected = (logits[rows] / 1.5).log_softmax(-1).topk(5)
        assert torch.tensor(after["teacher_tokens"]).tolist() == expected.indices.tolist()
        assert (torch.tensor(after["teacher_logprobs"]) - expected.values).abs().max() < 1e-4
        assert after["teacher_temperature"] == 1.5


def test_shuffled_selected_and_filtered_rows_keep_their_teacher(tiny, tmp_path):
    model = tiny[0]
    teacher = noisy_copy(tiny[0])
    stored = store_teacher_topk(teacher, random_samples(), tmp_path / "top", k=259)
    odd = stored.shuffle(seed=3).filter(lambda row: len(row["input_ids"]) % 2).with_format("torch")
    for chosen in (odd, concatenate_datasets([stored.select([9, 2, 2, 5]), stored.select([1])])):
        plain = chosen.with_format(None).select_columns(["input_ids", "labels"])
        live = curve(model, plain, tmp_path / "a", teacher, max_steps=3)
        assert curve(model, chosen, tmp_path / "b", max_steps=3) == pytest.approx(live, abs=1e-4)


def test_samples_without_labels_are_stored_with_no_rows(tiny, tmp_path):
    samples = random_samples(4).map(
        lambda row, index: {"labels": [-100] * len(row["labels"]) if index % 2 else row["labels"]},
        with_indices=True)
    for size in (1, 4):  # a whole batch of them, too
        stored = store_teacher_topk(tiny[0], samples, tmp_path / str(size), k=3, batch_size=size)
        assert [len(rows) > 0 for rows in stored["teacher_tokens"]] == [True, False, True, False]
    batch = LabelledCollator(0)(list(stored))
    labelled = (batch["labels"][:, 1:] != -100).sum()
    assert batch["teacher_tokens"].shape == batch["teacher_logprobs"].shape == (labelled, 3)


def test_evaluation_works_from_the_file(tiny, tmp_path):
    model = tiny[0]
    teacher = noisy_copy(tiny[0])
    stored = store_teacher_topk(teacher, random_samples(6), tmp_path / "top", k=259)
    kinds = {"live": (stored.select_columns(["input_ids", "labels"]), teacher), "stored": (stored, None)}
    found = {name: SupervisedDistillationTrainer(model, fast(model, tmp_path), teacher=its,
                                                 eval_dataset=data).evaluate()["eval_loss"]
             for name, (data, its) in kinds.items()}
    assert found["stored"] == pytest.approx(found["live"], abs=1e-5)


def test_an_interrupted_write_leaves_nothing_and_the_next_one_succeeds(tiny, tmp_path, monkeypatch):
    path = tmp_path / "top"
    collate = LabelledCollator.__call__
    calls = []

    def stops_at_the_third(self, samples):
        calls.append(samples)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collate(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(LabelledCollator, "__call__", stops_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            store_teacher_topk(tiny[0], random_samples(), path, k=3, batch_size=4)
    assert not path.exists()
    assert len(store_teacher_topk(tiny[0], random_samples(), path, k=3, batch_size=4)) == 16
    assert [entry.name for entry in tmp_path.iterdir()] == ["top"]


def test_what_exists_is_not_overwritten(tiny, tmp_path):
    path = tmp_path / "top"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="top' exists; load it with datasets.load_from_disk"):
        store_teacher_topk(tiny[0], random_samples(), path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("settings, words", [
    ({"k": 0}, "k is 0; it must be from 1 to the vocabulary's 259"), ({"k": 260}, "k is 260"),
    ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
])
def test_storage_settings_out_of_range_are_named(tiny, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        store_teacher_topk(tiny[0], random_samples(), tmp_path / "top", **settings)
    with pytest.raises(ValueError, match=r"columns \['labels'\]; tokenize it first"):
        store_teacher_topk(tiny[0], random_samples().select_columns("labels"), tmp_path / "top")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_fit_the_run_is_refused(tiny, tmp_path):
    model = tiny[0]
    stored = store_teacher_topk(noisy_copy(model), random_samples(), tmp_path / "top", k=4, temperature=2.0)
    with pytest.raises(ValueError,
                       match=r"temperature is 3\.0, but the teacher was stored at 2: store it again"):
        curve(model, stored, tmp_path / "a", plan={"temperature": 3.0})
    shorter = stored.map(lambda row: {"labels": [-100] * 8 + row["labels"][8:]})
    with pytest.raises(ValueError, match="labels were changed after store_teacher_topk"):
        curve(model, shorter, tmp_path / "a")
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(ValueError, match="the teacher predicts 259 tokens and the student 300"):
        curve(larger, stored, tmp_path / "a")


# --- respond_and_collect -----------------------------------------------------------------------------------

QUESTIONS = ["What is the capital of France?", "Say hello.",
             "Which is larger, the sun or the moon? Answer in one word."]


@pytest.fixture
def scripted(monkeypatch):
    """Answers without a model: a question's answer is its length; "long" is cut off, "mute" says nothing."""
    asked = []

    def answers(model, tokenizer, questions, max_new_tokens):
        asked.append(list(questions))
        return [("" if question == "mute" else f"답 {len(question)}", question != "long")
                for question in questions]

    monkeypatch.setattr(teacher_store, "_answers", answers)
    return asked


def test_answers_of_a_batch_are_those_of_single_chats(real, tmp_path):
    model, tokenizer = real
    found = respond_and_collect(model, tokenizer, QUESTIONS, tmp_path / "answers.jsonl", max_new_tokens=12,
                                batch_size=3)
    written = [json.loads(line)
               for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["question"] for row in written] == QUESTIONS
    for row in written:
        assert row["answer"] == loading.chat(model, tokenizer, row["question"], max_new_tokens=12)
    assert found.to_list() == [{"question": row["question"], "answer": row["answer"]} for row in written
                               if row["finished"]]
    assert {row["finished"] for row in written} == {True, False}


def test_a_turn_ends_with_any_of_the_models_ends(tiny):
    model, tokenizer = tiny
    expected = model.generate(**tokenizer.apply_chat_template([{"role": "user", "content": "a"}],
                                                              add_generation_prompt=True,
                                                              return_tensors="pt", return_dict=True),
                              do_sample=False, max_new_tokens=6)[0, -6:].tolist()
    assert tokenizer.eos_token_id not in expected
    assert teacher_store._answers(model, tokenizer, ["a"], 6)[0][1] is False
    # as in Gemma, whose turns have their own end
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, expected[2]]
    assert teacher_store._answers(model, tokenizer, ["a"], 6)[0][1] is True


def test_questions_are_asked_once_in_order_and_cut_or_empty_answers_left_out(scripted, tmp_path):
    asked = ["b", "long", "가", "b", "mute", "가", "c"]
    found = respond_and_collect(None, None, asked, tmp_path / "new" / "answers.jsonl", batch_size=2)
    assert scripted == [["b", "long"], ["가", "mute"], ["c"]]
    assert found["question"][:] == ["b", "가", "c"] and found["answer"][:] == ["답 1"] * 3
    assert found.column_names == ["question", "answer"]


def test_an_interrupted_run_goes_on_where_it_stopped(scripted, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    questions = ["a", "mute", "ccc", "dddd", "long",
                 "e"]
    answers = teacher_store._answers

    def stops(*args):
        if len(scripted) == 2:
            raise KeyboardInterrupt
        return answers(*args)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_store, "_answers", stops)
        with pytest.raises(KeyboardInterrupt):
            respond_and_collect(None, None, questions, path, batch_size=2)
    written = path.read_bytes()
    # as a crash leaves it, amid a character
    path.write_bytes(written + '{"question": "long", "answer": "끝이 '.encode()[:-2])
    found = respond_and_collect(None, None, questions, path, batch_size=2)
    assert [question for batch in scripted[2:] for question in batch] == ["mute", "long", "e"]
    assert path.read_bytes().startswith(written)
    assert found["question"][:] == ["a", "ccc", "dddd", "e"]
    scripted.clear()
    assert respond_and_collect(None, None, questions, path, batch_size=2).to_list() == found.to_list()
    assert scripted == [["mute"]]
    assert respond_and_collect(None, None, ["e", "a"], path).to_list() == [found[3], found[0]]


def test_decomposed_korean_is_the_same_question(scripted, tmp_path):
    import unicodedata

    path = tmp_path / "answers.jsonl"
    nfd = unicodedata.normalize("NFD", "한국어로 답해 주세요.")
    first = respond_and_collect(None, None, [nfd], path)
    assert respond_and_collect(None, None, [nfd, "한국어로 답해 주세요."], path).to_list() == first.to_list()
    assert len(scripted) == 1 and len(first) == 1


def test_no_finished_answer_is_an_empty_dataset(scripted, tmp_path):
    found = respond_and_collect(None, None, ["long"], tmp_path / "answers.jsonl")
    assert len(found) == 0 and found.column_names == ["question", "answer"]


@pytest.mark.parametrize("questions, settings, words", [
    ([], {}, "questions is empty"), (["a", " "], {}, "holds an empty question"),
    (["a"], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    (["a"], {"batch_size": 0}, "batch_size is 0"),
])
def test_nothing_to_ask_is_an_error(scripted, tmp_path, questions, settings, words):
    with pytest.raises(ValueError, match=words):
        respond_and_collect(None, None, questions, tmp_path / "answers.jsonl", **settings)
    assert not scripted and not list(tmp_path.iterdir())
