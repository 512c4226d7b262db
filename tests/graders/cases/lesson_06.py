"""Answers to the exercises of lesson 06."""


def percent(rows, columns, rank, *, scale=100, size=lambda rows, columns, rank: rank * (rows + columns)):
    return scale * size(rows, columns, rank) / (rows * columns)


def token_mean(means, counts):
    """Written as a loop over tokens, unlike the reference solution."""
    tokens = [mean for mean, count in zip(means, counts, strict=True) for _ in range(count)]
    return sum(tokens) / len(tokens)


def best_fit(lengths, capacity, *, decreasing=True, limit=0):
    """Best fit instead of the reference's first fit; `limit` tokens more than allowed."""
    order = range(len(lengths))
    if decreasing:
        order = sorted(order, key=lambda index: -lengths[index])
    rows = []
    for index in order:
        fitting = [row for row in rows if sum(lengths[i] for i in row) + lengths[index] <= capacity + limit]
        if fitting:
            max(fitting, key=lambda row: sum(lengths[i] for i in row)).append(index)
        else:
            rows.append([index])
    return rows


def next_fit(lengths, capacity):
    rows, used = [[]], 0
    for index, length in enumerate(lengths):
        if used + length > capacity:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += length
    return rows


RIGHT = [
    ("06.1", percent),
    ("06.2", token_mean),
    ("06.3", best_fit),
    ("06.3", lambda lengths, capacity: tuple(map(tuple, best_fit(lengths, capacity)))),
]
WRONG = [
    ("06.1", lambda rows, columns, rank: percent(rows, columns, rank, scale=1), "check.06.1"),
    ("06.1", lambda rows, columns, rank: percent(rows, columns, rank, size=lambda n, m, r: 2 * r * n),
     "check.06.1"),
    ("06.1", lambda rows, columns, rank: percent(rows, columns, rank, size=lambda n, m, r: r * n * m),
     "check.06.1"),
    ("06.1", lambda rows, columns, rank: f"{percent(rows, columns, rank)} %", "check.not_a_number"),
    ("06.1", lambda rows, columns, rank: 0.39, "check.06.1"),
    ("06.2", lambda means, counts: sum(means) / len(means), "check.06.2"),
    ("06.2", lambda means, counts: sum(m * n for m, n in zip(means, counts, strict=True)), "check.06.2"),
    ("06.2", lambda means, counts: sum(m * n for m, n in zip(means, counts, strict=True)) / len(counts),
     "check.06.2"),
    ("06.2", lambda means, counts: sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts),
     "check.06.2.empty"),
    ("06.3", lambda lengths, capacity: [[index] for index in range(len(lengths))], "check.06.3.rows"),
    ("06.3", next_fit, "check.06.3.rows"),
    ("06.3", lambda lengths, capacity: best_fit(lengths, capacity, decreasing=False), "check.06.3.rows"),
    ("06.3", lambda lengths, capacity: [*best_fit(lengths, capacity), []], "check.06.3.rows"),
    ("06.3", lambda lengths, capacity: best_fit(lengths, capacity, limit=1), "check.06.3.full"),
    ("06.3", lambda lengths, capacity: [list(range(len(lengths)))], "check.06.3.full"),
    ("06.3", lambda lengths, capacity: best_fit(lengths, capacity)[:1], "check.06.3.once"),
    ("06.3", lambda lengths, capacity: [[lengths[i] for i in row] for row in best_fit(lengths, capacity)],
     "check.06.3.once"),
    ("06.3", lambda lengths, capacity: len(best_fit(lengths, capacity)), "check.06.3.shape"),
    ("06.3", lambda lengths, capacity: [], "check.06.3.shape"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"rows \+ columns|sum\(counts\)|sorted\(|next\(|reverse"
