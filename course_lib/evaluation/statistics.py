"""The paired bootstrap: whether a difference between two models is more than chance.

Questions are drawn with replacement many times, always for both models together, so that their shared
difficulty cancels (Koehn 2004, https://aclanthology.org/W04-3250). The interval lies between percentiles of
the drawn differences. For the p-value they are shifted to mean 0, as if the models were equal (Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 16). Shown in lesson 10.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BootstrapResult:
    """The difference of two mean scores over the same questions.

    Attributes:
        difference: mean score of a minus that of b.
        low, high: the confidence interval. If it contains 0, the questions cannot tell the models apart.
        p_value: two-sided probability of a difference at least this large if the models were equal.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    scores_a: Sequence[float], scores_b: Sequence[float], *, samples: int = 10_000, seed: int = 0,
    confidence: float = 0.95,
) -> BootstrapResult:
    """Test whether two models differ, from their scores on the same questions in the same order.

    Raises:
        ValueError: lengths differ, < 2 questions, scores not finite, samples < 100, confidence not in (0, 1).
    """
    import numpy as np
    from scipy.stats import bootstrap

    a = np.asarray(scores_a, dtype=float)
    b = np.asarray(scores_b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2 or not np.isfinite([a, b]).all():
        raise ValueError(f"scores_a has the shape {a.shape}, scores_b {b.shape}; both must be rows of "
                         "numbers, one for each of the same questions, of which there must be two or more")
    if samples < 100 or not 0 < confidence < 1:
        raise ValueError(f"samples is {samples}, confidence {confidence}; allowed are samples from 100, "
                         "confidence between 0 and 1")
    differences = a - b  # drawing pairs of scores equals drawing their differences
    drawn = bootstrap((differences,), np.mean, n_resamples=samples, method="percentile", rng=seed,
                      confidence_level=confidence, batch=max(1, 2**22 // len(a)))  # 32 MiB at a time
    low, high = map(float, drawn.confidence_interval)
    difference = float(differences.mean())
    as_large = np.abs(drawn.bootstrap_distribution - difference) >= abs(difference) - 1e-12
    return BootstrapResult(difference, low, high, float((1 + as_large.sum()) / (1 + samples)))
