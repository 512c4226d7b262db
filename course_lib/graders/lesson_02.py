"""Graders of lesson 02: chat template, top-p sampling, the most exact precision that fits."""
from __future__ import annotations

from ..models import catalog
from .cases import judged
from .grading import shown

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 2?"}
CONVERSATION = [SYSTEM, USER, {"role": "assistant", "content": "4"}, {"role": "user", "content": "왜요?"}]
PRECISIONS = ("fp32", "bf16", "int8", "nf4")  # most exact first


@judged("02.1", [([SYSTEM, USER],), (CONVERSATION,)])
def _chat_template(result, messages):
    if not isinstance(result, str):
        return "check.not_a_string", {"type": type(result).__name__}
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    if result == turns:
        return "check.02.1.generation_prompt"
    right = turns + "<|im_start|>assistant\n"
    return None if result == right else ("check.02.1", _first_difference(result, right))


def _first_difference(text: str, right: str) -> dict[str, object]:
    """Describe where a learner's text first differs, without giving away the right text."""
    at = next((index for index, pair in enumerate(zip(text, right, strict=False)) if len(set(pair)) > 1),
              min(len(text), len(right)))
    return {"position": at, "before": repr(text[max(0, at - 25):at]), "there": repr(text[at:at + 10])}


def _distributions():
    import torch

    return [(torch.tensor(probabilities), p) for probabilities, p in (
        ([0.5, 0.3, 0.15, 0.05], 0.7), ([0.05, 0.15, 0.3, 0.5], 0.9), ([0.1, 0.6, 0.3], 0.5),
        ([0.25, 0.45, 0.3], 1.0), ([0.5, 0.25, 0.125, 0.125], 0.75))]  # in the last one a sum equals p


@judged("02.2", _distributions)
def _top_p(result, probabilities, p):
    import torch

    if not isinstance(result, torch.Tensor) or result.shape != probabilities.shape or result.is_complex():
        return "check.02.2.shape", {"n": len(probabilities)}
    ordered, tokens = probabilities.double().sort(descending=True)
    before = ordered.cumsum(0) - ordered  # sum of the more probable tokens
    right = torch.zeros(len(probabilities)).scatter(0, tokens, (ordered * (before < p - 1e-6)).float())
    if not torch.equal(result > 0, right > 0):
        count = int((result > 0).sum())
        given = [round(share, 4) for share in probabilities.tolist()]
        key = "check.02.2.places" if count == int((right > 0).sum()) else "check.02.2.kept"
        return key, {"arguments": shown((given, p)), "kept": count}
    if not torch.allclose(result.float(), right / right.sum(), atol=1e-5):
        return "check.02.2.sum", {"sum": f"{float(result.sum()):.3f}"}
    return None


@judged("02.3", [
    ("Qwen/Qwen2.5-0.5B-Instruct", 2.5), ("Qwen/Qwen2.5-7B-Instruct", 9.0),
    ("Qwen/Qwen2.5-7B-Instruct", 8.5),  # int8 would fit in 8.5 GiB, or by parameters * bits / 8
    ("meta-llama/Llama-3.2-3B-Instruct", 7.0), ("Qwen/Qwen2.5-7B-Instruct", 6.0),
    ("Qwen/Qwen2.5-7B-Instruct", 1.0)])
def _cheapest_precision(result, model_id, gigabytes):
    """Expect the most exact precision whose weights fit in `gigabytes`, or "none" if none fits."""
    if not isinstance(result, str) or result not in (*PRECISIONS, "none"):
        return "check.02.3.choice", {"result": repr(result)}
    fitting = (name for name in PRECISIONS if catalog.weight_bytes(model_id, name) <= gigabytes * 1e9)
    return None if result == next(fitting, "none") else ("check.02.3", {"result": result})
