"""Graders of lesson 05: entropy at a temperature, soft loss term, KL from a stored teacher."""
from __future__ import annotations

import math

from .cases import judged


def _logits():
    import torch

    return [(torch.tensor(logits), tau) for logits, tau in (
        ([0.0, 0.0, 0.0, 0.0], 1.0), ([2.0, -1.0, 0.5], 1.0), ([2.0, -1.0, 0.5], 4.0), ([3.0, 1.0], 0.5),
        ([1000.0, 998.0, -1000.0], 2.0))]


@judged("05.1", _logits)
def _entropy_at(result, logits, tau):
    log_p = (logits.double() / tau).log_softmax(-1)
    right = -float((log_p.exp() * log_p).sum())
    if isinstance(result, bool) or not isinstance(result, (int, float)):
        return "check.not_a_number", {"type": type(result).__name__}
    fields = {"logits": logits.tolist(), "tau": tau, "result": f"{result:.4g}"}
    if not math.isfinite(result):
        return "check.05.1.finite", fields
    if math.isclose(result, right, rel_tol=1e-4, abs_tol=1e-5):
        return None
    in_bits = math.isclose(result * math.log(2), right, rel_tol=1e-3, abs_tol=1e-5)
    return ("check.05.1.base" if in_bits else "check.05.1"), fields


def _batches():
    import torch

    draw = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 6, 9, generator=draw) for _ in range(2))
    labels = torch.randint(0, 9, (2, 6), generator=draw)
    labels[0, :3] = -100
    labels[1, 4:] = -100
    return [(student, teacher, labels, tau) for tau in (1.0, 3.0)]


@judged("05.2", _batches)
def _soft_term(result, student, teacher, labels, tau):
    import torch

    from ..training.distill import distillation_loss

    def loss(labels, divergence="forward_kl"):
        return float(distillation_loss(student, teacher, labels, temperature=tau, alpha=1.0,
                                       divergence=divergence))

    if not isinstance(result, torch.Tensor) or result.numel() != 1 or result.is_complex():
        return "check.05.2.scalar"
    right = loss(labels)
    mistakes = {"check.05.2.direction": loss(labels, "reverse_kl"), "check.05.2.tau": right / tau**2,
                "check.05.2.mask": loss(torch.zeros_like(labels))}
    value = float(result)
    if math.isclose(value, right, rel_tol=1e-3):
        return None
    keys = (key for key, wrong in mistakes.items() if math.isclose(value, wrong, rel_tol=1e-3))
    return next(keys, "check.05.2"), {"tau": f"{tau:g}", "result": f"{value:.4g}"}


def _stored():
    import torch

    draw = torch.Generator().manual_seed(7)
    log_t, log_q = (torch.randn(3, 8, generator=draw).log_softmax(-1) for _ in range(2))
    tops = [log_t.topk(k) for k in (1, 4, 7)]
    return [(top.indices, top.values, log_q) for top in tops]


@judged("05.3", _stored)
def _stored_kl(result, tokens, log_p, log_q):
    import torch

    if not isinstance(result, torch.Tensor) or result.shape != (3,) or result.is_complex():
        return "check.05.3.shape"
    log_q = log_q.gather(1, tokens)
    rest_p = 1 - log_p.exp().sum(-1)
    rest_q = 1 - log_q.exp().sum(-1)
    known = (log_p.exp() * (log_p - log_q)).sum(-1)
    if torch.allclose(result.float(), known + rest_p * (rest_p.log() - rest_q.log()), atol=1e-4):
        return None
    forgotten = torch.allclose(result.float(), known, atol=1e-4)
    return ("check.05.3.rest" if forgotten else "check.05.3"), {"k": tokens.shape[1]}
