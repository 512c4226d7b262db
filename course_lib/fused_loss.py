"""The loss at the LM head, on labelled tokens only and a chunk at a time.

A causal language model spends much of a training step on its last layer: (B, T, V) logits, their softmax and both
gradients. Only the labelled positions count, and a position's gradient with respect to its logits is known in
closed form (below), so this module computes loss AND gradient for a few rows at a time and keeps (N, H) and (V, H)
tensors, never (N, V). Nothing is computed twice: the backward pass only scales what the forward pass has stored.

Gradients with respect to the student's scaled logits z/τ, with q = softmax(z/τ) and t the teacher's distribution:
cross-entropy q - onehot; forward KL(t‖q) q - t; for the others q·(φ - Σ q·φ) with φ = log q/t (reverse KL(q‖t)) or
φ = ½ log q/m, m = (q + t)/2 (JSD). Sources: Hinton et al. 2015 (arXiv 1503.02531, section 2) for the gradient and τ²;
the idea of a fused head: Hsu et al. 2024, Liger Kernel (arXiv 2410.10989, section 3.2). Lesson 05 derives it in full.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
# bytes of a block, the rows of logits that one matrix product makes, and of a chunk of it in fp32 that the softmax
# works on: products want many rows, and a CPU's cache and allocator small tensors
BLOCK_BYTES = {"cpu": 2**26, "cuda": 2**28}
CHUNK_BYTES = {"cpu": 2**22, "cuda": 2**28}


@dataclass(frozen=True)
class Head:
    """A model's last layer: weight (V, H), bias (V,) or None, and what some families do to the logits after it."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0  # Granite, Cohere
    softcap: float | None = None  # Gemma 2

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a causal language model, LoRA around it or not."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        if not isinstance(layer, torch.nn.Linear):
            raise ValueError(f"the LM head of model is a {type(layer).__name__}; leave it out of the adapter's target modules")
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, H) → (n, V) in fp32; the product itself in the weight's precision."""
        return self.finish(hidden.to(self.weight.dtype) @ self.weight.T)

    def finish(self, product: torch.Tensor) -> torch.Tensor:
        """Products h·Wᵀ (n, V) to logits in fp32."""
        out = product.float() if product.dtype != torch.float32 else product.clone()
        out = out if self.bias is None else out.add_(self.bias)
        out = out if self.scale == 1 else out.mul_(self.scale)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)


# (slice of the labelled rows, the student's log q of these rows) → the teacher's log t, (n, V) in fp32, at temperature τ
Target = Callable[[slice, torch.Tensor], torch.Tensor]


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Labels (B, T) moved one to the left, so that position t holds what it must predict; the last one is masked."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)


def labelled(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states (N, H) of the positions that predict a labelled token, and those tokens (N,).

    Through the model's own forward, so that adapters, autocast and DistributedDataParallel do their part; its LM head
    runs on no position, and a hook takes what goes into it.
    """
    targets = shifted(inputs["labels"])
    nowhere = torch.empty(0, dtype=torch.long, device=targets.device)  # 1 would copy the head's weight for every sample
    keep = targets != -100
    states: list[torch.Tensor] = []
    hook = decoder_of(model).register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state))
    try:
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, logits_to_keep=nowhere)
    finally:
        hook.remove()
    return states[0][keep], targets[keep]


def decoder_of(model: torch.nn.Module) -> torch.nn.Module:
    """The model without its LM head: embeddings, layers and final norm; out of DistributedDataParallel and PEFT wrappers."""
    inner = getattr(model, "module", model)
    return (inner.get_base_model() if hasattr(inner, "get_base_model") else inner).get_decoder()


def head_loss(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, *, teacher: Target | None = None, temperature: float = 1.0,
    alpha: float = 0.0, divergence: str = "forward_kl", num_items: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, soft term, hard term), each a sum over the rows divided by `num_items` (by default their number).

    loss = alpha · τ² · divergence(teacher, student; at τ) + (1 - alpha) · cross-entropy. Only the loss has a gradient.

    Args:
        hidden: (N, H), the final hidden states of the labelled positions.
        targets: (N,), the tokens to predict.
        teacher: the teacher's log-probabilities; needed when alpha > 0.
        num_items: labelled tokens of the whole accumulated batch, as the Trainer counts them.

    Raises:
        ValueError: alpha above 0 without a teacher.
    """
    if alpha > 0 and teacher is None:
        raise ValueError(f"alpha is {alpha}, but teacher is None; give the teacher's log-probabilities, or alpha=0")
    items = max(len(targets), 1) if num_items is None else num_items
    return _HeadLoss.apply(hidden, head.weight, head.bias, targets, head, teacher, float(temperature), float(alpha), divergence,
                           float(items), torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, head, teacher, tau, alpha, divergence, items, differentiate):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs = [differentiate and need for need in ctx.needs_input_grad[:3]]
        ctx.grads = [None, None, None]
        sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
        rows = rows_of_a_block(weight, dtype)
        with torch.autocast(device, enabled=False):
            wide = hidden.to(dtype)  # cast once, not once a block
            low = Head(weight.to(dtype), None if bias is None else bias.to(dtype), head.scale, head.softcap)
            block = torch.empty(min(rows, len(targets)), weight.shape[0], dtype=dtype, device=hidden.device)
            for start in range(0, len(targets), rows):
                part = slice(start, min(start + rows, len(targets)))
                out = torch.mm(wide[part], low.weight.T, out=block[:part.stop - start])
                _logits_to_gradients(out, part, targets, low, teacher, (tau, alpha, divergence), sums, any(needs))
                _spread(out, wide, low.weight, part, ctx.grads, needs)
        # the blocks hold gradients of the sum: divided by the items there, or in fp16 at all, most would round to 0
        ctx.grads = [None if grad is None else (grad.float() if grad.dtype == torch.float16 else grad).div_(items)
                     for grad in ctx.grads]
        if not len(targets):
            ctx.grads = [torch.zeros_like(x) if need else None for x, need in zip((hidden, weight, bias), needs, strict=True)]
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        soft, hard = (sums / items).float()
        ctx.mark_non_differentiable(soft, hard)
        return alpha * tau**2 * soft + (1 - alpha) * hard, soft, hard

    @staticmethod
    def backward(ctx, grad_loss, *_):
        scale = grad_loss.item()  # 1, unless a caller scales the loss, as for fp16
        scaled = (grad if grad is None or scale == 1 else grad * scale for grad in ctx.grads)
        grads = (None if grad is None else grad.to(dtype) for grad, dtype in zip(scaled, ctx.dtypes, strict=True))
        return *grads, *([None] * 8)


def rows_of_a_block(weight: torch.Tensor, dtype: torch.dtype) -> int:
    """How many rows of logits over this head (V, H) one matrix product makes."""
    return max(1, BLOCK_BYTES.get(weight.device.type, 2**28) // (weight.shape[0] * dtype.itemsize))


def _logits_to_gradients(out, part, targets, head, teacher, plan, sums, needs_grad):
    """Overwrite a block of products h·Wᵀ with the gradient of the loss with respect to them, chunk by chunk."""
    tau, alpha, divergence = plan
    rows = max(1, CHUNK_BYTES.get(out.device.type, 2**28) // (4 * out.shape[1]))
    for first in range(part.start, part.stop, rows):
        chunk = slice(first, min(first + rows, part.stop))
        mine = out[first - part.start:chunk.stop - part.start]
        logits = head.finish(mine)
        grad = _chunk(logits, targets[chunk], chunk, teacher, tau, alpha, divergence, sums, needs_grad)
        if needs_grad:
            if head.softcap is not None:
                grad.mul_(1 - (logits / head.softcap) ** 2)
            mine.copy_(grad if head.scale == 1 else grad.mul_(head.scale))


def _chunk(logits, targets, part, teacher, tau, alpha, divergence, sums, needs_grad):
    """Add the chunk's soft and hard sums to `sums`; return the gradient of its loss with respect to the logits."""
    picked = targets[:, None]
    log_q = logits.div(tau).log_softmax(-1) if alpha > 0 and tau != 1 else None
    log_p = logits.log_softmax(-1)
    sums[1] -= log_p.gather(1, picked).double().sum()
    grad = None
    if alpha > 0:
        log_q = log_p if log_q is None else log_q
        value, grad = divergence_and_gradient(teacher(part, log_q), log_q, divergence, needs_grad)
        sums[0] += value.double().sum()
        grad = grad.mul_(alpha * tau) if needs_grad else None  # τ² of the loss, 1/τ of the inner derivative
    if needs_grad and alpha < 1:
        hard = log_p.exp_().mul_(1 - alpha)
        hard.scatter_add_(1, picked, torch.full_like(picked, alpha - 1, dtype=hard.dtype))
        grad = hard if grad is None else grad.add_(hard)
    return grad


def divergence_and_gradient(
    log_t: torch.Tensor, log_q: torch.Tensor, kind: str, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Divergence of each row (n,) and its gradient (n, V) with respect to the logits behind log_q = log_softmax(z).

    Args:
        log_t, log_q: (n, V) log-probabilities of teacher and student; log_t is overwritten.
        kind: "forward_kl" KL(t‖q), "reverse_kl" KL(q‖t) or "jsd" (Jensen-Shannon, weights ½).
    """
    q = log_q.exp()
    if kind == "forward_kl":
        t = log_t.exp()
        value = torch.linalg.vecdot(t, log_t.sub_(log_q).nan_to_num_(nan=0.0, neginf=0.0))  # 0 · log 0 = 0
        return value, q.sub_(t) if needs_grad else None
    if kind == "reverse_kl":
        phi = log_q - log_t.clamp_(min=-80.0)  # a stored teacher may rule a token out; keep the loss finite
        value = torch.linalg.vecdot(q, phi)
        return value, phi.sub_(value[:, None]).mul_(q) if needs_grad else None
    log_m = torch.logaddexp(log_q, log_t).sub_(math.log(2))
    phi = (log_q - log_m).mul_(0.5)
    inner = torch.linalg.vecdot(q, phi)
    t = log_t.exp()
    value = inner + 0.5 * torch.linalg.vecdot(t, log_t.sub_(log_m).nan_to_num_(neginf=0.0))
    return value, phi.sub_(inner[:, None]).mul_(q) if needs_grad else None


def _spread(grad, hidden, weight, part, grads, needs):
    """Carry a block's gradient (n, V) on to the hidden states, the weight and the bias; sums over blocks are in fp32."""
    if needs[0]:
        if grads[0] is None:
            grads[0] = torch.empty_like(hidden)
        torch.mm(grad, weight, out=grads[0][part])
    if needs[1]:
        product = grad.T @ hidden[part]
        grads[1] = product if grads[1] is None else grads[1].float().add_(product)
    if needs[2]:
        product = grad.sum(0, dtype=torch.float32)
        grads[2] = product if grads[2] is None else grads[2].add_(product)
