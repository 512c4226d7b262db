"""Answers to the exercises of lesson 07."""
import torch


def storage(bits, group_size, scale_bits, zero_bits):
    """All bits of a group over its weights."""
    return (group_size * bits + scale_bits + zero_bits) / group_size


def on_grid(values, bits, *, with_zero=True, levels=None):
    """Through the package's grid, unlike the reference solution; `levels` overrides how many there are."""
    if not any(values):
        return list(values)
    low, high = min(values), max(values)
    if with_zero:
        low, high = min(low, 0), max(high, 0)
    steps = (levels or 2**bits) - 1
    scale = (high - low) / steps
    if not with_zero:
        return [low + round((value - low) / scale) * scale for value in values]
    zero = round(-low / scale)
    return [(min(max(round(value / scale) + zero, 0), steps) - zero) * scale for value in values]


def symmetric(values, bits):
    scale = max(map(abs, values)) / (2 ** (bits - 1) - 1)
    return [round(value / scale) * scale if scale else value for value in values]


def by_table(layers, budget):
    """Dynamic programming over the bits spent, unlike the reference solution's trial of everything."""
    best = {0: (0.0, [])}
    for size, at_4, at_8 in layers:
        new = {}
        for used, (loss, chosen) in best.items():
            for bits, error in ((4, at_4), (8, at_8)):
                total = used + size * bits
                if total <= budget and (total not in new or new[total][0] > loss + error):
                    new[total] = loss + error, [*chosen, bits]
        best = new
    return min(best.values())[1]


def greedy(layers, budget):
    """8 bits where they gain most for the bits, as long as there is room: not always best."""
    chosen, room = [4] * len(layers), budget - 4 * sum(size for size, _, _ in layers)
    for index in sorted(range(len(layers)), key=lambda index: -(layers[index][1] - layers[index][2])):
        if 4 * layers[index][0] <= room:
            chosen[index], room = 8, room - 4 * layers[index][0]
    return chosen


def with_tensor(values, bits):
    return torch.tensor(on_grid(values, bits), dtype=torch.float64)


RIGHT = [
    ("07.1", storage),
    ("07.2", on_grid),
    ("07.2", with_tensor),
    ("07.3", by_table),
    ("07.3", lambda layers, budget: tuple(by_table(layers, budget))),
]
WRONG = [
    ("07.1", lambda bits, group_size, scale_bits, zero_bits: bits + scale_bits / group_size, "check.07.1"),
    ("07.1", lambda bits, group_size, scale_bits, zero_bits: bits, "check.07.1"),
    ("07.1", lambda bits, group_size, scale_bits, zero_bits: 4.5, "check.07.1"),
    ("07.1", lambda bits, group_size, scale_bits, zero_bits: group_size * bits + scale_bits + zero_bits,
     "check.07.1"),
    ("07.2", lambda values, bits: on_grid(values, bits, with_zero=False), "check.07.2"),
    ("07.2", symmetric, "check.07.2"),
    ("07.2", lambda values, bits: on_grid(values, bits, levels=2**bits + 1), "check.07.2"),
    ("07.2", lambda values, bits: list(values), "check.07.2"),
    ("07.2", lambda values, bits: [float("nan")] * len(values) if not any(values) else on_grid(values, bits),
     "check.07.2.zeros"),
    ("07.2", lambda values, bits: on_grid(values, bits)[:-1], "check.07.2.shape"),
    ("07.2", lambda values, bits: str(values), "check.07.2.shape"),
    ("07.2", lambda values, bits: on_grid(values, bits, with_zero=min(values) < 0 < max(values)),
     "check.07.2.range"),
    ("07.2", lambda values, bits: on_grid(values, bits) if max(values) > 2 else on_grid(values, 8),
     "check.07.2"),
    ("07.3", lambda layers, budget: [8] * len(layers), "check.07.3.budget"),
    ("07.3", lambda layers, budget: [4] * len(layers), "check.07.3.better"),
    ("07.3", greedy, "check.07.3.better"),
    ("07.3", lambda layers, budget: by_table(layers, budget)[:1], "check.07.3.shape"),
    ("07.3", lambda layers, budget: [6] * len(layers), "check.07.3.shape"),
    ("07.3", lambda layers, budget: sum(by_table(layers, budget)), "check.07.3.shape"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"scale_bits \+ zero_bits|2 ?\*\* ?bits|round\(|product\(|itertools"
