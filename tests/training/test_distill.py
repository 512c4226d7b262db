"""The loss against float64 NumPy and TRL; the Trainer against a loop by hand, and itself in two processes."""
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from course_lib.models.lm_head import DIVERGENCES
from course_lib.training import device
from course_lib.training.distill import SupervisedDistillationTrainer, closeness, distillation_loss
from course_lib.training.samples import LabelledCollator
from tests.training import distill_two_processes
from tests.training.distill_two_processes import noisy_copy, random_samples

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

# --- an independent second implementation: plain NumPy in float64, one position at a time ------------------

def log_softmax(row):
    row = row - row.max()
    return row - np.log(np.exp(row).sum())


def kl(p, q):
    return sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def reference(student, teacher, labels, tau, alpha, kind):
    total = 0.0
    count = 0
    for row, answers in enumerate(labels):
        for position, token in enumerate(answers[1:]):  # logits at a position predict the token after it
            if token == -100:
                continue
            mine = log_softmax(student[row, position] / tau)
            its = log_softmax(teacher[row, position] / tau)
            middle = np.log((np.exp(mine) + np.exp(its)) / 2)
            soft = {"forward_kl": kl(its, mine), "reverse_kl": kl(mine, its),
                    "jsd": (kl(mine, middle) + kl(its, middle)) / 2}
            total += alpha * tau**2 * soft[kind] - (1 - alpha) * log_softmax(student[row, position])[token]
            count += 1
    return total / count


def central_differences(loss, values, step=1e-5):
    grad = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        high = values.copy()
        low = values.copy()
        high[place] += step
        low[place] -= step
        grad[place] = (loss(high) - loss(low)) / (2 * step)
    return grad


def random_case(seed):
    """Logits of both models (B, T, V) in float64 and labels with gaps, of a random shape."""
    random = np.random.default_rng(seed)
    batch = random.integers(1, 4)
    length = random.integers(2, 6)
    vocabulary = random.integers(2, 8)
    student, teacher = random.normal(0, 3, (2, batch, length, vocabulary))
    labels = random.integers(0, vocabulary, (batch, length))
    labels[random.random((batch, length)) < 0.3] = -100
    labels[0, -1] = 0  # at least one
    return student, teacher, labels


def as_tensors(student, teacher, labels, dtype=torch.float32):
    return torch.tensor(student, dtype=dtype,
                        requires_grad=True), torch.tensor(teacher, dtype=dtype), torch.tensor(labels)


# --- distillation_loss -------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-8)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradients_equal_a_float64_reference(seed, dtype, tolerance):
    student, teacher, labels = random_case(seed)
    random = np.random.default_rng(100 + seed)
    for kind in DIVERGENCES:
        tau = random.uniform(0.8, 4)
        alpha = random.choice([0, 1, random.random()])
        ours, fixed, marks = as_tensors(student, teacher, labels, dtype)
        loss = distillation_loss(ours, fixed, marks, temperature=tau, alpha=alpha, divergence=kind)
        loss.backward()

        def expected(values, tau=tau, alpha=alpha, kind=kind):
            return reference(values, teacher, labels, tau, alpha, kind)

        scale = max(1, abs(expected(student)))
        assert loss.dtype == dtype and loss.shape == ()
        assert loss.item() == pytest.approx(expected(student), abs=tolerance * scale)
        assert np.abs(ours.grad.numpy() - central_differences(expected, student)).max() < tolerance * scale


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("tau", [0.5, 1, 7])
def test_the_soft_loss_is_zero_at_the_teacher_and_positive_elsewhere(kind, tau):
    student, teacher, labels = as_tensors(*random_case(3))
    at = distillation_loss(teacher.clone().requires_grad_(), teacher, labels, temperature=tau, alpha=1,
                           divergence=kind)
    assert at.item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(student, teacher, labels, temperature=tau, alpha=1, divergence=kind) > 0.01
    # logits count only up to a constant at each position
    moved = teacher + torch.randn(teacher.shape[:-1])[..., None]
    assert distillation_loss(moved, teacher, labels, temperature=tau, alpha=1, divergence=kind) < 1e-5


def test_forward_and_reverse_swap_roles_and_jsd_is_symmetric_and_bounded():
    student, teacher, labels = as_tensors(*random_case(5))
    settings = {"temperature": 1.0, "alpha": 1.0}

    def loss(one, other, kind):
        return distillation_loss(one, other, labels, divergence=kind, **settings).item()

    assert loss(student, teacher, "forward_kl") == pytest.approx(loss(teacher, student, "reverse_kl"),
                                                                 rel=1e-5)
    assert loss(student, teacher, "jsd") == pytest.approx(loss(teacher, student, "jsd"), rel=1e-5)
    assert loss(100 * student, -100 * student, "jsd") <= np.log(2) + 1e-5


def test_a_model_that_copies_its_input_has_learned_nothing():
    tokens = torch.tensor([[3, 1, 4, 1, 5, 2, 6]])
    sure = 50.0 * torch.nn.functional.one_hot(tokens, 8)
    assert distillation_loss(sure, sure, tokens, alpha=0) > 10  # says what it reads
    ahead = sure.roll(-1, dims=1)  # says what comes next
    assert distillation_loss(ahead, ahead, tokens, alpha=0) < 1e-3
    assert distillation_loss(ahead, sure, tokens, alpha=1) > 10


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_masked_positions_and_padding_count_in_neither_term(kind):
    student, teacher, labels = as_tensors(*random_case(7))
    student = student.detach()
    before = distillation_loss(student, teacher, labels, divergence=kind)
    ignored = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) == -100
    noise = torch.where(ignored[..., None], 10 * torch.randn(student.shape), 0)
    assert distillation_loss(student + noise, teacher - noise, labels, divergence=kind) == before
    rubbish = torch.where(ignored[..., None], torch.nan, 0.0)  # not even NaN passes
    assert distillation_loss(student + rubbish, teacher, labels, divergence=kind) == before

    def padded(tensor, value):
        return torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, 5), value=value)

    wide = distillation_loss(padded(student, 9.0), padded(teacher, -9.0), padded(labels, -100),
                             divergence=kind)
    assert wide.item() == pytest.approx(before.item(), rel=1e-6)
    changed = labels.clone()
    changed[:, 0] = 0  # the first label has no position that predicts it
    assert distillation_loss(student, teacher, changed, divergence=kind) == before


def test_alpha_weighs_the_soft_term_and_every_token_counts_the_same():
    student, teacher, labels = as_tensors(*random_case(11))
    soft, hard = (distillation_loss(student, teacher, labels, alpha=alpha) for alpha in (1.0, 0.0))
    mixed = distillation_loss(student, teacher, labels, alpha=0.3)
    assert mixed.item() == pytest.approx(0.3 * soft.item() + 0.7 * hard.item(), rel=1e-5)
    targets = labels[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    assert hard.item() == pytest.approx(expected.item(), rel=1e-5)


def test_tau_squared_keeps_the_size_of_the_gradient():
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 8, 50, generator=random, dtype=torch.float64)
    labels = torch.zeros(4, 8, dtype=torch.long)
    sizes = []
    for tau in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        distillation_loss(leaf, teacher, labels, temperature=tau, alpha=1.0).backward()
        sizes.append(leaf.grad.norm().item())
    # Hinton et al.: at high τ the gradient is (z - v) / V, whatever τ
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    ours = student - student.mean(-1, keepdim=True)
    theirs = teacher - teacher.mean(-1, keepdim=True)
    limit = (ours - theirs)[:, :-1] / (50 * 4 * 7)
    assert torch.allclose(leaf.grad[:, :-1], limit, rtol=0, atol=0.02 * limit.abs().max().item())


def test_half_precision_logits_are_widened():
    student, teacher, labels = as_tensors(*random_case(13))
    low = distillation_loss(student.bfloat16(), teacher.bfloat16(), labels)
    exact = distillation_loss(student.bfloat16().float(), teacher.bfloat16().float(), labels)
    assert low.dtype == torch.float32 and low == exact


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("kind, beta", [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.5)])
@pytest.mark.parametrize("tau", [0.7, 1.0, 3.0])
def test_the_soft_term_equals_trls(kind, beta, tau):
    from trl.experimental.gkd import GKDTrainer

    student, teacher, labels = as_tensors(*random_case(17))
    theirs = GKDTrainer.generalized_jsd_loss(  # shifts nothing, and leaves τ² out
        student[:, :-1], teacher[:, :-1], labels[:, 1:], beta=beta, temperature=tau)
    ours = distillation_loss(student, teacher, labels, temperature=tau, alpha=1.0, divergence=kind)
    assert ours.item() == pytest.approx(tau**2 * theirs.item(), rel=1e-5)
    assert torch.allclose(*(torch.autograd.grad(loss, student)[0] for loss in (ours, tau**2 * theirs)),
                          atol=1e-6)


@pytest.mark.parametrize("settings, words", [
    ({"temperature": 0}, r"temperature is 0; it must be above 0"),
    ({"temperature": -2.0}, r"temperature is -2\.0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"alpha": -0.1}, r"alpha is -0\.1; it must be from 0 \(labels only\) to 1"),
    ({"alpha": 1.1}, r"alpha is 1\.1"),
    ({"alpha": float("nan")}, "alpha is nan"),
    ({"divergence": "kl"}, "divergence is 'kl'; it must be one of forward_kl"),
])
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        distillation_loss(*as_tensors(*random_case(0)), **settings)


@pytest.mark.parametrize("labels", [[[-100, -100, -100]], [[4, -100, -100]]],
                         ids=["all", "all but the first"])
def test_nothing_to_learn_is_an_error(labels):
    logits = torch.zeros(1, 3, 5)
    with pytest.raises(ValueError, match="labels are -100 at every position that predicts a token"):
        distillation_loss(logits, logits, torch.tensor(labels))


@pytest.mark.parametrize("shapes, words", [
    (((2, 3, 5), (2, 3, 6), (2, 3)), r"teacher predicts 6 tokens and the student 5.*respond_and_collect"),
    (((2, 3, 5), (2, 4, 5), (2, 3)),
     r"student_logits \(2, 3, 5\), teacher_logits \(2, 4, 5\) and labels \(2, 3\) don't fit"),
    (((2, 3, 5), (2, 3, 5), (2, 4)), r"labels \(2, 4\) don't fit"), (((3, 5), (3, 5), (2, 3)), "don't fit"),
])
def test_shapes_that_do_not_fit_are_named(shapes, words):
    student, teacher = (torch.zeros(shape) for shape in shapes[:2])
    with pytest.raises(ValueError, match=words):
        distillation_loss(student, teacher, torch.zeros(shapes[2], dtype=torch.long))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("who, value", [("student_logits", float("nan")), ("teacher_logits", float("inf")),
                                        ("student_logits", float("inf")), ("teacher_logits", float("nan"))])
def test_logits_that_are_no_numbers_are_named(who, value, alpha):
    student, teacher, labels = as_tensors(*random_case(19))
    place = (labels[:, 1:] != -100).nonzero()[0].tolist()
    logits = {"student_logits": student.detach().clone(), "teacher_logits": teacher}
    logits[who][(*place, 1)] = value
    with pytest.raises(ValueError, match=f"{who} hold NaN or infinite values"):
        distillation_loss(**logits, labels=labels, alpha=alpha)


# --- SupervisedDistillationTrainer -------------------------------------------------------------------------

SETTINGS = {"bf16": False, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 0.02,
            "max_steps": 4, "train_sampling_strategy": "sequential"}


@pytest.fixture
def distil(tiny, tmp_path):
    """Trains a copy of the tiny model; returns the trainer."""
    model = tiny[0]

    def train(samples=None, student=None, plan=None, resume=None, **settings):
        student = student or copy.deepcopy(model)
        folder = settings.pop("folder", tmp_path / "run")
        args = device.training_arguments(folder, student, **{**SETTINGS, **settings})
        trainer = SupervisedDistillationTrainer(student, args, train_dataset=samples or random_samples(),
                                                **{"teacher": noisy_copy(model), **(plan or {})})
        trainer.train(resume_from_checkpoint=resume)
        return trainer
    return train


def logged(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close_weights(one, other, tolerance=1e-5):
    for name, value in weights(one).items():
        assert (value - other.state_dict()[name]).abs().max() < tolerance, name


def batches(samples, size, steps):
    count = len(samples)
    for step in range(steps):
        yield LabelledCollator()([samples[index % count] for index in range(step * size, (step + 1) * size)])


def loop_by_hand(student, teacher, samples, optimizer, size, steps, **plan):
    """Training as a textbook writes it, on the full logits of both models."""
    losses = []
    for batch in batches(samples, size, steps):
        labels = batch.pop("labels")
        with torch.no_grad():
            wanted = teacher(**batch).logits
        loss = distillation_loss(student.train()(**batch).logits, wanted, labels, **plan)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optim, plan", [("sgd", {}), ("adamw_torch", {"divergence": "jsd", "alpha": 0.9,
                                                                       "temperature": 3.0}),
                                         ("sgd", {"divergence": "reverse_kl", "alpha": 1.0}),
                                         ("sgd", {"alpha": 0.0})], ids=str)
def test_training_equals_a_loop_by_hand(tiny, distil, optim, plan):
    student = copy.deepcopy(tiny[0])
    samples = random_samples()
    kinds = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}
    rate = {"sgd": 0.02, "adamw_torch": 0.001}[optim]
    expected = loop_by_hand(student, noisy_copy(student), samples,
                            kinds[optim](student.parameters(), lr=rate, weight_decay=0),
                            4, 4, **plan)
    trainer = distil(samples, plan=plan, optim=optim, learning_rate=rate, per_device_train_batch_size=4)
    assert logged(trainer) == pytest.approx(expected, abs=1e-5) and abs(expected[-1] - expected[0]) > 1e-3
    assert_close_weights(trainer.model, student, 1e-4)


def test_accumulation_equals_the_big_batch_though_token_counts_differ(distil):
    big = distil(per_device_train_batch_size=4, optim="sgd")
    small = distil(per_device_train_batch_size=2, gradient_accumulation_steps=2, optim="sgd")
    for key in ("loss", "soft_loss", "hard_loss"):
        assert logged(small, key) == pytest.approx(logged(big, key), abs=1e-5)
    assert_close_weights(small.model, big.model)


@pytest.mark.parametrize("accumulation, steps", [(1, 1), (2, 3)])
def test_the_logged_terms_make_up_the_logged_loss(distil, accumulation, steps):
    trainer = distil(plan={"temperature": 3.0, "alpha": 0.3, "eval_dataset": random_samples(4, seed=1)},
                     max_steps=6,
                     per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
                     logging_steps=steps,
                     eval_strategy="steps", eval_steps=2)
    terms = list(zip(*(logged(trainer, key) for key in ("loss", "soft_loss", "hard_loss")), strict=True))
    assert len(terms) == 6 // steps
    for loss, soft, hard in terms:
        assert loss == pytest.approx(0.3 * 9 * soft + 0.7 * hard, rel=1e-5)


@pytest.mark.parametrize("size", [3, 8])
def test_evaluation_is_a_mean_over_tokens_whatever_the_batches(tiny, distil, size):
    held_out = random_samples(7, seed=2)
    teacher = noisy_copy(tiny[0])
    trainer = distil(plan={"eval_dataset": held_out, "teacher": teacher, "alpha": 0.6}, max_steps=1,
                     per_device_eval_batch_size=size)
    batch = next(batches(held_out, 7, 1))
    labels = batch.pop("labels")
    with torch.no_grad():
        expected = distillation_loss(trainer.model.eval()(**batch).logits, teacher(**batch).logits, labels,
                                     alpha=0.6)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert trainer.evaluate(held_out, metric_key_prefix="again")["again_loss"] == metrics["eval_loss"]
    assert trainer.predict(held_out).metrics["test_loss"] == metrics["eval_loss"]


def test_the_teacher_learns_nothing_and_keeps_its_mode_and_precision(tiny, distil):
    teacher = noisy_copy(tiny[0]).bfloat16().train()
    before = weights(teacher)
    kinds = set()
    teacher.model.layers[0].register_forward_hook(lambda _, inputs,
                                                  output: kinds.add((inputs[0].dtype, output.requires_grad)))
    trainer = distil(plan={"teacher": teacher})
    assert not teacher.training and trainer.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    assert kinds == {(torch.bfloat16, False)} and trainer.model.dtype == torch.float32
    optimizer = torch.optim.AdamW((student := copy.deepcopy(tiny[0])).parameters(), lr=0.02, weight_decay=0)
    assert logged(trainer) == pytest.approx(loop_by_hand(student, teacher, random_samples(), optimizer, 4, 4),
                                            abs=1e-3)


def test_the_students_autocast_does_not_reach_the_teacher(tiny, distil):
    teacher = noisy_copy(tiny[0])
    kinds = []
    teacher.model.layers[0].mlp.register_forward_hook(lambda _, inputs,
                                                      output: kinds.append(("teacher", output.dtype)))
    student = copy.deepcopy(tiny[0])
    student.model.layers[0].mlp.register_forward_hook(lambda _, inputs,
                                                      output: kinds.append(("student", output.dtype)))
    trainer = distil(student=student, plan={"teacher": teacher}, bf16=True)
    assert set(kinds) == {("teacher", torch.float32), ("student", torch.bfloat16)}
    assert logged(trainer) == pytest.approx(logged(distil()), rel=0.03) and student.dtype == torch.float32


def lora_of(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(model),
                          LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_a_lora_student_trains_its_adapters_only(tiny, distil):
    student = lora_of(tiny[0])
    before = weights(student)
    trainer = distil(student=student, max_steps=8, learning_rate=0.003)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora_" in name), name
    assert logged(trainer, "soft_loss")[4] < logged(trainer, "soft_loss")[0]  # the same batch, an epoch later
    by_hand = lora_of(tiny[0])
    optimizer = torch.optim.AdamW([part for part in by_hand.parameters() if part.requires_grad], lr=0.003,
                                  weight_decay=0)
    expected = loop_by_hand(by_hand, noisy_copy(tiny[0]), random_samples(), optimizer, 4, 8)
    assert logged(trainer) == pytest.approx(expected, abs=1e-4)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tiny, distil, tmp_path):
    """With adapters, of which a checkpoint holds nothing else; whole models resume in test_finetune.py."""
    settings = {"train_sampling_strategy": "random", "max_steps": 6, "save_strategy": "steps",
                "save_steps": 3, "logging_steps": 2, "lr_scheduler_type": "linear"}
    whole = distil(student=lora_of(tiny[0]), **settings)
    resumed = distil(student=lora_of(tiny[0]), folder=tmp_path / "other",
                     resume=str(tmp_path / "run" / "checkpoint-3"), **settings)
    assert logged(resumed)[-1] == pytest.approx(logged(whole)[-1], abs=1e-6)
    assert_close_weights(resumed.model, whole.model, 1e-6)


def test_distillation_brings_the_student_close(tiny, distil):
    samples = random_samples()
    teacher = noisy_copy(tiny[0])
    tiny[0].train()
    before = closeness(tiny[0], teacher, samples, batch_size=4)
    assert tiny[0].training and not teacher.training
    trainer = distil(samples, plan={"alpha": 1.0, "teacher": teacher}, max_steps=40, learning_rate=0.003)
    after = closeness(trainer.model, teacher, samples)
    assert after.kl < 0.5 * before.kl and after.agreement > before.agreement
    same = closeness(teacher, teacher, samples)
    assert same.kl == pytest.approx(0, abs=1e-6) and same.agreement == 1


def test_closeness_equals_the_formulas_on_full_logits(tiny, monkeypatch):
    monkeypatch.setattr("course_lib.training.distill.fast_dtype", lambda device: torch.float32)
    student = tiny[0]
    teacher = noisy_copy(tiny[0])
    held_out = random_samples(7, seed=4)
    found = closeness(student, teacher, held_out, batch_size=3)
    batch = next(batches(held_out, 7, 1))
    labels = batch.pop("labels")
    with torch.no_grad():
        mine = student(**batch).logits
        its = teacher(**batch).logits
    assert found.kl == pytest.approx(distillation_loss(mine, its, labels, temperature=1.0, alpha=1.0).item(),
                                     rel=1e-5)
    assert found.loss == pytest.approx(distillation_loss(mine, its, labels, alpha=0.0).item(), rel=1e-5)
    kept = labels[:, 1:] != -100
    assert found.agreement == pytest.approx((mine.argmax(-1)
                                             == its.argmax(-1))[:, :-1][kept].float().mean().item())


# --- errors ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("plan, words", [
    ({"temperature": 0.0}, r"temperature is 0\.0"), ({"alpha": 1.5}, r"alpha is 1\.5"),
    ({"divergence": "kl"}, "divergence is 'kl'"),
    ({"teacher": None}, r"teacher is None, and the dataset holds no stored teacher.*alpha=0"),
    ({"eval_dataset": random_samples().remove_columns("labels")},
     r"columns \['input_ids'\]; tokenize it first"),
    ({"eval_dataset": random_samples().select([])}, "a dataset is empty"),
])
def test_settings_and_datasets_that_do_not_fit_are_named(distil, plan, words):
    with pytest.raises(ValueError, match=words):
        distil(plan=plan)


def test_labels_alone_need_no_teacher(distil):
    alone = distil(plan={"teacher": None, "alpha": 0.0})
    beside = distil(plan={"alpha": 0.0})
    assert logged(alone) == logged(beside) == logged(alone, "hard_loss")
    assert set(logged(alone, "soft_loss")) == {0.0}


def test_another_vocabulary_is_refused(tiny, distil):
    teacher = noisy_copy(tiny[0])
    teacher.resize_token_embeddings(300, mean_resizing=False)
    with pytest.raises(ValueError,
                       match="the teacher predicts 300 tokens and the student 259.*one vocabulary"):
        distil(plan={"teacher": teacher})


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_loss_that_is_no_number_stops_the_run(tiny, distil, who):
    models = {"student": copy.deepcopy(tiny[0]), "teacher": noisy_copy(tiny[0])}
    models[who].model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan: student or teacher gave NaN"):
        distil(student=models["student"], plan={"teacher": models["teacher"]})


def test_a_batch_without_labels_stops_the_run(distil):
    hidden = random_samples().map(
        lambda row, index: {"labels": row["labels"] if index > 5 else [-100] * len(row["labels"])},
        with_indices=True)
    with pytest.raises(ValueError, match="labels are -100 at every position"):
        distil(hidden, per_device_train_batch_size=4)


# --- two processes -----------------------------------------------------------------------------------------

def test_two_processes_equal_one_with_twice_the_batch(tiny_folder, tmp_path):
    accumulation = 2
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    # with --cpu, accelerate 1.15 starts a second process only through MPI; --multi_gpu does on any device
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               "--main_process_port", "0", distill_two_processes.__file__, str(tiny_folder), str(folders[1]),
               "2", str(accumulation)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    distill_two_processes.run(tiny_folder, folders[0], 4, accumulation)
    one, two = (json.loads((folder / "history.json").read_text()) for folder in folders)
    assert (one["processes"], two["processes"]) == (1, 2)
    compared = 0
    for ours, theirs in zip(one["log"], two["log"], strict=True):
        for key in ours.keys() & {"loss", "soft_loss", "hard_loss", "eval_loss", "grad_norm"}:
            assert theirs[key] == pytest.approx(ours[key], abs=1e-3), (key, ours, theirs)
            compared += 1
    assert compared == 4 * 4 + 2
    first, *_, last = (entry["loss"] for entry in one["log"] if "loss" in entry)
    assert abs(first - last) > 0.1
