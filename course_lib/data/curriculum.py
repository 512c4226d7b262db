"""Curriculum learning: the order in which a training run sees its samples, by default easy before hard.

Each step draws from the easiest share c(t) of the samples; c(t) grows to 1, where all samples are in use.
Platanios et al. 2019 (arXiv 1903.09848) call c(t) the competence. Built by hand in lesson 04.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ..runtime import check_choice

ORDERS = ("easy_to_hard", "hard_to_easy", "random")


def curriculum_weights(
    difficulty: Sequence[float] | torch.Tensor, step: int, *, total_steps: int, order: str = "easy_to_hard",
    start: float = 0.2, root: float = 2.0,
) -> torch.Tensor:
    """Weights w_i(t) of the training loss Σ w_i(t) L_i at one step: shape (N,), sum 1.

    The share c(t) = min(1, (t/T (1 - c₀^p) + c₀^p)^(1/p)) of the samples is open at step t. Open samples
    share the weight equally; the others have weight 0. Samples tied with the last open one are open too.

    Args:
        difficulty: one number per sample, larger is harder: its loss under the model, or its length.
        step, total_steps: t, from 0, and T: from step T on, all samples are open.
        order: "easy_to_hard", "hard_to_easy", or "random": all samples are open from the start. For a set
            that grows in random order, pass random difficulties (Wu et al. 2021, arXiv 2012.03107).
        start: c₀, the share open at step 0, above 0 and at most 1.
        root: p; 1 opens samples at a constant rate, 2 (the paper's square root) opens more of them early.

    Raises:
        ValueError: an argument is out of range, or a difficulty is NaN.
    """
    check_choice("order", order, ORDERS)
    values = torch.as_tensor(difficulty, dtype=torch.float64)
    if values.ndim != 1 or not len(values) or values.isnan().any():
        raise ValueError(f"difficulty has shape {tuple(values.shape)} and {int(values.isnan().sum())} NaN; "
                         "it must be a non-empty row of numbers")
    if step < 0 or total_steps < 1 or not 0 < start <= 1 or root <= 0:
        raise ValueError(f"step is {step}, total_steps {total_steps}, start {start}, root {root}; allowed "
                         "are step from 0, total_steps from 1, start above 0 to 1, root above 0")
    competence = min(1.0, (step / total_steps * (1 - start**root) + start**root) ** (1 / root))
    if order == "random":
        competence = 1.0
    if order == "hard_to_easy":
        values = -values
    # rounded first: 0.2 of 10 samples must not become 3 by an error of 1e-16
    last_open = values.sort().values[max(1, math.ceil(round(competence * len(values), 9))) - 1]
    is_open = (values <= last_open).float()
    return is_open / is_open.sum()


class CurriculumSampler(Sampler[int]):
    """Draws the samples of each training step by their `curriculum_weights`.

    The mean loss of a drawn batch is an unbiased estimate of Σ w_i(t) L_i. A step draws without replacement
    while enough samples are open. Every iteration draws the same samples, so a resumed `transformers.Trainer`
    continues as if it had never stopped. Override one method, and train for `max_steps=total_steps`:

        class CurriculumTrainer(transformers.Trainer):  # or trl.SFTTrainer, without packing
            def _get_train_sampler(self, train_dataset=None):
                return CurriculumSampler(difficulty, batch_size, total_steps)

    Args:
        batch_size: samples in one optimizer step: batch per device × accumulation steps × processes.
        open_after: share of the run after which all samples are open, above 0 and at most 1.
        difficulty, order, start, root: as in `curriculum_weights`.
    """

    def __init__(
        self, difficulty: Sequence[float] | torch.Tensor, batch_size: int, total_steps: int,
        order: str = "easy_to_hard", *, open_after: float = 0.5, start: float = 0.2, root: float = 2.0,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or total_steps < 1 or not 0 < open_after <= 1:
            raise ValueError(
                f"batch_size is {batch_size}, total_steps {total_steps}, open_after {open_after}; allowed: "
                "batch_size and total_steps from 1, open_after above 0 to 1")
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.seed = seed
        self._options = {"difficulty": torch.as_tensor(difficulty, dtype=torch.float64), "order": order,
                         "start": start, "root": root, "total_steps": math.ceil(open_after * total_steps)}
        curriculum_weights(step=0, **self._options)  # wrong arguments show now, not in the first step

    def __len__(self) -> int:
        return self.batch_size * self.total_steps

    def __iter__(self) -> Iterator[int]:
        # always from the seed: a resumed Trainer skips finished batches, and all processes must draw the same
        generator = torch.Generator().manual_seed(self.seed)
        for step in range(self.total_steps):
            weights = curriculum_weights(step=step, **self._options)
            too_few = int((weights > 0).sum()) < self.batch_size
            drawn = torch.multinomial(weights, self.batch_size, replacement=too_few, generator=generator)
            yield from drawn.tolist()
