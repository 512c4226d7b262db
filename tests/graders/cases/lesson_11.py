"""Answers to the exercises of lesson 11."""
import torch


def labels(ids, opening, end, *, whole=False, keep_end=True, first_only=False, last_only=False, pad=False,
           user=False):
    """By a search for each opening, unlike the reference solution, which walks through the tokens."""
    marked, place, turns = [-100] * len(ids), 0, []
    while place + len(opening) <= len(ids):
        if ids[place:place + len(opening)] == opening:
            start = place + len(opening)
            stop = ids.index(end, start)
            turns.append((place if whole else start, stop + keep_end))
            place = stop + 1
        else:
            place += 1
    turns = turns[:1] if first_only else turns[-1:] if last_only else turns
    for start, stop in turns:
        marked[start:stop] = ids[start:stop]
    if pad:
        marked[turns[-1][1]:] = ids[turns[-1][1]:]
    if user:
        marked = [token if token == end else label for token, label in zip(ids, marked, strict=True)]
    return marked


def merged(weight, a, b, alpha, *, scale=lambda alpha, rank: alpha / rank):
    """With the product taken column by column, unlike the reference solution."""
    total = weight.double()
    for k in range(len(a)):
        total = total + scale(alpha, len(a)) * torch.outer(b[:, k].double(), a[k].double())
    return total.float().to(weight.dtype)


def low(weight, a, b, alpha):
    return weight + (alpha / len(a) * b @ a).to(weight.dtype)


def in_place(weight, a, b, alpha):
    weight += (alpha / len(a) * b @ a).to(weight.dtype)
    return weight


def stop(losses, patience, *, consecutive=False, at_least=False):
    best, waited = 0, 0
    for place, loss in enumerate(losses[1:], 1):
        better = loss < (losses[place - 1] if consecutive else losses[best])
        if at_least and loss == losses[best]:
            better = True
        best, waited = (place, 0) if better else (best, waited + 1)
        if waited == patience:
            return place, best
    return len(losses) - 1, best


def after_all(losses, patience):
    """Looks at losses that a stopped run would never have seen."""
    return stop(losses, patience)[0], losses.index(min(losses))


def late(losses, patience):
    return stop(losses, patience + 1)


def nan_counts_not(losses, patience):
    """Leaves out evaluations that are nan."""
    kept = [(place, loss) for place, loss in enumerate(losses) if loss == loss]
    last, best = stop([loss for _, loss in kept], patience)
    return (len(losses) - 1 if last == len(kept) - 1 else kept[last][0]), kept[best][0]


RIGHT = [
    ("11.1", labels),
    ("11.1", lambda ids, opening, end: tuple(labels(ids, opening, end))),
    ("11.2", merged),
    ("11.3", stop),
    ("11.3", lambda losses, patience: list(stop(losses, patience))),
]
WRONG = [
    ("11.1", lambda ids, opening, end: list(ids), "check.11.1.prompt"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, whole=True), "check.11.1.prompt"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, user=True), "check.11.1.prompt"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, keep_end=False), "check.11.1.end"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, first_only=True), "check.11.1.missing"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, last_only=True), "check.11.1.missing"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end, pad=True), "check.11.1.padding"),
    ("11.1", lambda ids, opening, end: [0 if label == -100 else label for label in labels(ids, opening, end)],
     "check.11.1.value"),
    ("11.1", lambda ids, opening, end: labels(ids, opening, end)[1:], "check.11.1.shape"),
    ("11.1", lambda ids, opening, end: 3, "check.11.1.shape"),
    ("11.2", lambda weight, a, b, alpha: merged(weight, a, b, alpha, scale=lambda alpha, rank: 1),
     "check.11.2.scale"),
    ("11.2", lambda weight, a, b, alpha: merged(weight, a, b, alpha, scale=lambda alpha, rank: alpha),
     "check.11.2.scale"),
    ("11.2", lambda weight, a, b, alpha: merged(weight, a, b, alpha, scale=lambda alpha, rank: 1 / rank),
     "check.11.2.scale"),
    ("11.2", lambda weight, a, b, alpha: merged(weight, a, -b, alpha), "check.11.2"),
    ("11.2", lambda weight, a, b, alpha: alpha / len(a) * b @ a, "check.11.2"),
    ("11.2", lambda weight, a, b, alpha: b @ a @ weight.T, "check.11.2.shape"),
    ("11.2", lambda weight, a, b, alpha: merged(weight, a, b, alpha).tolist(), "check.11.2.shape"),
    ("11.2", in_place, "check.11.2.in_place"),
    ("11.2", lambda weight, a, b, alpha: weight + alpha / len(a) * b @ a, "check.11.2.dtype"),
    ("11.2", low, "check.11.2.rounding"),
    ("11.3", lambda losses, patience: stop(losses, patience, consecutive=True), "check.11.3.stop"),
    ("11.3", lambda losses, patience: stop(losses, patience, at_least=True), "check.11.3.stop"),
    ("11.3", late, "check.11.3.stop"),
    ("11.3", lambda losses, patience: (len(losses) - 1, losses.index(min(losses))), "check.11.3.stop"),
    ("11.3", after_all, "check.11.3.best"),
    ("11.3", lambda losses, patience: (stop(losses, patience)[0],) * 2, "check.11.3.best"),
    ("11.3", lambda losses, patience: tuple(x + 1 for x in stop(losses, patience)), "check.11.3.stop"),
    ("11.3", nan_counts_not, "check.11.3.nan"),
    ("11.3", lambda losses, patience: stop(losses, patience)[1], "check.11.3.shape"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"alpha ?/ ?len|B @ A|\.float\(\)|place - best|append\("
