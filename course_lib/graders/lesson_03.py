"""Graders of lesson 03: size of the KV cache, sliding-window mask, load-balancing loss."""
from __future__ import annotations

from .cases import judged, numeric
from .grading import Hint, call, grader, numbers


@numeric("03.1", [(32, 32, 96, 1), (26, 4, 256, 0.3), (24, 2, 64, 8), (28, 4, 128, 0.01)])
def _tokens_that_fit(layers, heads, head_dim, gigabytes):
    """Number of tokens whose keys and values (2 bytes per number) fit in `gigabytes`."""
    return int(gigabytes * 1e9) // (4 * layers * heads * head_dim)


@judged("03.2", [(5, 5, 3), (6, 6, 1), (1, 9, 4), (3, 8, 4), (2, 6, 10)])
def _window_mask(result, queries, keys, window):
    import torch

    from ..models.architectures import causal_mask

    if not isinstance(result, torch.Tensor) or result.shape != (queries, keys) or result.dtype != torch.bool:
        return "check.03.2.shape", {"queries": queries, "keys": keys}
    if (result & ~causal_mask(queries, keys)).any():
        return "check.03.2.future"
    if not torch.equal(result, causal_mask(queries, keys, window)):
        return "check.03.2.count", {"seen": result[-1].sum().item(), "window": window}
    return None


@grader("03.3")
def _balance_loss(answer: object) -> Hint:
    import torch

    from ..models.architectures import load_balancing_loss

    def as_number(logits, top_k):
        result = answer(logits, top_k)
        scalar = isinstance(result, torch.Tensor) and result.numel() == 1 and not result.is_complex()
        return result.item() if scalar else result

    if not callable(answer):
        return call(answer)[1]
    generator = torch.Generator().manual_seed(3)
    even = [((torch.zeros(2, 4), 2), 2.0)]  # all experts are equally likely
    cases = []
    for tokens, experts, top_k in ((50, 4, 1), (40, 6, 2), (9, 8, 3)):
        logits = 3 * torch.randn(tokens, experts, generator=generator) - 1
        cases.append(((logits, top_k), load_balancing_loss(logits, top_k).item()))
    return (numbers(as_number, even, "check.03.3.even", tolerance=1e-4)
            or numbers(as_number, cases, "check.03.3", tolerance=1e-4))
