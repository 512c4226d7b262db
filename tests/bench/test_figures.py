"""The whole bench on a tiny model: its file is complete, its tables are printed."""
import json

from bench import figures, training
from tools import notebooks


def test_the_whole_bench_writes_its_file(small, monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(training, "stored_teacher", lambda run=training.stored_teacher: run(2))
    monkeypatch.setattr(training, "fine_tuning", list)  # needs nf4 and real lengths: too slow here
    monkeypatch.setattr(training, "growth", lambda run=training.growth: run((32, 64)))
    figures.write_training_figures()
    written = json.loads((tmp_path / "build" / "bench.json").read_text("utf-8"))
    assert written["machine"] and len(written["ratios"]) == 3 and len(written["growth"]) == 4
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in written["ratios"])
    assert (tmp_path / "build" / "growth.ko.png").stat().st_size > 5000
    assert not list((tmp_path / "build").glob("*.part"))


def test_both_ways_to_score_choices_are_timed(small, capsys):
    figures.choices_figures(questions=2)
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| what | baseline | ours |")
    assert [row.split(" questions")[0] for row in rows] == ["| 2 English", "| 2 Korean"]
