"""The training benchmarks on a tiny model: both sides compute the same, a row is the median of its pairs."""
import pytest
import torch

from bench import training
from course_lib import loading
from course_lib.data import texts
from course_lib.training import students


def test_both_steps_have_the_same_gradients(small, monkeypatch):
    """With every position labelled the two agree: the listing's soft term counts all positions."""
    teacher, _ = loading.load(small, "fp32")
    student = students.make_student(teacher, [1]).train()
    batch = training.random_batch(student, 2, 12)
    batch["labels"] = batch["input_ids"]
    monkeypatch.setattr(training.device, "fast_dtype", lambda device: torch.float32)
    gradients = []
    for step in (training.naive_distillation_step, training.our_distillation_step):
        monkeypatch.setattr(student, "zero_grad", lambda: None)
        step(student, teacher, batch, 2.0, 0.5)
        gradients.append(student.model.layers[0].mlp.up_proj.weight.grad.clone())
        student.model.layers[0].mlp.up_proj.weight.grad = None
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_half_of_the_batch_is_labelled(tiny):
    labels = training.random_batch(tiny[0], 3, 10)["labels"]
    assert labels.shape == (3, 10) and (labels != -100).sum() == 15 and (labels[:, :5] == -100).all()


def test_a_row_is_the_median_of_its_pairs(monkeypatch, capsys):
    slow, fast = iter([9, 4, 6, 10]), iter([9, 2, 2, 2])
    monkeypatch.setattr(training, "PAIRS", 3)
    row = training.compare("x", lambda: next(slow), lambda: next(fast))
    assert (row.baseline, row.ours, row.ratio, row.low, row.high) == (6, 2, 3, 2, 5)
    assert "| x | 6.00 s | 2.00 s | 3.00 | 2.00 to 5.00 |" in capsys.readouterr().out


def test_plain_and_ours_fine_tune_the_same_samples(small, tmp_path):
    questions = texts.load_qa("ko", "train").select(range(8))
    spent, loss = training.plain_sft(questions, str(tmp_path), questions)
    assert spent > 0 and loss == pytest.approx(6, abs=4)
    assert training.our_epoch(questions, "bf16", "lora", 8) > 0
