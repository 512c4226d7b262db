"""The roofline: whether memory or arithmetic limits a phase of an answer, and how fast it can be.

Work of n operations on m bytes runs at min(flops, bandwidth · n / m) operations per second. If the arithmetic
intensity n / m is below the ridge, flops / bandwidth, memory is the limit; above it, arithmetic is.
Operations are 2 per token and weight of a linear layer, and 4 · D per query head and key of attention. The LM
head counts, in prefill for the last token only; the input embedding does not. Bytes are the weights, read
once per pass (without an untied input embedding), and the keys and values, written or read. Activations are
assumed to stay in the processor's caches, so the speeds are upper limits.

Sources: Williams, Waterman and Patterson 2009, "Roofline", doi 10.1145/1498765.1498785; Pope et al. 2022,
arXiv 2211.05102, section 2. Lesson 09 draws it.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models import catalog
from ..models.memory import kv_cache_bytes
from ..runtime import check_choice, profile
from .benchmark import Device, this_machine

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Phase:
    """One forward pass of a model, with its operations and the bytes that it moves.

    Attributes:
        kind: "prefill" or "decode".
        size: tokens of the prompt (prefill), or sequences in the batch (decode).
        tokens: tokens that the pass reads (prefill) or generates (decode).
    """

    kind: str
    size: int
    tokens: int
    operations: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in operations per byte."""
        return self.operations / self.bytes


@dataclass(frozen=True)
class Roofline:
    """The limits of a machine, and the phases of a model on it."""

    device: Device
    phases: tuple[Phase, ...] = ()

    @property
    def ridge(self) -> float:
        """The intensity in operations per byte from which arithmetic is the limit."""
        return self.device.flops / self.device.bandwidth

    def attainable(self, intensity: float) -> float:
        """The most operations per second at this arithmetic intensity."""
        return min(self.device.flops, self.device.bandwidth * intensity)

    def tokens_per_second(self, phase: Phase) -> float:
        """The most tokens per second, of the prompt (prefill) or of all sequences together (decode)."""
        return phase.tokens * self.attainable(phase.intensity) / phase.operations


def roofline(
    model_id: str | PreTrainedConfig | None = None, precision: str | None = None, *,
    prompts: Sequence[int] = (16, 512), batches: Sequence[int] = (1, 16), context: int = 1024,
    device: Device | None = None,
) -> Roofline:
    """Measure this machine's limits, and compute a model's prefill and decode phases under them.

    Args:
        model_id: an id of the catalog or a config of a dense transformers model; None for the machine alone.
        precision: as in `load`; by default the profile's. Quantized weights are computed with in bf16.
        prompts, batches: tokens of each prefill (of one sequence), and sequences of each decode step.
        context: tokens that each sequence of a decode step attends to, including the new one.
        device: another machine of `inference.devices()`; nothing is measured then.

    Raises:
        LookupError: unknown model id.
        ValueError: unknown precision, a size below 1, or a device without a FLOP rate.
    """
    precision = precision or profile().precision
    check_choice("precision", precision, catalog.PRECISIONS)
    for name, sizes in (("prompts", prompts), ("batches", batches), ("context", [context])):
        if min(sizes, default=1) < 1:
            raise ValueError(f"{name} is {min(sizes)}; it must be at least 1")
    device = device or this_machine({"fp32": "float32", "fp16": "float16"}.get(precision, "bfloat16"))
    if device.flops is None:
        raise ValueError(f"device is {device.name}, which has no published FLOP rate, and so no ridge")
    if model_id is None:
        return Roofline(device)
    return Roofline(device, _phases(model_id, precision, prompts, batches, context))


def _phases(
    model_id: str | PreTrainedConfig, precision: str, prompts: Sequence[int], batches: Sequence[int],
    context: int,
) -> tuple[Phase, ...]:
    config = catalog.config(model_id) if isinstance(model_id, str) else model_id
    layers = catalog.linear_shapes(model_id).inside
    head = config.vocab_size * config.hidden_size
    width = 4 if precision == "fp32" else 2  # bytes of a value that is not quantized
    read = catalog.weight_bytes(model_id, precision) - (0 if config.tie_word_embeddings else head * width)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_key = 4 * config.num_attention_heads * head_dim  # operations of attention per query token and key

    def prefill(prompt: int) -> Phase:
        keys = sum(_attended(config, length) for length in range(1, prompt + 1))
        return Phase("prefill", prompt, prompt, 2 * (layers * prompt + head) + per_key * keys,
                     read + kv_cache_bytes(config, prompt, 1, width))

    def decode(batch: int) -> Phase:
        operations = batch * (2 * (layers + head) + per_key * _attended(config, context))
        return Phase("decode", batch, batch, operations, read + kv_cache_bytes(config, context, batch, width))

    return (*map(prefill, prompts), *map(decode, batches))


def _attended(config: PreTrainedConfig, context: int) -> int:
    """Keys that a token attends to among `context` tokens, summed over layers; a window hides some."""
    return config.num_hidden_layers * kv_cache_bytes(config, context, 1, 1) // kv_cache_bytes(config, 1, 1, 1)
