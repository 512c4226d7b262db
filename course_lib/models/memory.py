"""Estimate the memory of a model in bytes, for inference or training, before any weight is read.

Weights (with quantization scales) and KV cache are exact. A training step is counted as `cl.finetune` runs
it, in bf16 autocast and with the LM head on a block of labelled tokens at a time; a test holds it within 15 %
of what `cl.inference.peak_bytes` measures. Lesson 01 uses the estimate, lesson 06 derives it.
Sources: activations (the tensors that autograd keeps), arXiv 2205.05198, section 4.1, adapted to RMSNorm,
rotary embeddings and SwiGLU; quantization, arXiv 2305.14314.
"""
from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from ..runtime import check_choice, profile
from . import catalog

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# bytes of optimizer state per trained value
OPTIMIZERS = {"adamw": 8, "adamw8bit": 2, "sgd_momentum": 4, "sgd": 0}
METHODS = ("full", "lora", "qlora")
ATTENTION = ("eager", "sdpa")
# up to about so many tokens, plain matrix products beat the flash kernel's backward pass on a CPU
EAGER_UP_TO = 512


@dataclass(frozen=True)
class Training:
    """The settings of a training run that determine its memory.

    Attributes:
        method: "full" trains every weight; "lora" and "qlora" train adapters on all linear layers but the LM
            head (qlora: of a model in int8, nf4 or fp4).
        rank: r of the adapters' two matrices, (r, in) and (out, r).
        optimizer: "adamw" (two fp32 moments), "adamw8bit", "sgd_momentum" or "sgd".
        checkpointing: keep only each layer's input, and compute the rest again in the backward pass.
        attention: "eager" keeps all scores, "sdpa" none; by default what `cl.finetune` chooses here.
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
    """Bytes by part; `total` is their sum, and `peak` is the most that is held at one time."""

    weights: int
    kv_cache: int = 0
    activations: int = 0
    gradients: int = 0
    optimizer: int = 0
    adapters: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    @property
    def peak(self) -> int:
        """The peak of a training step without gradient accumulation.

        The backward pass frees activations while it makes gradients, so only the larger of the two counts. If
        gradients are accumulated they stay, and the peak is `total`.
        """
        return self.total - min(self.activations, self.gradients)


def estimate_memory(
    model_id: str | PreTrainedConfig, precision: str = "bf16", *, context: int = 2048, batch: int = 1,
    training: str | Training | None = None, double_quant: bool = True,
) -> MemoryEstimate:
    """Estimate the memory in bytes that one model needs for inference or for a training step.

    Args:
        model_id: a catalog id or a transformers config.
        context, batch: tokens per sequence, and sequences at a time.
        training: None for inference; "full", "lora", "qlora" or a `Training` for a step, without KV cache.
        double_quant: whether nf4 and fp4 also quantize their scales.

    Raises:
        LookupError: unknown model id.
        ValueError: unknown precision or method, a pair of them that does not go together, or a size below 1.
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
        raise ValueError(f"training method {plan.method!r} does not go with precision {precision!r}: qlora "
                         "needs a quantized base (int8, nf4, fp4), full and lora need fp32, fp16 or bf16")
    full = plan.method == "full"
    parameters = catalog.count_parameters(model_id)
    trained = parameters if full else adapter_parameters(model_id, plan.rank)
    if full:  # finetune trains in fp32, because small updates of 16-bit weights would round to 0
        weights = 4 * trained
    wide = full or precision == "fp32"
    # autocast makes a 16-bit copy of each fp32 weight that is used, and the backward pass needs it
    copies = 2 * (parameters if wide else trained)
    activations = (copies + _head_bytes(config, batch * context, full)
                   + batch * context * _token_bytes(config, context, plan, wide))
    return MemoryEstimate(weights, activations=activations, gradients=4 * trained,
                          adapters=0 if full else 4 * trained, optimizer=trained * OPTIMIZERS[plan.optimizer])


def free_memory(device: str = "cpu") -> int:
    """Return the bytes that can still be allocated on `device`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[0]
    import psutil

    return psutil.virtual_memory().available


def check_memory(
    name: str, config: PreTrainedConfig, precision: str, device: str, *, double_quant: bool = True,
) -> None:
    """Raise a MemoryError that names a precision that would fit, unless the model fits for inference."""
    free = free_memory(device)

    def needed(candidate: str) -> int:
        return estimate_memory(config, candidate, context=1024, batch=1, double_quant=double_quant).total

    if needed(precision) <= free:
        return
    fits = next((candidate for candidate in ("bf16", "int8", "nf4") if needed(candidate) <= free), None)
    advice = f"{fits!r} would fit ({needed(fits) / 1e9:.2f} GB)" if fits else (
        f"even 'nf4' takes {needed('nf4') / 1e9:.2f} GB: choose a smaller model")
    raise MemoryError(f"{name} in {precision} takes about {needed(precision) / 1e9:.2f} GB, and "
                      f"{free / 1e9:.2f} GB are free on {device}; {advice}, or pass force=True")


def kv_cache_bytes(config: PreTrainedConfig, context: int, batch: int = 1, width: int = 2) -> int:
    """Return the bytes of keys and values: 2 · layers · key/value heads · head_dim · width per token.

    `width` is in bytes per value. A layer with sliding-window attention keeps no more tokens than its window.
    """
    window = getattr(config, "sliding_window", None)
    uniform = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or uniform
    slides = [bool(window) and kind == "sliding_attention" for kind in kinds]
    tokens = sum(min(context, window) if sliding else context for sliding in slides)
    return 2 * batch * tokens * _key_value_size(config) * width


def adapter_parameters(model_id: str | PreTrainedConfig, rank: int) -> int:
    """Count the values of LoRA adapters on all linear layers but the LM head: Σ rank · (in + out).

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; peft's target_modules="all-linear".
    """
    return sum(rank * (matrix.rows + matrix.columns) for matrix in catalog.linear_shapes(model_id).matrices)


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _key_value_size(config: PreTrainedConfig) -> int:
    """Return the number of values in the key (or the value) of one token in one layer."""
    return (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * _head_dim(config)


def _inference_activations(config: PreTrainedConfig, context: int, batch: int, width: int) -> int:
    """Return the peak of the prefill: one layer's tensors, and fp32 logits of one token per sequence."""
    # residual stream, normed input, three tensors of SwiGLU
    layer = batch * context * (4 * config.hidden_size + 3 * config.intermediate_size) * width
    return layer + batch * config.vocab_size * 4


def _token_bytes(config: PreTrainedConfig, context: int, plan: Training, wide: bool) -> int:
    """Return the bytes that autograd keeps for one token in all layers.

    Each layer keeps the fp32 inputs of its two norms; queries, keys, values and the attention's output; gate,
    its activation, up and their product; and the 16-bit inputs of the matrix products. If hidden states are
    fp32 (`wide`) rather than 16 bit, it also keeps the norms' outputs, and autocast casts one copy each for
    q, k, v, gate and up. Eager attention keeps keys and values repeated for every head, and the scores'
    softmax in fp32 and in 16 bit; SDPA keeps one number per head.
    """
    hidden = config.hidden_size
    heads = config.num_attention_heads
    query = heads * _head_dim(config)
    chosen = plan.attention or ("eager" if context <= EAGER_UP_TO and profile().device == "cpu" else "sdpa")
    attention = (6 * query + 6 * heads * context if chosen == "eager"
                 else 2 * query + 4 * _key_value_size(config) + 4 * heads)
    layer = ((16 if wide else 8) * hidden + 2 * ((5 if wide else 2) * hidden + query)
             + 8 * config.intermediate_size + attention)
    if plan.checkpointing:  # every layer's input, and all of the one layer that is computed again
        return config.num_hidden_layers * (4 if wide else 2) * hidden + layer
    return config.num_hidden_layers * layer


def _head_bytes(config: PreTrainedConfig, tokens: int, full: bool) -> int:
    """Return the bytes of a block of 16-bit logits, its fp32 chunks, and the head's gradient if `full`."""
    from .lm_head import BLOCK_BYTES, CHUNK_BYTES

    logits = 2 * tokens * config.vocab_size  # as if every token were labelled
    held = min(logits, BLOCK_BYTES["cpu"]) + 2 * min(2 * logits, CHUNK_BYTES["cpu"])
    if full:  # a 16-bit product (V, H) beside the weight's 16-bit copy; several blocks are summed in fp32
        held += (4 if logits <= BLOCK_BYTES["cpu"] else 10) * config.vocab_size * config.hidden_size
    return held
