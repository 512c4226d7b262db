"""The loss at the LM head and its gradient, for labelled tokens only and a few rows at a time.

The logits (B, T, V), their softmax and both gradients take a large share of a training step. This module
computes loss and gradient together in the forward pass, in closed form and block by block. It stores tensors
of (N, H) and (V, H) for N labelled tokens, never (N, V), and the backward pass only scales them. With the
student's q = softmax(z/τ) and the teacher's distribution t, the gradient with respect to z/τ is q - onehot
for cross-entropy, q - t for forward KL(t‖q), and q·(φ - Σ q·φ) for the others, with φ = log q/t for reverse
KL(q‖t) and φ = ½ log q/m, m = (q + t)/2, for JSD. Lesson 05 derives it in full.
Sources: gradient and τ², arXiv 1503.02531, section 2; fused head (Liger), arXiv 2410.10989, section 3.2.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # a label that no loss counts
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
# bytes of a block (the logits of one matrix product) and of a chunk (the part of it in fp32 for the softmax):
# products are faster with many rows, while a CPU's cache and allocator need small tensors
BLOCK_BYTES = {"cpu": 2**26, "cuda": 2**28}
CHUNK_BYTES = {"cpu": 2**22, "cuda": 2**28}


@dataclass(frozen=True)
class Head:
    """A model's last layer: weight (V, H), bias (V,) or None, and the scale and soft cap of the logits."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0  # Granite, Cohere
    softcap: float | None = None  # Gemma 2

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Return the head of a causal language model, with or without LoRA adapters."""
        layer = model.get_output_embeddings()
        config = model.config.get_text_config()
        if not isinstance(layer, torch.nn.Linear):
            raise ValueError(f"the LM head of model is a {type(layer).__name__}; leave it out of the "
                             "adapter's target modules")
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (n, H) to logits (n, V) in fp32; the product itself is in the weight's precision."""
        return self.finish(hidden.to(self.weight.dtype) @ self.weight.T)

    def finish(self, product: torch.Tensor) -> torch.Tensor:
        """Turn products h·Wᵀ (n, V) into logits in fp32."""
        out = product.float() if product.dtype != torch.float32 else product.clone()
        out = out if self.bias is None else out.add_(self.bias)
        out = out if self.scale == 1 else out.mul_(self.scale)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)


# (slice of the labelled rows, the student's log q of these rows) → the teacher's log t, (n, V) in fp32, at
# temperature τ
Target = Callable[[slice, torch.Tensor], torch.Tensor]


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """Shift labels (B, T) left, so that position t holds the token it predicts; the last one is masked."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def labelled(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states (N, H) of the positions that predict a labelled token, and those tokens (N,).

    The states come from a hook on the decoder during the model's own forward, so that adapters, autocast and
    DistributedDataParallel work. The model's LM head runs on no position.
    """
    targets = shifted(inputs["labels"])
    # keep no position, because keeping one would copy the head's weight for every sample
    nowhere = torch.empty(0, dtype=torch.long, device=targets.device)
    keep = targets != IGNORED
    states: list[torch.Tensor] = []
    hook = decoder_of(model).register_forward_hook(
        lambda _, __, output: states.append(output.last_hidden_state))
    try:
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False,
              logits_to_keep=nowhere)
    finally:
        hook.remove()
    return states[0][keep], targets[keep]


def decoder_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model without its LM head and without DistributedDataParallel and PEFT wrappers."""
    inner = getattr(model, "module", model)
    return (inner.get_base_model() if hasattr(inner, "get_base_model") else inner).get_decoder()


def head_loss(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, *, teacher: Target | None = None,
    temperature: float = 1.0, alpha: float = 0.0, divergence: str = "forward_kl",
    num_items: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, soft term, hard term), each a sum over the rows divided by `num_items`.

    loss = alpha · τ² · divergence(teacher, student; at τ) + (1 - alpha) · cross-entropy.
    Only the loss has a gradient.

    Args:
        hidden, targets: final hidden states (N, H) of the labelled positions, and the tokens (N,) to predict.
        teacher: a `Target`, which computes the teacher's log-probabilities; needed when alpha > 0.
        num_items: labelled tokens of the whole accumulated batch, as the Trainer counts them; N by default.

    Raises:
        ValueError: alpha above 0 without a teacher.
    """
    if alpha > 0 and teacher is None:
        raise ValueError(f"alpha is {alpha}, but teacher is None; give its log-probabilities, or alpha=0")
    items = float(max(len(targets), 1) if num_items is None else num_items)
    objective = _Objective(head, targets, teacher, float(temperature), float(alpha), divergence, items)
    return _HeadLoss.apply(hidden, head.weight, head.bias, objective, torch.is_grad_enabled())


@dataclass(frozen=True)
class _Objective:
    head: Head
    targets: torch.Tensor
    teacher: Target | None
    temperature: float
    alpha: float
    divergence: str
    items: float


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, objective, differentiate):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs = [differentiate and need for need in ctx.needs_input_grad[:3]]
        with torch.autocast(device, enabled=False):
            low = None if bias is None else bias.to(dtype)
            head = replace(objective.head, weight=weight.to(dtype), bias=low)  # cast once, not per block
            work = _Blockwise(replace(objective, head=head), hidden.to(dtype), needs)
            work.run()
        # divided only now, and never in fp16, where most of these small gradients would round to 0
        wide = {torch.float16: torch.float32}
        ctx.grads = [None if grad is None else grad.to(wide.get(grad.dtype, grad.dtype)).div_(objective.items)
                     for grad in work.grads]
        inputs = (hidden, weight, bias)
        if not len(hidden):
            ctx.grads = [torch.zeros_like(x) if need else None
                         for x, need in zip(inputs, needs, strict=True)]
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        soft, hard = (work.sums / objective.items).float()
        ctx.mark_non_differentiable(soft, hard)
        return objective.alpha * objective.temperature**2 * soft + (1 - objective.alpha) * hard, soft, hard

    @staticmethod
    def backward(ctx, grad_loss, *_):
        scale = grad_loss.item()  # 1, unless a caller scales the loss, as for fp16
        scaled = (grad if grad is None or scale == 1 else grad * scale for grad in ctx.grads)
        pairs = zip(scaled, ctx.dtypes, strict=True)
        return *(None if grad is None else grad.to(dtype) for grad, dtype in pairs), None, None


def rows_of_a_block(weight: torch.Tensor, dtype: torch.dtype) -> int:
    """Return how many rows of logits one matrix product with the head's weight (V, H) computes."""
    return max(1, BLOCK_BYTES.get(weight.device.type, 2**28) // (weight.shape[0] * dtype.itemsize))


class _Blockwise:
    """Computes sums and gradients of the loss over all rows, a block of logits at a time."""

    def __init__(self, objective: _Objective, hidden: torch.Tensor, needs: list[bool]) -> None:
        self.objective = objective
        self.hidden = hidden
        self.needs = needs
        # sums of the soft and of the hard terms
        self.sums = torch.zeros(2, dtype=torch.float64, device=hidden.device)
        # of the summed loss with respect to hidden states, weight and bias; None where not needed
        self.grads: list[torch.Tensor | None] = [None, None, None]

    def run(self) -> None:
        weight = self.objective.head.weight
        rows = rows_of_a_block(weight, weight.dtype)
        count = len(self.objective.targets)
        buffer = torch.empty(min(rows, count), weight.shape[0], dtype=weight.dtype, device=weight.device)
        for start in range(0, count, rows):
            block = slice(start, min(start + rows, count))
            products = torch.mm(self.hidden[block], weight.T, out=buffer[:block.stop - start])
            self._to_gradients(products, block)
            self._spread(products, block)

    def _to_gradients(self, products: torch.Tensor, block: slice) -> None:
        """Overwrite a block of products h·Wᵀ with the gradient of the loss with respect to them."""
        head = self.objective.head
        rows = max(1, CHUNK_BYTES.get(products.device.type, 2**28) // (4 * products.shape[1]))
        for start in range(block.start, block.stop, rows):
            chunk = slice(start, min(start + rows, block.stop))
            target = products[start - block.start:chunk.stop - block.start]
            logits = head.finish(target)
            grad = self._chunk(logits, chunk)
            if grad is not None:
                if head.softcap is not None:
                    grad.mul_(1 - (logits / head.softcap) ** 2)
                target.copy_(grad if head.scale == 1 else grad.mul_(head.scale))

    def _chunk(self, logits: torch.Tensor, rows: slice) -> torch.Tensor | None:
        """Add the chunk's soft and hard sums; return the gradient of its loss with respect to the logits."""
        alpha = self.objective.alpha
        tau = self.objective.temperature
        labels = self.objective.targets[rows, None]
        log_q = logits.div(tau).log_softmax(-1) if alpha > 0 and tau != 1 else None
        log_p = logits.log_softmax(-1)
        self.sums[1] -= log_p.gather(1, labels).double().sum()
        grad = None
        if alpha > 0:
            log_q = log_p if log_q is None else log_q
            log_t = self.objective.teacher(rows, log_q)
            value, grad = divergence_and_gradient(log_t, log_q, self.objective.divergence, any(self.needs))
            self.sums[0] += value.double().sum()
            if grad is not None:
                grad.mul_(alpha * tau)  # τ² of the loss, 1/τ of the inner derivative
        if any(self.needs) and alpha < 1:
            hard = log_p.exp_().mul_(1 - alpha)
            hard.scatter_add_(1, labels, torch.full_like(labels, alpha - 1, dtype=hard.dtype))
            grad = hard if grad is None else grad.add_(hard)
        return grad

    def _spread(self, grad: torch.Tensor, block: slice) -> None:
        """Propagate a block's gradient (n, V) to hidden states, weight and bias."""
        hidden, weight, bias = self.grads
        if self.needs[0]:
            hidden = torch.empty_like(self.hidden) if hidden is None else hidden
            torch.mm(grad, self.objective.head.weight, out=hidden[block])
        if self.needs[1]:
            product = grad.T @ self.hidden[block]
            weight = product if weight is None else weight.float().add_(product)  # sum over blocks in fp32
        if self.needs[2]:
            total = grad.sum(0, dtype=torch.float32)
            bias = total if bias is None else bias.add_(total)
        self.grads = [hidden, weight, bias]


def divergence_and_gradient(
    log_t: torch.Tensor, log_q: torch.Tensor, kind: str, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return each row's divergence (n,), and its gradient (n, V) with respect to the student's logits.

    Args:
        log_t, log_q: log-probabilities (n, V) of teacher and student; log_t is overwritten.
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
