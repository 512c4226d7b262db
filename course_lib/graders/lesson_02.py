"""Graders of lesson 02: the chat template, top-p sampling, a precision that fits."""
from __future__ import annotations

import copy

from .. import catalog
from .grading import Hint, call, grader, shown


@grader("02.1")
def _chat_template(answer: object) -> Hint:
    user, system = {"role": "user", "content": "2 + 2?"}, {"role": "system", "content": "Be brief."}
    conversation = [system, user, {"role": "assistant", "content": "4"}, {"role": "user", "content": "왜요?"}]
    for messages in ([system, user], conversation):
        turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        result, hint = call(answer, copy.deepcopy(messages))  # an answer may change the list that it gets
        if hint:
            return hint
        if not isinstance(result, str):
            return "check.not_a_string", {"type": type(result).__name__}
        if result == turns:
            return "check.02.1.generation_prompt", {}
        if result != turns + "<|im_start|>assistant\n":
            return "check.02.1", _first_difference(result, turns + "<|im_start|>assistant\n")
    return None


def _first_difference(text: str, right: str) -> dict[str, object]:
    """Where a learner's text leaves the right one, and what stands there in the learner's (never what should)."""
    at = next((index for index, pair in enumerate(zip(text, right, strict=False)) if len(set(pair)) > 1),
              min(len(text), len(right)))
    return {"position": at, "before": repr(text[max(0, at - 25):at]), "there": repr(text[at:at + 10])}


@grader("02.2")
def _top_p(answer: object) -> Hint:
    import torch

    cases = [([0.5, 0.3, 0.15, 0.05], 0.7, [0.625, 0.375, 0, 0]), ([0.05, 0.15, 0.3, 0.5], 0.9, [0, 0.15, 0.3, 0.5]),
             ([0.1, 0.6, 0.3], 0.5, [0, 1, 0]), ([0.25, 0.45, 0.3], 1.0, [0.25, 0.45, 0.3]),
             ([0.5, 0.25, 0.125, 0.125], 0.75, [0.5, 0.25, 0, 0])]  # reaches p exactly
    for probabilities, p, kept in cases:
        result, hint = call(answer, torch.tensor(probabilities), p)
        if hint:
            return hint
        if not isinstance(result, torch.Tensor) or result.shape != (len(probabilities),) or result.is_complex():
            return "check.02.2.shape", {"n": len(probabilities)}
        right = torch.tensor(kept, dtype=torch.float32)
        if not torch.equal(result > 0, right > 0):
            count = int((result > 0).sum())
            key = "check.02.2.places" if count == int((right > 0).sum()) else "check.02.2.kept"
            return key, {"arguments": shown((probabilities, p)), "kept": count}
        if not torch.allclose(result.float(), right / right.sum(), atol=1e-5):
            return "check.02.2.sum", {"sum": f"{float(result.sum()):.3f}"}
    return None


@grader("02.3")
def _cheapest_precision(answer: object) -> Hint:
    """The most exact of fp32, bf16, int8, nf4 whose weights fit; "none" where none does, as None means not tried."""
    order = ("fp32", "bf16", "int8", "nf4")
    for model_id, gigabytes in (("Qwen/Qwen2.5-0.5B-Instruct", 2.5), ("Qwen/Qwen2.5-7B-Instruct", 9.0),
                                ("Qwen/Qwen2.5-7B-Instruct", 8.5),  # int8 would fit in 8.5 GiB, or by the simple rule
                                ("meta-llama/Llama-3.2-3B-Instruct", 7.0), ("Qwen/Qwen2.5-7B-Instruct", 6.0),
                                ("Qwen/Qwen2.5-7B-Instruct", 1.0)):
        right = next((p for p in order if catalog.weight_bytes(model_id, p) <= gigabytes * 1e9), "none")
        result, hint = call(answer, model_id, gigabytes)
        if hint:
            return hint
        if not isinstance(result, str) or result not in (*order, "none"):
            return "check.02.3.choice", {"result": repr(result)}
        if result != right:
            return "check.02.3", {"arguments": shown((model_id, gigabytes)), "result": result}
    return None
