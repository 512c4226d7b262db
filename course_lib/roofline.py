"""The roofline: whether a phase of an answer waits for memory or for arithmetic, and how fast it can be at best.

A machine does at most `flops` operations and moves at most `bandwidth` bytes a second, so work of n operations on m bytes
runs at min(flops, bandwidth · n / m) operations a second. n / m is its arithmetic intensity ("operational" in the paper);
where the two limits meet, at flops / bandwidth operations a byte, is the ridge. Below it memory decides, above it arithmetic.

Counted are the matrix products, a multiplication and an addition each: 2 operations for every weight of a linear layer
and token, and 4 · D for every query head and key in attention (scores, then the mix of values). Looking up the input
embedding is none; the LM head is one, tied or not, and the prefill needs it for the last token only. Counted bytes are
the weights, read once for all tokens of a pass (an untied input embedding apart), and the keys and values that are
written or read; activations are taken to stay in the processor's caches. So the figures are a limit, as
`decode.predict` is, with the pieces that the rule of thumb leaves out.

Sources: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model for multicore
architectures", doi 10.1145/1498765.1498785; Pope et al. 2022, arXiv 2211.05102, section 2 (what prefill and decoding read
and compute). Lesson 09 draws it.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import catalog
from .decode import Device, this_machine
from .memory import kv_cache_bytes
from .runtime import check_choice, profile

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Phase:
    """One pass of a model.

    Attributes:
        kind: "prefill" or "decode".
        size: tokens of the prompt (prefill), or sequences at a time (decode).
        tokens: read (prefill) or made (decode) by the pass.
        operations, bytes: computed and moved by the pass.
    """

    kind: str
    size: int
    tokens: int
    operations: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes


@dataclass(frozen=True)
class Roofline:
    """A machine's limits, and the phases of a model under them."""

    device: Device
    phases: tuple[Phase, ...] = ()

    @property
    def ridge(self) -> float:
        """Operations a byte from which on arithmetic is the limit."""
        return self.device.flops / self.device.bandwidth

    def attainable(self, intensity: float) -> float:
        """The most operations a second at this arithmetic intensity: Williams et al., the formula of the model."""
        return min(self.device.flops, self.device.bandwidth * intensity)

    def tokens_per_second(self, phase: Phase) -> float:
        """The most tokens a second, of the prompt (prefill) or of all sequences together (decode)."""
        return phase.tokens * self.attainable(phase.intensity) / phase.operations


def roofline(
    model_id: str | PreTrainedConfig | None = None, precision: str | None = None, *, prompts: Sequence[int] = (16, 512),
    batches: Sequence[int] = (1, 16), context: int = 1024, device: Device | None = None,
) -> Roofline:
    """The limits of this machine, measured, and where a model's prefill and decoding stand under them.

    Args:
        model_id: an id of the catalog, or a dense transformers config; None for the machine alone.
        precision: "fp32", "fp16", "bf16", "int8", "nf4", "fp4"; the profile's by default. Quantized weights are read in
            their few bits and computed with in bf16.
        prompts: lengths in tokens, a prefill of one sequence each.
        batches: sequences at a time, a decode step each.
        context: tokens that every sequence of a decode step attends to, the new one included.
        device: another machine, of `decode.devices()`.

    Raises:
        LookupError: unknown model id. ValueError: unknown precision, sizes below 1, or a device without a FLOP rate.
    """
    precision = precision or profile().precision
    check_choice("precision", precision, catalog.PRECISIONS)
    for name, sizes in (("prompts", prompts), ("batches", batches), ("context", [context])):
        if min(sizes, default=1) < 1:
            raise ValueError(f"{name} is {min(sizes)}; it must be at least 1")
    device = device or this_machine({"fp32": "float32", "fp16": "float16"}.get(precision, "bfloat16"))
    if device.flops is None:
        raise ValueError(f"device is {device.name}, which has no published FLOP rate, and so no ridge")
    return Roofline(device, () if model_id is None else _phases(model_id, precision, prompts, batches, context))


def _phases(model_id: str | PreTrainedConfig, precision: str, prompts: Sequence[int], batches: Sequence[int],
            context: int) -> tuple[Phase, ...]:
    config = catalog.config(model_id) if isinstance(model_id, str) else model_id
    layers = sum(weights for weights, _ in catalog.shapes(model_id)[1])
    head, width = config.vocab_size * config.hidden_size, 4 if precision == "fp32" else 2
    read = catalog.weight_bytes(model_id, precision) - (0 if config.tie_word_embeddings else head * width)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_key = 4 * config.num_attention_heads * head_dim  # operations of attention for one query token and one key

    def prefill(prompt: int) -> Phase:
        seen = sum(_attended(config, length) for length in range(1, prompt + 1))
        return Phase("prefill", prompt, prompt, 2 * (layers * prompt + head) + a_key * seen,
                     read + kv_cache_bytes(config, prompt, 1, width))

    def decode(batch: int) -> Phase:
        return Phase("decode", batch, batch, batch * (2 * (layers + head) + a_key * _attended(config, context)),
                     read + kv_cache_bytes(config, context, batch, width))

    return (*map(prefill, prompts), *map(decode, batches))


def _attended(config: PreTrainedConfig, context: int) -> int:
    """Keys that one token attends to with `context` tokens there, summed over the layers; a window hides those before it."""
    return config.num_hidden_layers * kv_cache_bytes(config, context, 1, 1) // kv_cache_bytes(config, 1, 1, 1)
