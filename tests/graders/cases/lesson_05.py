"""Answers to the exercises of lesson 05."""
import math

import torch
import torch.nn.functional as F


def entropy_at(logits, tau, *, base=math.e, power=1):
    """With numbers of Python, unlike the reference solution."""
    scaled = [float(value) / tau**power for value in logits]
    largest = max(scaled)
    weights = [math.exp(value - largest) for value in scaled]
    shares = [weight / sum(weights) for weight in weights]
    return -sum(share * math.log(share, base) for share in shares if share > 0)


def naive_entropy(logits, tau):
    p = (logits / tau).exp()
    p = p / p.sum()
    return float(-(p * p.log()).sum())


def soft_term(student, teacher, labels, tau, *, reverse=False, scale=True, mask=True, shift=True,
              reduction="mean"):
    """A loop over positions, unlike the reference solution; the flags are the usual mistakes."""
    values = []
    for row in range(labels.shape[0]):
        for t in range(labels.shape[1] - (1 if shift else 0)):
            if mask and labels[row, t + 1 if shift else t] == -100:
                continue
            q, p = student[row, t] / tau, teacher[row, t] / tau
            q, p = (p, q) if reverse else (q, p)
            values.append(F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum"))
    total = torch.stack(values).sum() * (tau**2 if scale else 1)
    return total / (len(values) if reduction == "mean" else labels.shape[0])


def stored_kl(tokens, log_p, log_q, *, rest=True):
    out = []
    for row in range(len(tokens)):
        pairs = zip(log_p[row].tolist(), log_q[row, tokens[row]].tolist(), strict=True)
        known = sum(math.exp(p) * (p - q) for p, q in pairs)
        left_p = 1 - sum(math.exp(p) for p in log_p[row].tolist())
        left_q = 1 - sum(math.exp(float(log_q[row, token])) for token in tokens[row])
        out.append(known + (left_p * math.log(left_p / left_q) if rest else 0))
    return torch.tensor(out)


RIGHT = [
    ("05.1", entropy_at),
    ("05.2", soft_term),
    ("05.2", lambda s, t, labels, tau: soft_term(s.double(), t.double(), labels, tau)),
    ("05.3", stored_kl),
]
WRONG = [
    ("05.1", lambda logits, tau: entropy_at(logits, 1.0), "check.05.1"),
    ("05.1", lambda logits, tau: entropy_at(logits, tau, power=-1), "check.05.1"),
    ("05.1", lambda logits, tau: -entropy_at(logits, tau), "check.05.1"),
    ("05.1", lambda logits, tau: entropy_at(logits, tau, base=2), "check.05.1.base"),
    ("05.1", naive_entropy, "check.05.1.finite"),
    ("05.1", lambda logits, tau: torch.tensor(1.0), "check.not_a_number"),
    ("05.2", lambda *a: soft_term(*a, reverse=True), "check.05.2.direction"),
    ("05.2", lambda *a: soft_term(*a, mask=False), "check.05.2.mask"),
    ("05.2", lambda *a: soft_term(*a, reduction="batchmean"), "check.05.2"),
    ("05.2", lambda *a: soft_term(*a, shift=False), "check.05.2"),
    ("05.2", lambda s, t, labels, tau: soft_term(s, t, labels, tau, scale=False) * (1 if tau > 1 else 1),
     "check.05.2.tau"),
    ("05.2", lambda s, t, labels, tau: s, "check.05.2.scalar"),
    ("05.3", lambda *a: stored_kl(*a, rest=False), "check.05.3.rest"),
    ("05.3", lambda tokens, log_p, log_q: stored_kl(tokens, log_p, log_q) * 2, "check.05.3"),
    ("05.3", lambda tokens, log_p, log_q: stored_kl(tokens, log_p, log_q).sum(), "check.05.3.shape"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"log_softmax|gather\(|\.mean\(|1 ?- ?|\[:, :-1\]|exp\(\)"
