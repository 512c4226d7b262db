"""Answers to the exercises of lesson 02."""
import torch

from course_lib.models import catalog


def template(messages, end="<|im_start|>assistant\n"):
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + end


def eats_the_system_message(messages):
    messages.pop(0)
    return template(messages)


def top_p(probabilities, p, *, extra=0, normalise=True, ordered=True):
    """Written with a loop, unlike the reference solution; or with `extra` tokens or another usual mistake."""
    order = range(len(probabilities))
    if ordered:
        order = sorted(order, key=lambda i: -probabilities[i])
    kept, total = [], 0.0
    for index in order:
        if total >= p - 1e-6:
            break
        kept.append(index)
        total += float(probabilities[index])
    kept = list(order)[:max(len(kept) + extra, 0)]
    out = torch.zeros_like(probabilities)
    out[kept] = probabilities[kept]
    return out / out.sum() if normalise else out


def softmax_again(probabilities, p):
    kept = top_p(probabilities, p) > 0
    return torch.where(kept, probabilities, -torch.inf).softmax(-1)


def best_precision(model_id, memory_gb, *, order=("fp32", "bf16", "int8", "nf4"), gigabyte=1e9, size=None):
    size = size or catalog.weight_bytes
    return next((p for p in order if size(model_id, p) <= memory_gb * gigabyte), "none")


def simple_rule(model_id, precision):
    return catalog.count_parameters(model_id) * {"fp32": 32, "bf16": 16, "int8": 8, "nf4": 4}[precision] / 8


RIGHT = [
    ("02.1", template),
    ("02.2", top_p),
    ("02.2", lambda probabilities, p: top_p(probabilities.double(), p)),
    ("02.3", best_precision),
]
WRONG = [
    ("02.1", lambda messages: template(messages, end=""), "check.02.1.generation_prompt"),
    ("02.1", lambda messages: template(messages, end="<|im_start|>assistant"), "check.02.1"),
    ("02.1", lambda messages: template(messages).replace("<|im_end|>\n", "<|im_end|>"), "check.02.1"),
    ("02.1", lambda messages: template(messages[1:]), "check.02.1"),
    ("02.1", lambda messages: template(messages[:2]), "check.02.1"),
    ("02.1", lambda messages: template(messages).replace("assistant\n4", "user\n4"), "check.02.1"),
    ("02.1", lambda messages: str(messages), "check.02.1"),
    ("02.1", eats_the_system_message, "check.02.1"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p, extra=-1), "check.02.2.kept"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p, extra=1), "check.02.2.kept"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p, ordered=False), "check.02.2.kept"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p).sort(descending=True).values,
     "check.02.2.places"),
    ("02.2", lambda probabilities, p: torch.where(probabilities >= p, probabilities, 0.0), "check.02.2.kept"),
    ("02.2", lambda probabilities, p: probabilities, "check.02.2.kept"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p, normalise=False), "check.02.2.sum"),
    ("02.2", softmax_again, "check.02.2.sum"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p)[:2], "check.02.2.shape"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p)[None], "check.02.2.shape"),
    ("02.2", lambda probabilities, p: top_p(probabilities, p).tolist(), "check.02.2.shape"),
    ("02.3", lambda model_id, gb: best_precision(model_id, gb, order=("nf4", "int8", "bf16", "fp32")),
     "check.02.3"),
    ("02.3", lambda model_id, gb: best_precision(model_id, gb, order=("bf16", "int8", "nf4")), "check.02.3"),
    ("02.3", lambda model_id, gb: best_precision(model_id, gb, gigabyte=2**30), "check.02.3"),
    ("02.3", lambda model_id, gb: best_precision(model_id, gb, size=simple_rule), "check.02.3"),
    ("02.3", lambda model_id, gb: best_precision(model_id, gb, gigabyte=1), "check.02.3"),
    ("02.3", lambda model_id, gb: "fp32", "check.02.3"),
    ("02.3", lambda model_id, gb: "4bit", "check.02.3.choice"),
    ("02.3", lambda model_id, gb: "", "check.02.3.choice"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"im_start\|>assistant|cumsum|sort\(|next\(|<= ?mem"
