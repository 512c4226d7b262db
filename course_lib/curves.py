"""Longer distillation runs than a lesson has time for: where the curves of lesson 05 go.

    python -m course_lib.curves [STEPS]      writes data/distillation_curves.json (60 steps: about five minutes on two cores)

The same student, steps and texts three ways: labels only, teacher only, both. The file names the machine.
"""
from __future__ import annotations

import json
import sys
import tempfile
from typing import TYPE_CHECKING

from . import bench, data, loading, runtime, training

if TYPE_CHECKING:
    from pathlib import Path

WAYS = {"labels": (0.0, 1.0), "teacher": (1.0, 1.0), "both": (0.5, 2.0)}  # alpha, temperature
EVERY = 10  # steps between two readings


def path() -> Path:
    """The file with the committed readings."""
    return runtime.data_dir() / "distillation_curves.json"


def read() -> dict:
    """The committed readings: machine, kept layers, and for each way its step, kl and loss."""
    return json.loads(path().read_text(encoding="utf-8"))


def _noted(student, teacher, samples, curve: dict[str, list[float]]):
    """A callback that adds how close the student is to its teacher to `curve`: before the first step and every few."""
    from transformers import TrainerCallback

    from . import distill

    class Noted(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if state.global_step % EVERY == 0:
                self.note(state.global_step)

        def on_train_end(self, args, state, control, **_) -> None:
            self.note(state.global_step)

        def note(self, step: int) -> None:
            reading = distill.closeness(student, teacher, samples)
            for name, value in (("step", step), ("kl", round(reading.kl, 4)), ("loss", round(reading.loss, 4))):
                curve[name].append(value)

    return Noted()


def main(steps: int = 60) -> None:
    """Run all three ways and write the file."""
    runtime.quiet()
    from . import distill

    name = runtime.profile().model
    base, tokenizer = loading.load(name, "fp32")
    teacher, _ = loading.load(name, "bf16")
    samples, held_out = (training.tokenize_texts(data.load_corpus("en", split), tokenizer) for split in ("train", "test"))
    samples, held_out = training.cut_into_blocks(samples, 128), held_out.select(range(16))
    influence = distill.layer_influence(base, tokenizer, data.load_corpus("en", "train")["text"][:8])
    kept = sorted(sorted(range(len(influence)), key=lambda index: -influence[index])[:len(influence) // 2])
    curves = {}
    for way, (alpha, temperature) in WAYS.items():
        student = distill.make_student(base, kept)
        student.get_input_embeddings().weight.requires_grad_(False)
        curve = curves[way] = {"step": [], "kl": [], "loss": []}
        with tempfile.TemporaryDirectory() as folder:
            plan = training.arguments(folder, student, max_steps=steps, learning_rate=1e-3, warmup_steps=2, adam_beta2=0.95,
                                      seed=0)
            trainer = distill.DistillationTrainer(student, plan, teacher=teacher, alpha=alpha, temperature=temperature,
                                                  train_dataset=samples, callbacks=[_noted(student, teacher, held_out, curve)])
            trainer.train()
        print(way, curve["kl"], flush=True)
    found = {"machine": bench.machine(), "model": str(name), "layers": kept, "curves": curves}
    runtime.write_json(path(), found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
