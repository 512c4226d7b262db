"""Graders of lesson 03: tokens that fit beside a model, a sliding window with a cache, the load-balancing loss."""
from __future__ import annotations

from .grading import Hint, call, grader, numbers, shown


@grader("03.1")
def _tokens_that_fit(answer: object) -> Hint:
    """Whole tokens whose keys and values, 2 bytes each, fit into so many GB."""
    cases = [((layers, heads, head_dim, gigabytes), int(gigabytes * 1e9) // (4 * layers * heads * head_dim))
             for layers, heads, head_dim, gigabytes in ((32, 32, 96, 1), (26, 4, 256, 0.3), (24, 2, 64, 8), (28, 4, 128, 0.01))]
    return numbers(answer, cases, "check.03.1")


@grader("03.2")
def _window_mask(answer: object) -> Hint:
    import torch

    from ..architectures import causal_mask

    for arguments in ((5, 5, 3), (6, 6, 1), (1, 9, 4), (3, 8, 4), (2, 6, 10)):
        result, hint = call(answer, *arguments)
        if hint:
            return hint
        if not isinstance(result, torch.Tensor) or result.shape != arguments[:2] or result.dtype != torch.bool:
            return "check.03.2.shape", {"arguments": shown(arguments), "queries": arguments[0], "keys": arguments[1]}
        queries, keys, window = arguments
        if (result & ~causal_mask(queries, keys)).any():
            return "check.03.2.future", {"arguments": shown(arguments)}
        if not torch.equal(result, causal_mask(queries, keys, window)):
            return "check.03.2.count", {"arguments": shown(arguments), "seen": result[-1].sum().item(), "window": window}
    return None


@grader("03.3")
def _balance_loss(answer: object) -> Hint:
    import torch

    from ..architectures import load_balancing_loss

    def as_number(logits: torch.Tensor, top_k: int) -> object:
        result = answer(logits, top_k)
        one = isinstance(result, torch.Tensor) and result.numel() == 1 and not result.is_complex()
        return result.item() if one else result

    if not callable(answer):
        return call(answer)[1]
    generator = torch.Generator().manual_seed(3)
    cases = [((torch.zeros(2, 4), 2), 2.0)]  # every expert as likely as any other
    for tokens, experts, top_k in ((50, 4, 1), (40, 6, 2), (9, 8, 3)):
        logits = 3 * torch.randn(tokens, experts, generator=generator) - 1
        cases.append(((logits, top_k), load_balancing_loss(logits, top_k).item()))
    return (numbers(as_number, cases[:1], "check.03.3.even", tolerance=1e-4)
            or numbers(as_number, cases[1:], "check.03.3", tolerance=1e-4))
