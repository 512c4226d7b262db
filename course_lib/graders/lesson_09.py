"""Graders of lesson 09: upper bound of decoding, distribution after a rejection, best draft length."""
from __future__ import annotations

import math
import operator

from .cases import as_numbers, judged, numeric
from .grading import shown


@numeric("09.1", [(20e9, 538e6, 46_080, 1000, 1), (1008e9, 15.2e9, 57_344, 4096, 8),
                   (320e9, 6.4e9, 114_688, 512, 16), (76.8e9, 1.6e9, 12_288, 2048, 1)])
def _decode_limit(bandwidth, weight_bytes, bytes_per_token, context, batch):
    """Upper bound of tokens per second; `bytes_per_token` is the size of the KV cache per token."""
    return batch * bandwidth / (weight_bytes + batch * context * bytes_per_token)


@judged("09.2", [
    ([0.3, 0.3, 0.1, 0.1, 0.2], [0.5, 0.2, 0.15, 0.1, 0.05]), ([0.0, 1.0], [0.75, 0.25]),
    ([0.125, 0.5, 0.375], [0.5, 0.25, 0.25]), ([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])])
def _residual(result, p, q):
    """Expect max(0, p - q), normalised to sum 1; p itself where p = q."""
    values = as_numbers(result, len(p))
    if values is None:
        return "check.09.2.shape", {"size": len(p)}
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    right = [value / sum(left) for value in left] if sum(left) else p
    if all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(values, right, strict=True)):
        return None
    fields = {"result": shown(tuple(round(value, 4) for value in values)), "sum": f"{sum(values):.4g}"}
    if not sum(left):
        return "check.09.2.equal", fields
    if min(values) < 0:
        return "check.09.2.negative", fields
    return ("check.09.2" if math.isclose(sum(values), 1, abs_tol=1e-6) else "check.09.2.sum"), fields


@judged("09.3", [(0.8, 0.05, 16), (0.6, 0.25, 8), (0.9, 0.02, 10), (0.3, 0.6, 8), (0.7, 0.1, 3),
                 (1.0, 0.1, 12), (0.0, 0.1, 5)])
def _best_k(result, alpha, cost, largest):
    """Expect the k from 0 to `largest` with the greatest expected speed-up; 0 if drafting does not pay."""
    k = _whole(result)
    if k is None:
        return "check.09.3.whole", {"type": type(result).__name__}
    if not 0 <= k <= largest:
        return "check.09.3.range", {"result": k}
    gains = [sum(alpha**token for token in range(n + 1)) / (n * cost + 1) for n in range(largest + 1)]
    best = gains.index(max(gains))
    if k == best:
        return None
    return ("check.09.3" if best else "check.09.3.zero"), {"result": k}


def _whole(result: object) -> int | None:
    """Return an integer of Python, numpy or torch as int, or None if it is not one."""
    try:
        return None if isinstance(result, bool) else operator.index(result)
    except TypeError:
        return None
