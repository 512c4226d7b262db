"""Graders of lesson 01: size of the weights, upper bound of decoding speed, a model for a product."""
from __future__ import annotations

from ..models import cards, catalog
from .cases import numeric
from .grading import Hint, grader


@numeric("01.1", [(1_000_000_000, 16), (3_212_749_824, 4), (134_515_008, 32), (70_553_706_496, 8)])
def _weights_in_gigabytes(parameters, bits):
    return parameters * bits / 8 / 1e9


@numeric("01.2", [(15.23, 1008.0), (0.27, 40.0), (141.1, 3350.0)])
def _decode_bound(weight_gb, bandwidth):
    return bandwidth / weight_gb


@grader("01.3")
def _model_for_a_product(answer: object) -> Hint:
    """Expect a Korean chat model with a licence for products and at most 4 GB of weights in bf16."""
    if not isinstance(answer, str):
        return "check.not_an_id", {"type": type(answer).__name__}
    try:
        card = cards.get_card(answer)
    except LookupError:
        return "check.unknown_model", {"id": answer}
    if not card.commercial_use:
        return "check.01.3.license", {"id": answer, "license": card.license}
    gigabytes = catalog.weight_bytes(answer, "bf16") / 1e9 if card.model_type else 0  # 0: no class for it
    if gigabytes > 4:
        return "check.01.3.memory", {"id": answer, "gb": f"{gigabytes:.2f}"}
    if not card.speaks("ko"):
        return "check.01.3.language", {"id": answer}
    if answer.lower() != (card.instruct_id or "").lower():
        return "check.01.3.base", {"id": answer}
    return None
