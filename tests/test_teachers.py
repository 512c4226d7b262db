"""Cut-out students against the layers they come from, stored teachers against live ones, collected answers against chat."""
import copy
import json

import pytest
import torch
from datasets import concatenate_datasets, load_from_disk
from distill_two_processes import noisy_copy, random_samples

from course_lib import loading, teachers, training
from course_lib.distill import DistillationTrainer
from course_lib.fused_loss import DIVERGENCES, Head, head_loss
from course_lib.teachers import (
    layer_influence,
    live_target,
    make_student,
    respond_and_collect,
    store_teacher_topk,
    stored_target,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# --- make_student ------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": {}, "llama, tied": {"tie_word_embeddings": True}, "smollm3": {"no_rope_layers": [1, 1, 0, 1, 1, 0]}, "mixtral": {},
    "gemma2": {"head_dim": 8, "sliding_window": 3, "layer_types": KINDS * 3},
    "gemma3_text": {"head_dim": 8, "sliding_window": 3, "layer_types": KINDS * 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
}
KEPT = [0, 2, 3, 5]
IDS = torch.randint(3, 40, (2, 11), generator=torch.Generator().manual_seed(0))


def random_model(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split(",")[0], **{**SMALL, **FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits_of(model, ids=IDS):
    return model(ids).logits


def without_layers(model, kept):
    """A second way to drop layers: let the others pass their input through."""
    cut = copy.deepcopy(model)
    for index, layer in enumerate(cut.model.layers):
        if index not in kept:
            layer.forward = lambda hidden, *args, **others: hidden
    return cut


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_computes_what_its_layers_compute_in_the_teacher(family):
    teacher = random_model(family)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = make_student(teacher, KEPT)
    with torch.no_grad():
        expected = without_layers(teacher, KEPT)(IDS, use_cache=False).logits
    assert torch.equal(logits_of(student), expected)
    assert not torch.allclose(logits_of(student), logits_of(teacher), atol=0.1)
    for parameter in student.parameters():  # copies: what the student learns stays with the student
        parameter.data.add_(1)
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    assert teacher.config.num_hidden_layers == 6 == len(teacher.model.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_and_indices_fit_the_new_depth(family):
    teacher = random_model(family)
    student = make_student(teacher, KEPT)
    assert student.config.num_hidden_layers == len(student.model.layers) == 4 and type(student) is type(teacher)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2, 3]
    for name in ("layer_types", "no_rope_layers"):
        if getattr(teacher.config, name, None):
            assert getattr(student.config, name) == [getattr(teacher.config, name)[index] for index in KEPT]
            assert len(getattr(teacher.config, name)) == 6
    tied = [model.lm_head.weight is model.model.embed_tokens.weight for model in (teacher, student)]
    assert tied[0] == tied[1] == bool(teacher.config.tie_word_embeddings)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_kept_is_the_teacher_and_a_saved_student_comes_back(family, tmp_path):
    from transformers import AutoModelForCausalLM

    teacher = random_model(family)
    assert torch.equal(logits_of(make_student(teacher, range(6))), logits_of(teacher))
    student = make_student(teacher, KEPT)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again), logits_of(student)) and again.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", ["llama", "gemma2", "smollm3"])
def test_a_student_generates_the_same_with_and_without_a_cache(family):
    student = make_student(random_model(family), [1, 2, 5])
    cached, plain = (student.generate(IDS, do_sample=False, max_new_tokens=12, use_cache=flag) for flag in (True, False))
    assert cached.shape == (2, 23) and torch.equal(cached, plain)
    out = student(IDS, use_cache=True).past_key_values
    assert len(out.layers) == 3


def test_precision_mode_attention_and_generation_settings_are_kept(tiny_folder):
    model, _ = loading.load(tiny_folder, "bf16", attn="eager")
    model.generation_config.max_new_tokens = 7
    student = make_student(model, [0, 1])
    assert student.dtype == torch.bfloat16 and not student.training and student.config._attn_implementation == "eager"
    assert student.generation_config.max_new_tokens == 7 and student.generation_config is not model.generation_config
    assert torch.equal(logits_of(student), logits_of(model))
    assert make_student(model.train(), [1]).training


@pytest.mark.parametrize("layers", [[], [0, 0], [1, 0], [2], [-1], [0, 5], [0.5]], ids=str)
def test_bad_layer_lists_are_named(tiny, layers):
    with pytest.raises(ValueError, match=r"layers is \[.*\]; it must hold different indices in ascending order, from 0 to 1"):
        make_student(tiny[0], layers)


def test_a_quantized_teacher_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="model is quantized"):
        make_student(loading.load(tiny_folder, "nf4")[0], [0])


def test_half_of_the_real_model(real):
    model, _ = real
    student, layer = make_student(model, range(0, 30, 2)), sum(part.numel() for part in model.model.layers[0].parameters())
    assert student.num_parameters() == model.num_parameters() - 15 * layer
    assert torch.equal(student.model.layers[3].mlp.up_proj.weight, model.model.layers[6].mlp.up_proj.weight)


# --- layer_influence ---------------------------------------------------------------------------------------------

TEXTS = ["Layers differ in what they change.", "층마다 바꾸는 정도가 다르다."]


def test_influence_is_a_mean_over_tokens_of_one_minus_cosine(tiny):
    model, tokenizer = tiny
    total, count = torch.zeros(2), 0
    for text in TEXTS:
        inputs = []
        hooks = [part.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
                 for part in (*model.model.layers, model.model.norm)]  # what leaves the last layer enters the norm
        logits_of(model, tokenizer(text, return_tensors="pt").input_ids)
        for hook in hooks:
            hook.remove()
        for index in range(2):
            before, after = inputs[index][0], inputs[index + 1][0]
            total[index] += (1 - (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)).sum()
        count += len(inputs[0][0])
    assert layer_influence(model, tokenizer, TEXTS) == pytest.approx((total / count).tolist(), abs=1e-5)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_passes_everything_through_has_no_influence(tiny):
    model, tokenizer = tiny
    before = layer_influence(model, tokenizer, TEXTS)
    for matrix in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        matrix.weight.data.mul_(0.1)
    weak = layer_influence(model, tokenizer, TEXTS)
    assert 0 < weak[1] < before[1] and weak[0] == before[0]
    for matrix in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        matrix.weight.data.zero_()
    assert layer_influence(model, tokenizer, TEXTS)[1] == pytest.approx(0, abs=1e-6)


def test_influence_of_the_real_models_layers(real):
    found = layer_influence(*real, TEXTS)
    assert len(found) == 30 and all(0 < value < 2 for value in found)
    assert found[0] > 5 * min(found)


@pytest.mark.parametrize("texts", [[], ["", "a"]], ids=str)
def test_influence_needs_texts(tiny, texts):
    with pytest.raises(ValueError, match="texts is empty or holds an empty text"):
        layer_influence(*tiny, texts)


# --- a stored teacher: the loss ------------------------------------------------------------------------------------

ROWS, VOCABULARY, WIDTH = 9, 31, 8


class Case:
    def __init__(self, sharp=1.0):
        random = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(ROWS, WIDTH, generator=random)
        weight, teacher = sharp * torch.randn(2, VOCABULARY, WIDTH, generator=random)
        self.head, self.teacher = Head(weight.requires_grad_()), Head(teacher)
        self.targets = torch.randint(VOCABULARY, (ROWS,), generator=random)

    def loss(self, target, kind, tau=2.0):
        return head_loss(self.hidden, self.head, self.targets, teacher=target, temperature=tau, alpha=1.0, divergence=kind)[0]

    def live(self, kind, tau=2.0):
        return self.loss(live_target(self.teacher, self.hidden, tau), kind, tau)

    def stored(self, kind, k, tau=2.0):
        kept = live_target(self.teacher, self.hidden, tau)(slice(None), None).topk(k)
        return self.loss(stored_target(kept.indices.int(), kept.values), kind, tau)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_all_tokens_stored_is_the_live_teacher(kind, tau):
    case = Case()
    live, stored = case.live(kind, tau), case.stored(kind, VOCABULARY, tau)
    assert stored.item() == pytest.approx(live.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, case.head.weight)[0] for loss in (live, stored)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_fewer_tokens_give_a_lower_bound_that_rises_with_k(kind):
    case = Case()
    losses = [case.stored(kind, k).item() for k in range(1, VOCABULARY + 1)]  # a sum over tokens can only hide differences
    assert all(fewer <= more + 1e-5 for fewer, more in zip(losses, losses[1:], strict=False))
    assert 0 < losses[0] < 0.9 * losses[-1] and losses[-1] == pytest.approx(case.live(kind).item(), abs=1e-5)


def grouped(logits, targets, tokens, values, kind, tau):
    """The same loss over k + 1 outcomes, the tokens that are known and "any other", in float64 by autograd."""
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
    kept = live_target(case.teacher, case.hidden, 2.0)(slice(None), None).topk(k)
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
    log_t = stored_target(torch.tensor([[3, 7]] * 4), torch.tensor([[0.6, 0.3]] * 4).log())(slice(0, 4), log_q)
    assert log_t.exp().sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-4)
    assert log_t.exp()[:, [3, 7]].flatten().tolist() == pytest.approx([0.6, 0.3] * 4)
    others = torch.ones(20, dtype=torch.bool).index_fill(0, torch.tensor([3, 7]), False)
    ratio = (log_t - log_q)[:, others]
    assert (ratio - ratio[:, :1]).abs().max() < 1e-3  # spread in proportion to the student's


# --- a stored teacher: the dataset -------------------------------------------------------------------------------

def fast(model, folder, **settings):
    options = {"bf16": False, "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.01}
    return training.arguments(folder, model, **{**options, **settings})


def curve(model, samples, folder, teacher=None, plan=None, **settings):
    trainer = DistillationTrainer(copy.deepcopy(model), fast(model, folder, **settings), teacher=teacher, train_dataset=samples,
                                  **(plan or {}))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_training_from_the_file_equals_training_with_the_teacher(tiny, tmp_path, kind):
    model, samples = tiny[0], random_samples()
    teacher, plan = noisy_copy(model), {"divergence": kind, "temperature": 3.0}
    stored = store_teacher_topk(teacher, samples, tmp_path / "all", k=259, temperature=3.0, batch_size=5)
    live = curve(model, samples, tmp_path / "a", teacher, plan)
    assert curve(model, stored, tmp_path / "b", None, plan) == pytest.approx(live, abs=1e-5)
    some = store_teacher_topk(teacher, samples, tmp_path / "some", k=64, temperature=3.0)
    first = curve(model, some, tmp_path / "c", None, plan)[0]
    assert first == pytest.approx(live[0], rel=0.1) and first < live[0]


def test_the_file_holds_the_likeliest_tokens_of_each_labelled_position(tiny, tmp_path):
    teacher, samples = noisy_copy(tiny[0]), random_samples(7)
    returned = store_teacher_topk(teacher, samples, tmp_path / "deep" / "top", k=5, temperature=1.5, batch_size=3)
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
    model, teacher = tiny[0], noisy_copy(tiny[0])
    stored = store_teacher_topk(teacher, random_samples(), tmp_path / "top", k=259)
    for chosen in (stored.shuffle(seed=3), stored.select([9, 2, 2, 5]), stored.filter(lambda row: len(row["input_ids"]) % 2),
                   stored.with_format("torch"), concatenate_datasets([stored, stored.select([1])])):
        plain = chosen.with_format(None).select_columns(["input_ids", "labels"])
        live = curve(model, plain, tmp_path / "a", teacher, max_steps=3)
        assert curve(model, chosen, tmp_path / "b", max_steps=3) == pytest.approx(live, abs=1e-4)


def test_samples_without_labels_are_stored_with_no_rows(tiny, tmp_path):
    samples = random_samples(4).map(lambda row, index: {"labels": [-100] * len(row["labels"]) if index % 2 else row["labels"]},
                                    with_indices=True)
    for size in (1, 4):  # a whole batch of them, too
        stored = store_teacher_topk(tiny[0], samples, tmp_path / str(size), k=3, batch_size=size)
        assert [len(rows) > 0 for rows in stored["teacher_tokens"]] == [True, False, True, False]
    batch = training.LabelledCollator(0)(list(stored))
    assert batch["teacher_tokens"].shape == batch["teacher_logprobs"].shape == ((batch["labels"][:, 1:] != -100).sum(), 3)


def test_evaluation_works_from_the_file(tiny, tmp_path):
    model, teacher = tiny[0], noisy_copy(tiny[0])
    stored = store_teacher_topk(teacher, random_samples(6), tmp_path / "top", k=259)
    kinds = {"live": (stored.select_columns(["input_ids", "labels"]), teacher), "stored": (stored, None)}
    found = {name: DistillationTrainer(model, fast(model, tmp_path), teacher=its, eval_dataset=data).evaluate()["eval_loss"]
             for name, (data, its) in kinds.items()}
    assert found["stored"] == pytest.approx(found["live"], abs=1e-5)


def test_an_interrupted_write_leaves_nothing_and_the_next_one_succeeds(tiny, tmp_path, monkeypatch):
    path, collate, calls = tmp_path / "top", training.LabelledCollator.__call__, []

    def stops_at_the_third(self, samples):
        calls.append(samples)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collate(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(training.LabelledCollator, "__call__", stops_at_the_third)
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
    ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0"), ({"temperature": float("nan")}, "temperature is nan"),
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
    with pytest.raises(ValueError, match=r"temperature is 3\.0, but the teacher was stored at 2: store it again"):
        curve(model, stored, tmp_path / "a", plan={"temperature": 3.0})
    shorter = stored.map(lambda row: {"labels": [-100] * 8 + row["labels"][8:]})
    with pytest.raises(ValueError, match="labels were changed after store_teacher_topk"):
        curve(model, shorter, tmp_path / "a")
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(ValueError, match="the teacher predicts 259 tokens and the student 300"):
        curve(larger, stored, tmp_path / "a")


# --- respond_and_collect -----------------------------------------------------------------------------------------

QUESTIONS = ["What is the capital of France?", "Say hello.", "Which is larger, the sun or the moon? Answer in one word."]


@pytest.fixture
def scripted(monkeypatch):
    """Answers without a model: a question's answer is its length; "long" is cut off, "mute" says nothing."""
    asked = []

    def answers(model, tokenizer, questions, max_new_tokens):
        asked.append(list(questions))
        return [("" if question == "mute" else f"답 {len(question)}", question != "long") for question in questions]

    monkeypatch.setattr(teachers, "_answers", answers)
    return asked


def test_answers_of_a_batch_are_those_of_single_chats(real, tmp_path):
    model, tokenizer = real
    found = respond_and_collect(model, tokenizer, QUESTIONS, tmp_path / "answers.jsonl", max_new_tokens=12, batch_size=3)
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["question"] for row in written] == QUESTIONS
    for row in written:
        assert row["answer"] == loading.chat(model, tokenizer, row["question"], max_new_tokens=12)
    assert found.to_list() == [{"question": row["question"], "answer": row["answer"]} for row in written if row["finished"]]
    assert {row["finished"] for row in written} == {True, False}


def test_a_turn_ends_with_any_of_the_models_ends(tiny):
    model, tokenizer = tiny
    expected = model.generate(**tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True,
                                                              return_tensors="pt", return_dict=True),
                              do_sample=False, max_new_tokens=6)[0, -6:].tolist()
    assert tokenizer.eos_token_id not in expected
    assert teachers._answers(model, tokenizer, ["a"], 6)[0][1] is False
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, expected[2]]  # as in Gemma, whose turns have their own end
    assert teachers._answers(model, tokenizer, ["a"], 6)[0][1] is True


def test_questions_are_asked_once_in_order_and_cut_or_empty_answers_left_out(scripted, tmp_path):
    asked = ["b", "long", "가", "b", "mute", "가", "c"]
    found = respond_and_collect(None, None, asked, tmp_path / "new" / "answers.jsonl", batch_size=2)
    assert scripted == [["b", "long"], ["가", "mute"], ["c"]]
    assert found["question"][:] == ["b", "가", "c"] and found["answer"][:] == ["답 1"] * 3
    assert found.column_names == ["question", "answer"]


def test_an_interrupted_run_goes_on_where_it_stopped(scripted, tmp_path, monkeypatch):
    path, questions, answers = tmp_path / "answers.jsonl", ["a", "mute", "ccc", "dddd", "long", "e"], teachers._answers

    def stops(*args):
        if len(scripted) == 2:
            raise KeyboardInterrupt
        return answers(*args)

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "_answers", stops)
        with pytest.raises(KeyboardInterrupt):
            respond_and_collect(None, None, questions, path, batch_size=2)
    written = path.read_bytes()
    path.write_bytes(written + '{"question": "long", "answer": "끝이 '.encode()[:-2])  # as a crash leaves it, amid a character
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
    (["a"], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"), (["a"], {"batch_size": 0}, "batch_size is 0"),
])
def test_nothing_to_ask_is_an_error(scripted, tmp_path, questions, settings, words):
    with pytest.raises(ValueError, match=words):
        respond_and_collect(None, None, questions, tmp_path / "answers.jsonl", **settings)
    assert not scripted and not list(tmp_path.iterdir())
