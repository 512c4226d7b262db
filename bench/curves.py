"""Distillation runs that are too long for lesson 05: KL and loss against training steps.

    python -m bench.curves [STEPS]      writes data/distillation_curves.json (60 steps: five minutes)

The same student is trained on the same texts with labels only, with the teacher only, and with both.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from transformers import TrainerCallback

from course_lib import loading, runtime
from course_lib.data import texts
from course_lib.inference import meters
from course_lib.training import device, distill, samples, students

WAYS = {"labels": (0.0, 1.0), "teacher": (1.0, 1.0), "both": (0.5, 2.0)}  # alpha, temperature
EVERY = 10  # steps between two readings


def path() -> Path:
    """Return the path of the committed readings."""
    return runtime.data_dir() / "distillation_curves.json"


def read() -> dict:
    """Return the committed readings: machine, model, kept layers, and for each way its steps, KL and loss."""
    return json.loads(path().read_text(encoding="utf-8"))


class _Curve(TrainerCallback):
    """Callback that records KL and loss on held-out texts every `EVERY` steps and at the end."""

    def __init__(self, student, teacher, held_out) -> None:
        self.models = (student, teacher)
        self.held_out = held_out
        self.readings = {"step": [], "kl": [], "loss": []}

    def on_step_begin(self, args, state, control, **_) -> None:
        if state.global_step % EVERY == 0:
            self._note(state.global_step)

    def on_train_end(self, args, state, control, **_) -> None:
        self._note(state.global_step)

    def _note(self, step: int) -> None:
        reading = distill.closeness(*self.models, self.held_out)
        for name, value in (("step", step), ("kl", round(reading.kl, 4)), ("loss", round(reading.loss, 4))):
            self.readings[name].append(value)


def main(steps: int = 60) -> None:
    """Run the three ways of training and write the file."""
    runtime.quiet()
    name = runtime.profile().model
    base, tokenizer = loading.load(name, "fp32")
    teacher, _ = loading.load(name, "bf16")
    corpora = {split: texts.load_corpus("en", split) for split in ("train", "test")}
    blocks = samples.cut_into_blocks(samples.tokenize_texts(corpora["train"], tokenizer), 128)
    held_out = samples.tokenize_texts(corpora["test"], tokenizer).select(range(16))
    influence = students.block_influence(base, tokenizer, corpora["train"]["text"][:8])
    kept = sorted(sorted(range(len(influence)), key=lambda layer: -influence[layer])[:len(influence) // 2])
    curves = {}
    for way, (alpha, temperature) in WAYS.items():
        student = students.make_student(base, kept)
        student.get_input_embeddings().weight.requires_grad_(False)
        curve = _Curve(student, teacher, held_out)
        with tempfile.TemporaryDirectory() as folder:
            plan = device.training_arguments(folder, student, max_steps=steps, learning_rate=1e-3,
                                             warmup_steps=2, adam_beta2=0.95, seed=0)
            distill.SupervisedDistillationTrainer(
                student, plan, teacher=teacher, alpha=alpha, temperature=temperature, train_dataset=blocks,
                callbacks=[curve]).train()
        curves[way] = curve.readings
        print(way, curves[way]["kl"], flush=True)
    content = {"machine": meters.machine(), "model": str(name), "layers": kept, "curves": curves}
    runtime.write_json(path(), content)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
