"""What fits where: bytes of a model at rest, in use and in training, before a single weight is read.

Weights are exact (counted on the meta device, with the true cost of quantization's scales: `catalog.weight_bytes`),
and so is the KV cache. A training step is described as `finetune` runs it, in bf16 autocast with the LM head on a block
of labelled tokens at a time, and `peak_bytes` measures a real one: a test holds both within 15 % of each other. Lesson
01 uses the estimate, lesson 06 derives it.

Sources: activations by counting the tensors that autograd keeps, after Korthikanti et al. 2022 (arXiv 2205.05198,
section 4.1), for RMSNorm, rotary embeddings and SwiGLU; quantization cost after Dettmers et al. 2023 (arXiv 2305.14314).
"""
from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import catalog
from .runtime import check_choice, profile

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# bytes of optimizer state for one trained value
OPTIMIZERS = {"adamw": 8, "adamw8bit": 2, "sgd_momentum": 4, "sgd": 0}
METHODS = ("full", "lora", "qlora")
ATTENTION = ("eager", "sdpa")
EAGER_UP_TO = 512  # tokens for which `training.fast_attention` takes the eager kernel on a CPU


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as memory is concerned.

    Attributes:
        method: "full" trains every weight; "lora" and "qlora" train adapters on every linear layer but the LM head
            (qlora: on a quantized base, so the estimate's precision must be int8, nf4 or fp4).
        rank: r of the adapters' two matrices, (r, in) and (out, r).
        optimizer: "adamw" (two fp32 moments), "adamw8bit", "sgd_momentum" or "sgd".
        checkpointing: keep only each layer's input and compute the rest again in the backward pass.
        attention: "eager" keeps every score, "sdpa" none; by default what `finetune` chooses under this machine's profile.
    """

    method: str = "lora"
    rank: int = 16
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: str | None = None

    def __post_init__(self) -> None:
        check_choice("training method", self.method, METHODS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("attention", self.attention, (None, *ATTENTION))
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part. `total` is their sum, `peak` what is held at one time."""

    weights: int
    kv_cache: int = 0
    activations: int = 0
    gradients: int = 0
    optimizer: int = 0
    adapters: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.gradients + self.optimizer + self.adapters

    @property
    def peak(self) -> int:
        """The most that a training step without accumulation holds: the backward pass frees the activations while it
        makes the gradients, so only the larger of the two counts. (Accumulated gradients stay: then it is `total`.)
        """
        return self.total - min(self.activations, self.gradients)


def estimate(
    model_id: str | PreTrainedConfig, precision: str = "bf16", *, context: int = 2048, batch: int = 1,
    training: str | Training | None = None, double_quant: bool = True,
) -> MemoryEstimate:
    """Memory in bytes for one model.

    Args:
        model_id: an id of the catalog, or a transformers config.
        precision: of the weights: "fp32", "fp16", "bf16", "int8", "nf4", "fp4".
        context: tokens of each sequence.
        batch: sequences at a time.
        training: None for inference; "full", "lora", "qlora" or a `Training`. A training step has no KV cache.
        double_quant: whether nf4 and fp4 quantize their scales too.

    Raises:
        LookupError: unknown model id. ValueError: unknown precision or method, or sizes below 1.
    """
    for name, value in (("context", context), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    config = catalog.config(model_id) if isinstance(model_id, str) else model_id
    weights = catalog.weight_bytes(model_id, precision, double_quant=double_quant)
    if training is None:
        width = 4 if precision == "fp32" else 2  # bytes of a hidden value; quantized models compute in 16 bit
        return MemoryEstimate(weights, kv_cache=kv_cache_bytes(config, context, batch, width),
                              activations=_inference_activations(config, context, batch, width))
    plan = Training(training) if isinstance(training, str) else training
    quantized = precision in ("int8", "nf4", "fp4")
    if quantized != (plan.method == "qlora"):
        raise ValueError(f"training method {plan.method!r} does not go with precision {precision!r}: qlora needs a quantized "
                         "base (int8, nf4, fp4), full and lora need fp32, fp16 or bf16")
    full = plan.method == "full"
    trained = catalog.count_parameters(model_id) if full else adapter_parameters(model_id, plan.rank)
    if full:  # updates of 16-bit weights would round to nothing, so finetune holds what it trains in fp32
        weights = 4 * trained
    wide = full or precision == "fp32"
    # autocast makes a 16-bit copy of each fp32 weight that is used, and the backward pass needs it
    copies = 2 * (trained if not wide else catalog.count_parameters(model_id))
    activations = copies + _head_bytes(config, batch * context, full) + _layer_bytes(config, context, batch, plan, wide)
    return MemoryEstimate(weights, activations=activations, gradients=4 * trained, adapters=0 if full else 4 * trained,
                          optimizer=trained * OPTIMIZERS[plan.optimizer])


@dataclass
class Peak:
    """What `peak_bytes` found, once its block has ended."""

    bytes: int = 0


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """Measure the most tensor memory allocated at one time inside the `with` block, above what was there at its start.

    On a GPU from torch's allocator. On a CPU from the allocator's events in torch's profiler, which costs a few
    microseconds an operation; memory that existed before and is freed inside is not counted there.
    Source: https://docs.pytorch.org/docs/stable/profiler.html (profile_memory).
    """
    import torch

    gc.collect()  # a finished trainer is a cycle; freed inside the block it would count as negative
    found = Peak()
    if profile().device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.bytes = torch.cuda.max_memory_allocated() - before
        return
    with _no_native_logs(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                                   profile_memory=True) as record:
        yield found
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        found.bytes = max(found.bytes, held)


@contextmanager
def _no_native_logs() -> Iterator[None]:
    """The profiler's C++ side writes to the process's stderr; Python's own stderr in a notebook is another."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measured_bytes(model: PreTrainedModel) -> int:
    """Bytes that a loaded model's weights hold, each shared tensor once, with bitsandbytes' scales and tables.

    `model.get_memory_footprint()` leaves those scales out.
    """
    tensors = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)  # 4 bit
        if state is not None:
            tensors += [state.absmax, state.code]
            if state.nested:
                tensors += [state.offset, state.state2.absmax, state.state2.code]
        if getattr(weight, "SCB", None) is not None:  # int8: one scale a row
            tensors.append(weight.SCB)
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def kv_cache_bytes(config: PreTrainedConfig, context: int, batch: int = 1, width: int = 2) -> int:
    """Bytes of the keys and values of `context` tokens: 2 · layers · kv heads · head_dim · width a token.

    A layer with sliding-window attention keeps no more tokens than its window.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * (
        config.num_hidden_layers)
    tokens = sum(min(context, window) if window and kind == "sliding_attention" else context for kind in kinds)
    return 2 * batch * tokens * _key_value_size(config) * width


def adapter_parameters(model_id: str | PreTrainedConfig, rank: int) -> int:
    """Values in LoRA adapters of rank r on every linear layer but the LM head: Σ r · (in + out).

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; peft's target_modules="all-linear".
    """
    return sum(rank * (weights // rows + rows) for weights, rows in catalog.shapes(model_id)[1])


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_value_size(config: PreTrainedConfig) -> int:
    """Values in the key (or the value) of one token in one layer."""
    return (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * _head_dim(config)


def _inference_activations(config: PreTrainedConfig, context: int, batch: int, width: int) -> int:
    """Peak of the prefill: one layer's tensors (residual, normed, the three of SwiGLU), and the last token's logits in fp32."""
    layer = batch * context * (4 * config.hidden_size + 3 * config.intermediate_size) * width
    return layer + batch * config.vocab_size * 4


def _layer_bytes(config: PreTrainedConfig, context: int, batch: int, plan: Training, wide: bool) -> int:
    """What autograd keeps of the layers, a token and layer at a time; `wide`: the hidden states are fp32, not 16 bit.

    For each of the two norms its input in fp32 (wide: its output too); the 16-bit inputs of the products (autocast casts
    an fp32 input once for each of q, k, v, gate and up); the attention's output; queries, keys, values; in the
    feed-forward block gate, its activation, up and their product. Eager attention repeats keys and values for every head
    and keeps the scores' softmax in fp32 and in 16 bit; SDPA one number a head.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    query = heads * _head_dim(config)
    token_layer = (16 if wide else 8) * hidden + 2 * ((5 if wide else 2) * hidden + query) + 8 * config.intermediate_size
    eager = context <= EAGER_UP_TO and profile().device == "cpu" if plan.attention is None else plan.attention == "eager"
    token_layer += 6 * query + 6 * heads * context if eager else 2 * query + 4 * _key_value_size(config) + 4 * heads
    layers = config.num_hidden_layers
    kept = layers * (4 if wide else 2) * hidden + token_layer if plan.checkpointing else layers * token_layer
    return batch * context * kept


def _head_bytes(config: PreTrainedConfig, tokens: int, full: bool) -> int:
    """What the loss holds: a block of 16-bit logits, two fp32 chunks of it, and in full training the head's gradient.

    That gradient (V, H) is a 16-bit product, with the weight's own 16-bit copy beside it; with more than one block, the
    products are summed in fp32. Every token is taken as labelled.
    """
    from .fused_loss import BLOCK_BYTES, CHUNK_BYTES

    row = 2 * config.vocab_size
    block = min(tokens * row, BLOCK_BYTES["cpu"])
    chunks = 2 * min(2 * tokens * row, CHUNK_BYTES["cpu"])
    if not full:
        return block + chunks
    weight = config.vocab_size * config.hidden_size
    return block + chunks + (4 if tokens * row <= BLOCK_BYTES["cpu"] else 10) * weight
