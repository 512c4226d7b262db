"""Answers to the exercises of lesson 03."""
import torch


def mask(queries, keys, window, *, offset=None, extra=0, causal=True):
    """Written with loops, unlike the reference solution; or with one of the usual mistakes."""
    offset = keys - queries if offset is None else offset
    rows = [[(key <= query + offset or not causal) and key > query + offset - window - extra
             for key in range(keys)] for query in range(queries)]
    return torch.tensor(rows)


def balance(logits, k, *, factor=None, hard=False, soft=False, kept=None):
    tokens, experts = logits.shape
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    share = torch.zeros(experts)
    for row in probabilities:
        for index in sorted(range(experts), key=lambda i: -float(row[i]))[:kept or k]:
            share[index] += 1 / tokens
    mean = share if hard else probabilities.mean(0)
    return (experts if factor is None else factor) * ((mean if soft else share) * mean).sum()


RIGHT = [
    ("03.1", lambda layers, heads, dim, gb: int(gb * 1e9 / (2 * layers * heads * dim * 2))),
    ("03.1", lambda layers, heads, dim, gb: gb * 1e9 // (4 * layers * heads * dim)),
    ("03.2", mask),
    ("03.2", lambda queries, keys, window: torch.ones(keys, keys).tril().triu(1 - window)[-queries:].bool()),
    ("03.3", balance),
    ("03.3", lambda logits, k: balance(logits, k).item()),
]
WRONG = [
    ("03.1", lambda layers, heads, dim, gb: gb * 1e9 / (4 * layers * heads * dim), "check.03.1"),
    ("03.1", lambda layers, heads, dim, gb: gb * 1e9 // (2 * layers * heads * dim), "check.03.1"),
    ("03.1", lambda layers, heads, dim, gb: gb * 2**30 // (4 * layers * heads * dim), "check.03.1"),
    ("03.1", lambda layers, heads, dim, gb: gb * 1e9 // (8 * layers * heads * dim), "check.03.1"),
    ("03.1", lambda layers, heads, dim, gb: 2543, "check.03.1"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window, extra=1), "check.03.2.count"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window, extra=-1), "check.03.2.count"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window, offset=0), "check.03.2.count"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window, causal=False), "check.03.2.future"),
    ("03.2", lambda queries, keys, window: ~mask(queries, keys, window), "check.03.2.future"),
    ("03.2", lambda queries, keys, window: mask(keys, keys, window), "check.03.2.shape"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window).float(), "check.03.2.shape"),
    ("03.2", lambda queries, keys, window: mask(queries, keys, window).tolist(), "check.03.2.shape"),
    ("03.3", lambda logits, k: balance(logits, k) / k, "check.03.3.even"),
    ("03.3", lambda logits, k: balance(logits, k, factor=1), "check.03.3.even"),
    ("03.3", lambda logits, k: balance(logits, k, soft=True), "check.03.3.even"),
    ("03.3", lambda logits, k: torch.tensor(float(k)), "check.03.3"),
    ("03.3", lambda logits, k: balance(logits, k, hard=True), "check.03.3.even"),
    ("03.3", lambda logits, k: balance(logits, k, kept=1) * k, "check.03.3"),
    ("03.3", lambda logits, k: balance(logits, k) if k < 3 else float("nan"), "check.03.3"),
    ("03.3", lambda logits, k: logits.softmax(-1), "check.not_a_number"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"4 ?\* ?|// ?|tril|triu|one_hot|topk|softmax|keys ?- ?queries|arange"
