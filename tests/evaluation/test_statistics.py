"""The bootstrap against its promises: it finds what is there, at the rate that it claims."""
import itertools
import math

import numpy as np
import pytest

from course_lib.evaluation import statistics


def test_equal_models_do_not_differ():
    result = statistics.paired_bootstrap([1, 0, 1, 1], [1, 0, 1, 1])
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_a_clear_difference_is_found():
    rng = np.random.default_rng(0)
    better = rng.random(200) < 0.7
    worse = rng.random(200) < 0.4
    result = statistics.paired_bootstrap(better, worse)
    assert result.low > 0 and result.p_value < 0.001
    assert result.difference == pytest.approx(better.mean() - worse.mean())
    other = statistics.paired_bootstrap(worse, better)
    assert other.high < 0 and other.difference == -result.difference
    assert other.low == pytest.approx(-result.high, abs=0.01)


def test_the_interval_holds_the_truth_at_its_rate():
    """400 pairs of equal models: some 95 % of intervals hold 0, some 5 % of p-values are below 0.05."""
    rng = np.random.default_rng(1)
    pairs = [(rng.random(100) < 0.5, rng.random(100) < 0.5) for _ in range(400)]
    results = [statistics.paired_bootstrap(a, b, samples=1000, seed=run) for run, (a, b) in enumerate(pairs)]
    assert 0.915 < np.mean([result.low <= 0 <= result.high for result in results]) < 0.985
    assert 0.015 < np.mean([result.p_value < 0.05 for result in results]) < 0.085


def test_the_interval_is_the_normal_one_for_many_questions():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 2000))
    result = statistics.paired_bootstrap(a, b)
    error = np.std(a - b, ddof=1) / math.sqrt(2000)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.03)
    assert result.p_value == pytest.approx(math.erfc(abs(result.difference) / error / math.sqrt(2)), abs=0.02)


def test_the_interval_and_the_p_value_are_the_exact_ones_of_a_small_case():
    """Three questions: all 27 ways to draw them, counted."""
    differences = [1, 0.5, -0.25]
    means = np.array([np.mean(drawn) for drawn in itertools.product(differences, repeat=3)])
    result = statistics.paired_bootstrap([1, 1, 0], [0, 0.5, 0.25], samples=20_000, confidence=0.8)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-9)
    centre = np.mean(differences)
    assert result.p_value == pytest.approx(np.mean(np.abs(means - centre) >= centre - 1e-12), abs=0.01)


def test_pairing_cancels_what_is_hard_for_both():
    """The same questions right and wrong, but for eight: below two standard errors, and yet clear."""
    a = [1] * 60 + [0] * 40
    b = [1] * 52 + [0] * 48
    result = statistics.paired_bootstrap(a, b)
    assert 0 < result.low and result.p_value < 0.02
    assert result.difference < 2 * math.sqrt(0.6 * 0.4 / 100 + 0.52 * 0.48 / 100)


def test_the_bootstrap_repeats_itself():
    a = [1, 0, 0, 1, 1, 0]
    b = [0, 0, 1, 1, 0, 0]
    assert statistics.paired_bootstrap(a, b, seed=3) == statistics.paired_bootstrap(a, b, seed=3)
    assert statistics.paired_bootstrap(a, b, confidence=0.5).high < statistics.paired_bootstrap(a, b).high


@pytest.mark.parametrize("a, b, settings, message", [
    ([1], [1, 0], {}, "scores_a has the shape"), ([], [], {}, "scores_a has the shape"),
    ([1], [0], {}, "of which there must be two or more"), ([float("nan"), 1], [1, 1], {}, "rows of numbers"),
    ([1, 0], [0, 0], {"samples": 10}, "samples is 10"), ([1, 0], [0, 0], {"confidence": 1}, "confidence 1"),
])
def test_the_bootstrap_refuses(a, b, settings, message):
    with pytest.raises(ValueError, match=message):
        statistics.paired_bootstrap(a, b, **settings)
