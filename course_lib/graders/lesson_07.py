"""Graders of lesson 07: bits per weight, rounding a group, bits for each layer within a budget."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from .cases import as_numbers, judged, numeric

Layers = list[tuple[int, float, float]]  # weights, error at 4 bits, error at 8 bits


@numeric("07.1", [(4, 64, 16, 16), (4, 128, 16, 4), (8, 32, 16, 0), (3, 100, 32, 8), (2, 16, 8, 8)])
def _bits_per_weight(bits, group_size, scale_bits, zero_point_bits):
    """Bits per weight, with the weight's share of the group's scale and zero point."""
    return bits + (scale_bits + zero_point_bits) / group_size


@judged("07.2", [
    ([-1.0, -0.2, 0.1, 0.9], 4), ([0.5, 1.0, 2.0, 3.1], 2), ([-3.0, -2.2, -0.7, -0.1], 3),
    ([0.31, -0.62, 0.07, 0.55, -0.18, 0.0], 4), ([0.02, -7.0, 0.03, 0.01], 8), ([0.0, 0.0, 0.0], 4)])
def _round_group(result, values, bits):
    """Expect the values rounded to a grid of 2^bits levels from the smallest to the largest and with 0."""
    rounded = as_numbers(result, len(values))
    if rounded is None:
        return "check.07.2.shape", {"count": len(values)}
    wrong = next((index for index, right in enumerate(_on_grid(values, bits))
                  if not math.isclose(rounded[index], right, rel_tol=1e-4, abs_tol=1e-6)), None)
    if wrong is None:
        return None
    if not any(values) and not all(map(math.isfinite, rounded)):
        return "check.07.2.zeros"
    one_sided = min(values) > 0 or max(values) < 0
    fields = {"value": f"{values[wrong]:g}", "result": f"{rounded[wrong]:.4g}"}
    return ("check.07.2.range" if one_sided else "check.07.2"), fields


def _on_grid(values: list[float], bits: int) -> list[float]:
    low = min(0.0, *values)
    high = max(0.0, *values)
    if low == high:
        return list(values)
    scale = (high - low) / (2**bits - 1)
    zero_point = round(-low / scale)
    codes = [min(max(round(value / scale) + zero_point, 0), 2**bits - 1) for value in values]
    return [(code - zero_point) * scale for code in codes]


@judged("07.3", [
    ([(100, 5.0, 1.0), (100, 2.0, 1.5)], 1200),
    ([(100, 5.0, 1.0), (100, 2.0, 1.5)], 1600),
    ([(300, 6.0, 0.0), (100, 3.0, 0.0), (100, 2.9, 0.0), (100, 2.8, 0.0)], 3600),
    ([(50, 1.0, 0.9), (400, 4.0, 0.1), (200, 3.0, 0.2), (120, 2.0, 1.9), (30, 1.5, 0.0)], 4800),
    ([(10, 1.0, 0.5)] * 3, 120)])
def _choose_bits(result, layers, budget):
    """Expect the smallest total error within the budget of bits, found by trying every combination."""
    chosen = as_numbers(result, len(layers))
    if chosen is None or not set(chosen) <= {4, 8}:
        return "check.07.3.shape", {"count": len(layers)}
    if _size(layers, chosen) > budget:
        return "check.07.3.budget", {"used": f"{_size(layers, chosen):g}"}
    combinations = product((4, 8), repeat=len(layers))
    best = min(_loss(layers, bits) for bits in combinations if _size(layers, bits) <= budget)
    if _loss(layers, chosen) > best + 1e-9:
        return "check.07.3.better", {"loss": f"{_loss(layers, chosen):g}"}
    return None


def _size(layers: Layers, bits: Sequence[float]) -> float:
    return sum(size * layer_bits for (size, _, _), layer_bits in zip(layers, bits, strict=True))


def _loss(layers: Layers, bits: Sequence[float]) -> float:
    return sum(at_4 if layer_bits == 4 else at_8
               for (_, at_4, at_8), layer_bits in zip(layers, bits, strict=True))
