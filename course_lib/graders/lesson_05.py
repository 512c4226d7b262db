"""Graders of lesson 05: entropy at a temperature, the soft term, a stored teacher."""
from __future__ import annotations

import math

from .grading import Hint, call, grader


@grader("05.1")
def _entropy_at(answer: object) -> Hint:
    import torch

    for logits, tau in (([0.0, 0.0, 0.0, 0.0], 1.0), ([2.0, -1.0, 0.5], 1.0), ([2.0, -1.0, 0.5], 4.0), ([3.0, 1.0], 0.5),
                        ([1000.0, 998.0, -1000.0], 2.0)):
        log_p = (torch.tensor(logits, dtype=torch.float64) / tau).log_softmax(-1)
        right = -float((log_p.exp() * log_p).sum())
        result, hint = call(answer, torch.tensor(logits), tau)
        if hint:
            return hint
        if isinstance(result, bool) or not isinstance(result, (int, float)):
            return "check.not_a_number", {"type": type(result).__name__}
        if not math.isfinite(result):
            return "check.05.1.finite", {"logits": logits, "tau": tau}
        if not math.isclose(result, right, rel_tol=1e-4, abs_tol=1e-5):
            key = "check.05.1.base" if math.isclose(result * math.log(2), right, rel_tol=1e-3, abs_tol=1e-5) else "check.05.1"
            return key, {"logits": logits, "tau": tau, "result": f"{result:.4g}"}
    return None


def _scalar(result: object) -> float | None:
    import torch

    usable = isinstance(result, torch.Tensor) and result.numel() == 1 and not result.is_complex()
    return float(result) if usable else None


@grader("05.2")
def _soft_term(answer: object) -> Hint:
    import torch

    from ..distill import distillation_loss

    draw = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 6, 9, generator=draw) for _ in range(2))
    labels = torch.randint(0, 9, (2, 6), generator=draw)
    labels[0, :3] = labels[1, 4:] = -100

    def right(labels: torch.Tensor, tau: float, divergence: str = "forward_kl") -> float:
        return float(distillation_loss(student, teacher, labels, temperature=tau, alpha=1.0, divergence=divergence))

    for tau in (1.0, 3.0):
        result, hint = call(answer, student.clone(), teacher.clone(), labels.clone(), tau)
        if hint:
            return hint
        value = _scalar(result)
        if value is None:
            return "check.05.2.scalar", {}
        if math.isclose(value, right(labels, tau), rel_tol=1e-3):
            continue
        mistakes = {"check.05.2.direction": right(labels, tau, "reverse_kl"), "check.05.2.tau": right(labels, tau) / tau**2,
                    "check.05.2.mask": right(torch.zeros_like(labels), tau)}
        return next((key for key, wrong in mistakes.items() if math.isclose(value, wrong, rel_tol=1e-3)), "check.05.2"), {
            "tau": f"{tau:g}", "result": f"{value:.4g}"}
    return None


@grader("05.3")
def _stored_kl(answer: object) -> Hint:
    import torch

    from ..distill import divergence_of

    draw = torch.Generator().manual_seed(7)
    log_t, log_q = (torch.randn(3, 8, generator=draw).log_softmax(-1) for _ in range(2))
    for k in (1, 4, 7):
        log_p, tokens = log_t.topk(k)
        rest_t, rest_q = (1 - part.exp().sum(-1, keepdim=True) for part in (log_p, log_q.gather(1, tokens)))
        events_t = torch.cat([log_p, rest_t.log()], 1)
        events_q = torch.cat([log_q.gather(1, tokens), rest_q.log()], 1)
        result, hint = call(answer, tokens.clone(), log_p.clone(), log_q.clone())
        if hint:
            return hint
        if not isinstance(result, torch.Tensor) or result.shape != (3,) or result.is_complex():
            return "check.05.3.shape", {}
        if not torch.allclose(result.float(), divergence_of(events_t, events_q, "forward_kl"), atol=1e-4):
            known = (log_p.exp() * (log_p - log_q.gather(1, tokens))).sum(-1)
            return "check.05.3.rest" if torch.allclose(result.float(), known, atol=1e-4) else "check.05.3", {"k": k}
    return None
