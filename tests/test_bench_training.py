"""The training benchmarks on a tiny model: both sides compute the same, the table and the file are whole."""
import json
from dataclasses import replace

import pytest
import torch

from course_lib import bench, bench_training, curves, data, distill, lessons, runtime


@pytest.fixture
def small(monkeypatch, tiny_folder):
    """The benchmarks with the tiny model, short texts and one pair."""
    monkeypatch.setattr(runtime, "profile", lambda: replace(runtime.PROFILES["cpu"], model=tiny_folder))
    monkeypatch.setattr(bench_training, "PAIRS", 1)
    short = data.load_qa("en", "validation").map(lambda row: {"question": row["question"][:20], "answer": row["answer"][:20]})
    monkeypatch.setattr(data, "load_qa", lambda lang, split: short)
    texts = data.load_corpus("en", "test").map(lambda row: {"text": row["text"][:150]})
    monkeypatch.setattr(data, "load_corpus", lambda lang, split="train": texts)
    return tiny_folder


def test_both_steps_have_the_same_gradients(small, monkeypatch):
    """With every position labelled the two definitions agree: the listing's soft term counts all positions."""
    from course_lib import loading

    teacher, _ = loading.load(small, "fp32")
    student = distill.make_student(teacher, [1]).train()
    batch = bench_training.random_batch(student, 2, 12)
    batch["labels"] = batch["input_ids"]
    monkeypatch.setattr(bench_training.training, "fast_dtype", lambda device: torch.float32)
    gradients = []
    for step in (bench_training.naive_distillation_step, bench_training.our_distillation_step):
        monkeypatch.setattr(student, "zero_grad", lambda: None)
        step(student, teacher, batch, 2.0, 0.5)
        gradients.append(student.model.layers[0].mlp.up_proj.weight.grad.clone())
        student.model.layers[0].mlp.up_proj.weight.grad = None
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_half_of_the_batch_is_labelled(tiny):
    labels = bench_training.random_batch(tiny[0], 3, 10)["labels"]
    assert labels.shape == (3, 10) and (labels != -100).sum() == 15 and (labels[:, :5] == -100).all()


def test_a_row_is_the_median_of_its_pairs(monkeypatch, capsys):
    slow, fast = iter([9, 4, 6, 10]), iter([9, 2, 2, 2])
    monkeypatch.setattr(bench_training, "PAIRS", 3)
    row = bench_training.compare("x", lambda: next(slow), lambda: next(fast))
    assert (row.baseline, row.ours, row.ratio, row.low, row.high) == (6, 2, 3, 2, 5)
    assert "| x | 6.00 s | 2.00 s | 3.00 | 2.00 to 5.00 |" in capsys.readouterr().out


def test_the_whole_bench_writes_its_file(small, monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "ROOT", tmp_path)
    monkeypatch.setattr(bench_training, "stored_teacher", lambda run=bench_training.stored_teacher: run(2))
    monkeypatch.setattr(bench_training, "fine_tuning", list)  # needs nf4 and real lengths: too slow here
    monkeypatch.setattr(bench_training, "growth", lambda run=bench_training.growth: run((32, 64)))
    bench.write_training_figures()
    figures = json.loads((tmp_path / "build" / "bench.json").read_text("utf-8"))
    assert figures["machine"] and len(figures["ratios"]) == 3 and len(figures["growth"]) == 4
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in figures["ratios"])
    assert (tmp_path / "build" / "growth.ko.png").stat().st_size > 5000
    assert not list((tmp_path / "build").glob("*.part"))


def test_plain_and_ours_fine_tune_the_same_samples(small, tmp_path):
    questions = data.load_qa("ko", "train").select(range(8))
    spent, loss = bench_training.plain_sft(questions, str(tmp_path), questions)
    assert spent > 0 and loss == pytest.approx(6, abs=4)
    assert bench_training.our_epoch(questions, "bf16", "lora", 8) > 0


def test_both_ways_to_score_choices_are_timed(small, capsys):
    bench.choices_figures(questions=2)
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| what | baseline | ours |")
    assert [row.split(" questions")[0] for row in rows] == ["| 2 English", "| 2 Korean"]


def test_the_curves_have_a_reading_every_ten_steps_and_the_last(small, monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "path", lambda: tmp_path / "curves.json")
    curves.main(12)
    found = curves.read()
    assert set(found["curves"]) == {"labels", "teacher", "both"}
    assert all(curve["step"] == [0, 10, 12] for curve in found["curves"].values())
    assert len({curve["kl"][0] for curve in found["curves"].values()}) == 1, "all start from the same student"


def test_the_committed_curves_are_measured_ones():
    found = curves.read()
    assert "cores" in found["machine"] and found["curves"]["teacher"]["kl"][-1] < found["curves"]["labels"]["kl"][-1]
