"""Fast training on this device: the precision, the attention kernel, and the Trainer's arguments."""
from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.memory import EAGER_UP_TO
from ..runtime import profile, show_progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments


@lru_cache
def fast_dtype(device: str = "cpu") -> torch.dtype:
    """The dtype for fast training on this device: bf16 where it is faster, fp16 on old GPUs, else fp32.

    On a CPU, a timed matrix product decides: AVX-512 BF16 or AMX make bf16 up to five times as fast as fp32.
    """
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device != "cpu":
        return torch.float32

    def seconds(dtype: torch.dtype) -> float:
        left = torch.ones(512, 576, dtype=dtype)
        right = torch.ones(576, 1536, dtype=dtype)
        readings = []
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            readings.append(time.perf_counter() - started)
        return min(readings)

    return torch.bfloat16 if 1.5 * seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def fast_attention(model: PreTrainedModel, longest: int) -> None:
    """Select the attention kernel for training on samples of up to `longest` tokens.

    On a CPU: "eager" up to `models.memory.EAGER_UP_TO` tokens, else "sdpa". On a GPU, nothing changes.
    """
    if model.device.type == "cpu" and model.config._attn_implementation in ("eager", "sdpa"):
        # eager has the faster backward pass on short samples; sdpa doesn't store the (T, T) scores
        wanted = "eager" if longest <= EAGER_UP_TO else "sdpa"
        if wanted != model.config._attn_implementation and getattr(model, "_supports_sdpa", True):
            model.set_attn_implementation(wanted)


def training_arguments(
    output_dir: str | Path, model: PreTrainedModel, **settings: object,
) -> TrainingArguments:
    """`TrainingArguments` from `defaults`, overridden by `settings`.

    All settings: https://huggingface.co/docs/transformers/main_classes/trainer
    """
    from transformers import TrainingArguments

    return TrainingArguments(str(output_dir), **{**defaults(model), **settings})


def defaults(model: PreTrainedModel) -> dict[str, object]:
    """Trainer arguments for this model's device: precision, batch size, optimizer, no reports."""
    import torch

    device = model.device.type
    dtype = fast_dtype(device)
    size = profile().batch_size
    return {
        "bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16, "use_cpu": device == "cpu",
        "per_device_train_batch_size": size, "per_device_eval_batch_size": size, "report_to": "none",
        "disable_tqdm": not show_progress(), "dataloader_pin_memory": device == "cuda", "logging_steps": 1,
        "save_strategy": "no", "optim": "adamw_torch_fused", "lr_scheduler_type": "linear",
    }


def unpack_4bit(model: PreTrainedModel) -> None:
    """Restore the layout of 4-bit weights that has gradients.

    On a CPU with AVX-512 BF16, bitsandbytes (0.50) packs 4-bit weights at the first forward pass in
    evaluation mode. Packed weights have no backward pass: training would learn nothing and raise no error.
    Unpacking rounds the scales to 8 bits again.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                # the only public call that unpacks in place on a CPU; its result is not needed
                layer.state_dict()
