"""Distils the tiny model and writes its loss history: test_distill.py runs it in one process and in two."""
import copy
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from course_lib import loading
from course_lib.training import device, distill


def random_samples(count=16, seed=0):
    """Samples of unequal length; the share of labelled tokens differs as well."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length, prompt = (int(torch.randint(*bounds, (), generator=random)) for bounds in ((8, 24), (1, 6)))
        ids = torch.randint(3, 250, (length,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Dataset.from_list(rows)


def noisy_copy(model, noise=0.05, seed=1):
    """A teacher for the tiny model: the same weights with noise."""
    teacher = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=random))
    return teacher


def run(model_folder, output, batch_size, accumulation):
    model, _ = loading.load(model_folder, "fp32", device="cpu")
    args = device.training_arguments(
        output, model, bf16=False, per_device_train_batch_size=batch_size, max_steps=8, learning_rate=1e-2,
        per_device_eval_batch_size=batch_size, gradient_accumulation_steps=accumulation, logging_steps=2,
        eval_strategy="steps", eval_steps=4)
    trainer = distill.SupervisedDistillationTrainer(
        model, args, teacher=noisy_copy(model), train_dataset=random_samples(),
        eval_dataset=random_samples(8, seed=1))
    trainer.train()
    if trainer.is_world_process_zero():
        history = {"processes": trainer.args.world_size, "log": trainer.state.log_history}
        (Path(output) / "history.json").write_text(json.dumps(history))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
