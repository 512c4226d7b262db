"""Answers to the exercises of lesson 09."""


def limit(bandwidth, weight_bytes, kv_bytes, context, batch, *, caches=lambda batch: batch,
          made=lambda batch: batch):
    """Written as the time of a step, unlike the reference solution."""
    seconds = weight_bytes / bandwidth + kv_bytes * context * caches(batch) / bandwidth
    return made(batch) / seconds


def left_over(p, q, *, norm=True, floor=0.0, equal=True):
    """From what is kept: p minus min(p, q)."""
    left = [max(a - b, floor) for a, b in zip(p, q, strict=True)]
    total = sum(left)
    if total == 0:
        return tuple(p) if equal else left
    return [value / total for value in left] if norm else left


def best(alpha, cost, largest, *, first=0, power=0):
    """Goes on as long as one more token pays; the speed-up has a single peak."""
    def speed(k):
        return sum(alpha**i for i in range(k + 1 - power)) / (1 + cost * k)

    k = first
    while k < largest and speed(k + 1) > speed(k):
        k += 1
    return k


def target_share(p, q):
    return list(p)


RIGHT = [
    ("09.1", limit),
    ("09.2", left_over),
    ("09.3", best),
]
WRONG = [
    ("09.1", lambda *case: limit(*case, caches=lambda batch: 1), "check.09.1"),
    ("09.1", lambda *case: limit(*case, made=lambda batch: 1), "check.09.1"),
    ("09.1", lambda bandwidth, weights, kv, context, batch: bandwidth / weights, "check.09.1"),
    ("09.1", lambda *case: 1 / limit(*case), "check.09.1"),
    ("09.1", lambda *case: str(limit(*case)), "check.not_a_number"),
    ("09.2", target_share, "check.09.2"),
    ("09.2", lambda p, q: left_over(q, p), "check.09.2"),
    ("09.2", lambda p, q: left_over(p, q, norm=False), "check.09.2.sum"),
    ("09.2", lambda p, q: [a - b for a, b in zip(p, q, strict=True)], "check.09.2.negative"),
    ("09.2", lambda p, q: left_over(p, q, equal=False), "check.09.2.equal"),
    ("09.2", lambda p, q: sum(left_over(p, q)), "check.09.2.shape"),
    ("09.2", lambda p, q: [max(0, a - b) / sum(max(0, a - b) for a, b in zip(p, q, strict=True))
                           for a, b in zip(p, q, strict=True)], "check.raised"),
    ("09.3", lambda alpha, cost, largest: largest, "check.09.3"),
    ("09.3", lambda alpha, cost, largest: best(alpha, cost, largest, power=1), "check.09.3"),
    ("09.3", lambda alpha, cost, largest: max(1, best(alpha, cost, largest)), "check.09.3.zero"),
    ("09.3", lambda alpha, cost, largest: float(best(alpha, cost, largest)), "check.09.3.whole"),
    ("09.3", lambda alpha, cost, largest: best(alpha, cost, largest) - 1, "check.09.3"),
    ("09.3", lambda alpha, cost, largest: largest + 1, "check.09.3.range"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"\bmax\(|sum\(left|alpha ?\*\*|weight_bytes \+|batch \*"
