"""Curricula against the paper's formula, up to a Trainer that resumes."""
import math

import pytest
import torch
import transformers
from datasets import Dataset

from course_lib.data import curriculum


def weights(difficulty, step, **options):
    return curriculum.curriculum_weights(difficulty, step, **{"total_steps": 10, **options})


@pytest.mark.parametrize("order", curriculum.ORDERS)
@pytest.mark.parametrize("root", [1, 2, 3.5])
def test_weights_are_a_distribution_that_grows(order, root):
    difficulty = torch.rand(50, generator=torch.Generator().manual_seed(0))
    steps = [weights(difficulty, step, order=order, root=root) for step in range(13)]
    for one in steps:
        assert one.shape == (50,) and (one >= 0).all() and one.sum().item() == pytest.approx(1)
        assert len(one[one > 0].unique()) == 1
    for before, after in zip(steps, steps[1:], strict=False):
        assert ((after > 0) | ~(before > 0)).all()  # what is open stays open
    assert (steps[10] > 0).all() and torch.equal(steps[10], steps[12])
    assert int((steps[0] > 0).sum()) == (50 if order == "random" else 10)


@pytest.mark.parametrize("step", range(11))
@pytest.mark.parametrize("root", [1, 2])
def test_the_open_share_is_the_papers_competence(step, root):
    """Platanios et al. 2019, written out for p = 1 and 2, with T = 10 and c₀ = 0.2."""
    competence = step * (1 - 0.2) / 10 + 0.2 if root == 1 else math.sqrt(step * (1 - 0.2**2) / 10 + 0.2**2)
    is_open = weights(range(1000), step, root=root) > 0
    assert int(is_open.sum()) == math.ceil(round(1000 * competence, 6))
    assert is_open[:int(is_open.sum())].all()


def test_orders_mirror_each_other_and_ties_stay_together():
    difficulty = [5.0, 1.0, 3.0, 1.0, 9.0]
    assert (weights(difficulty, 0) > 0).tolist() == [False, True, False, True, False]
    assert (weights(difficulty, 0, order="hard_to_easy") > 0).tolist() == [False, False, False, False, True]
    assert weights([2.0] * 4, 0).tolist() == [0.25] * 4
    assert torch.equal(weights([-5.0, -1.0, -3.0], 1), weights([5.0, 1.0, 3.0], 1, order="hard_to_easy"))
    assert weights([float("inf"), 1.0], 10).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("arguments, words", [
    (([], 0), "difficulty has shape"), (([[1.0]], 0), "difficulty has shape"),
    (([1.0, math.nan], 0), "1 NaN"),
    (([1.0], -1), "step is -1, .*allowed are step from 0")])
def test_wrong_curricula_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        weights(*arguments)


@pytest.mark.parametrize("options, words", [
    ({"order": "shuffled"}, "order is 'shuffled'"), ({"total_steps": 0}, "total_steps 0"),
    ({"start": 0}, "start 0"),
    ({"start": 1.1}, "start 1.1"), ({"root": 0}, "root 0")])
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        weights([1.0, 2.0], 0, **options)
    with pytest.raises(ValueError, match=words):
        curriculum.CurriculumSampler([1.0, 2.0], 1, **{"total_steps": 3, **options})


def test_the_sampler_draws_what_is_open():
    difficulty = list(range(40))
    sampler = curriculum.CurriculumSampler(difficulty, 4, 20, seed=3)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 80 and drawn == list(sampler)
    assert drawn != list(curriculum.CurriculumSampler(difficulty, 4, 20, seed=4))
    for step in range(20):
        batch = drawn[4 * step:4 * step + 4]
        assert len(set(batch)) == 4 and all(weights(difficulty, step, total_steps=10)[batch] > 0)
    assert max(drawn[:4]) < 8 and max(drawn[40:]) > 36
    slower = list(curriculum.CurriculumSampler(difficulty, 4, 20, open_after=1, root=1))
    assert all(row < 8 + 32 * (place // 4) / 20 + 1 for place, row in enumerate(slower))
    # fewer samples than a batch: some twice
    assert len(list(curriculum.CurriculumSampler([1.0, 2.0], 5, 2))) == 10
    for name, wrong in (("batch_size", 0), ("open_after", 0), ("open_after", 2)):
        with pytest.raises(ValueError, match=f"{name} (is )?{wrong}"):
            curriculum.CurriculumSampler([1.0], **{"batch_size": 1, "total_steps": 2, name: wrong})


def test_the_drawn_loss_is_the_weighted_loss():
    """The mean of what a step draws estimates Σ w_i L_i."""
    loss = torch.arange(20.0)
    weighted = (weights(range(20), 2, total_steps=4) * loss).sum()
    drawn = [list(curriculum.CurriculumSampler(range(20), 5, 8, seed=seed))[10:15] for seed in range(300)]
    assert loss[torch.tensor(drawn)].mean().item() == pytest.approx(weighted.item(), rel=0.05)


class Recorder(transformers.Trainer):
    """As the docstring of CurriculumSampler says; notes which samples each optimizer step saw."""

    sampler = None
    seen = None
    stop = None

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def compute_loss(self, model, inputs, **options):
        row = inputs["input_ids"][:, 0].tolist()
        self.seen.setdefault(self.state.global_step, []).extend(row)
        if len(self.seen) > (self.stop or 99):
            raise KeyboardInterrupt
        return super().compute_loss(model, inputs, **options)


def test_a_trainer_follows_the_curriculum_and_resumes(tiny, tmp_path):
    """Batch 2 × accumulation 2, six steps, killed in the fourth, resumed: the draws of an unbroken run."""
    model, _ = tiny
    dataset = Dataset.from_dict({"input_ids": [[row, 5, 6] for row in range(30)],
                                 "labels": [[row, 5, 6] for row in range(30)]})
    sampler = curriculum.CurriculumSampler(range(30), 4, 6, seed=1)

    def trainer():
        options = transformers.TrainingArguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, save_steps=3,
            report_to=[],
            use_cpu=True, disable_tqdm=True, logging_strategy="no")
        made = Recorder(model, options, train_dataset=dataset)
        made.sampler = sampler
        made.seen = {}
        return made

    drawn = list(sampler)
    expected = {step: drawn[4 * step:4 * step + 4] for step in range(6)}
    whole = trainer()
    whole.train()
    assert whole.seen == expected and whole.state.epoch == 1
    broken = trainer()
    broken.stop = 4
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.seen == {step: expected[step] for step in (3, 4, 5)}
