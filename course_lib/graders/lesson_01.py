"""Graders of lesson 01: sizes, the bound on decoding, a model for a product."""
from __future__ import annotations

from .. import catalog
from .grading import Hint, grader, numbers


@grader("01.1")
def _weights_in_gigabytes(answer: object) -> Hint:
    cases = [((parameters, bits), parameters * bits / 8 / 1e9)
             for parameters, bits in ((1_000_000_000, 16), (3_212_749_824, 4), (134_515_008, 32), (70_553_706_496, 8))]
    return numbers(answer, cases, "check.01.1")


@grader("01.2")
def _decode_bound(answer: object) -> Hint:
    cases = [((weight_gb, bandwidth), bandwidth / weight_gb)
             for weight_gb, bandwidth in ((15.23, 1008.0), (0.27, 40.0), (141.1, 3350.0))]
    return numbers(answer, cases, "check.01.2")


@grader("01.3")
def _model_for_a_product(answer: object) -> Hint:
    """A chat model that speaks Korean, whose licence allows a product, in bf16 within 4 GB."""
    if not isinstance(answer, str):
        return "check.not_an_id", {"type": type(answer).__name__}
    try:
        card = catalog.get(answer)
    except LookupError:
        return "check.unknown_model", {"id": answer}
    if not card.commercial_use:
        return "check.01.3.licence", {"id": answer, "licence": card.licence}
    gigabytes = catalog.weight_bytes(answer, "bf16") / 1e9 if card.model_type else 0  # else transformers can't build it
    if gigabytes > 4:
        return "check.01.3.memory", {"id": answer, "gb": f"{gigabytes:.2f}"}
    if not card.speaks("ko"):
        return "check.01.3.language", {"id": answer}
    if answer.lower() != (card.instruct_id or "").lower():
        return "check.01.3.base", {"id": answer}
    return None
