"""How fast a model answers: predicted from the machine's figures, and measured.

Prefill reads the whole prompt at once and takes about 2 floating-point operations per parameter and prompt
token, so arithmetic is the limit. Decoding reads every weight for each new token, so memory bandwidth is the
limit. `predict` gives the least time by this rule, which lesson 01 builds; it also counts the input
embedding, of which only a few rows are read. `roofline` counts operations and bytes one by one.
Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", arXiv 2211.05102, section 2.
"""
from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from ..loading import ATTENTION, GREEDY
from ..runtime import data_dir, language, profile, text
from .meters import peak_bytes, synchronize, timings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Device:
    """The figures of a machine that limit a model's speed.

    Attributes:
        memory, bandwidth: bytes for weights and KV cache, and bytes per second to the processor.
        flops: dense floating-point operations per second, 16 bit in `devices()`; None if not published.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float | None
    source: str
    url: str


@dataclass(frozen=True)
class Latency:
    """Seconds to the first token (None without a FLOP rate), and for each further token."""

    first_token: float | None
    per_token: float


def devices() -> dict[str, Device]:
    """The machines of `data/devices.json` by key, with names in the chosen language."""
    entries = json.loads((data_dir() / "devices.json").read_text(encoding="utf-8"))["devices"]
    return {entry["key"]: Device(entry["name"][language()], entry["memory_gb"] * 1e9,
                                 entry["bandwidth_gb_s"] * 1e9, entry["tflops"] and entry["tflops"] * 1e12,
                                 entry["source"], entry["url"]) for entry in entries}


def predict(parameters: int, weight_bytes: float, device: Device, prompt_tokens: int = 1000) -> Latency:
    """The least time of an answer on `device` by the rule of thumb, for one user at a time.

    Raises:
        ValueError: a size is below 1.
    """
    sizes = {"parameters": parameters, "weight_bytes": weight_bytes, "prompt_tokens": prompt_tokens}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    per_token = weight_bytes / device.bandwidth
    if device.flops is None:
        return Latency(None, per_token)
    return Latency(max(2 * parameters * prompt_tokens / device.flops, per_token), per_token)


def cost_per_million_tokens(per_token: float, price_per_hour: float) -> float:
    """Price of a million tokens that are generated in one stream, at `per_token` seconds each."""
    if per_token <= 0 or price_per_hour < 0:
        raise ValueError(f"per_token is {per_token} and price_per_hour {price_per_hour}; "
                         "the first must be above 0, the second not below")
    return per_token * 1e6 / 3600 * price_per_hour


def this_machine(dtype: str = "float32") -> Device:
    """The profile's device with measured figures, each the best of 7 runs; cached for each dtype."""
    return Device(text("decode.this_machine"), *_measured(dtype), text("decode.measured"), "")


@lru_cache
def _measured(dtype: str) -> tuple[float, float, float]:
    """Bytes of memory, bytes per second, and floating-point operations per second."""
    import psutil
    import torch

    options = {"dtype": getattr(torch, dtype), "device": profile().device}
    on_cpu = profile().device == "cpu"
    weights = torch.ones(256 * 2**20 // (4096 * options["dtype"].itemsize), 4096, **options)
    vector = torch.ones(4096, **options)  # decoding consists of matrix-vector products
    bandwidth = weights.nbytes / min(timings(lambda: weights @ vector, 7))
    side = 1024 if on_cpu else 8192
    square = torch.ones(side, side, **options)
    flops = 2 * side**3 / min(timings(lambda: square @ square, 7))
    memory = psutil.virtual_memory().total if on_cpu else torch.cuda.get_device_properties(0).total_memory
    return memory, bandwidth, flops


@dataclass(frozen=True)
class BenchmarkResult:
    """Medians over the runs in seconds and tokens per second, and spreads (largest minus smallest).

    Attributes:
        prompt_tokens: length of the prompt with the chat template; None for a `Timed` model.
        peak_memory: peak bytes of the warm-up run above those held before it: tensors on a GPU, resident
            memory of the process on a CPU. There, memory left by earlier runs is not counted, but mapped
            weights are if this run is the first to read them. So compare first runs.
    """

    prompt_tokens: int | None
    new_tokens: int
    first_token: float
    first_token_spread: float
    tokens_per_second: float
    tokens_per_second_spread: float
    peak_memory: int


class Timed(Protocol):
    """A loaded model of any runtime that times its own answers."""

    def timed(self, prompt: str, new_tokens: int) -> list[float]:
        """`time.perf_counter()` at the start and after each new token: new_tokens + 1 values."""


def _timed_generate(model: PreTrainedModel, inputs: dict[str, torch.Tensor], new_tokens: int) -> list[float]:
    """The times of `Timed.timed`, measured in transformers' `generate`."""
    import torch

    times = []

    def note(_: torch.Tensor) -> None:
        synchronize()
        times.append(time.perf_counter())

    streamer = SimpleNamespace(put=note, end=lambda: None)  # put gets the prompt first, then each token
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(**inputs, **GREEDY, streamer=streamer, max_new_tokens=new_tokens,
                       min_new_tokens=new_tokens)
    return [start, *times[1:]]


def benchmark(
    model: PreTrainedModel | Timed, tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: str = "Explain what a language model is.", *, new_tokens: int = 32, runs: int = 5,
) -> BenchmarkResult:
    """Measure the time to the first token and the decoding speed.

    A warm-up is followed by `runs` runs of exactly `new_tokens` tokens. `model` is a transformers model with
    its tokenizer, whose chat template formats the prompt, or a `Timed` model alone.

    Raises:
        ValueError: new_tokens below 2, runs below 1, no tokenizer, or a wrong token count of a `Timed` model.
    """
    if new_tokens < 2 or runs < 1:
        raise ValueError(f"new_tokens is {new_tokens} and runs {runs}; they must be at least 2 and 1")
    if tokenizer is not None:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                               return_dict=True).to(model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        inputs["pad_token_id"] = tokenizer.pad_token_id
        answer = partial(_timed_generate, model, inputs, new_tokens)
    elif hasattr(model, "timed"):
        prompt_tokens = None
        answer = partial(model.timed, prompt, new_tokens)
    else:
        raise ValueError("tokenizer is missing: a transformers model is timed with its tokenizer")
    with peak_bytes("cpu" if tokenizer is None else model.device, resident=True) as peak:
        answer()
    first = []
    rates = []
    for _ in range(runs):
        start, *tokens = answer()
        if len(tokens) != new_tokens:
            raise ValueError(f"model timed {len(tokens)} tokens where new_tokens is {new_tokens}; "
                             "it must not stop before")
        first.append(tokens[0] - start)
        rates.append((new_tokens - 1) / (tokens[-1] - tokens[0]))
    return BenchmarkResult(prompt_tokens, new_tokens, statistics.median(first), max(first) - min(first),
                           statistics.median(rates), max(rates) - min(rates), peak.bytes)


def available_attention(device: str | None = None, precision: str = "bf16") -> dict[str, str | None]:
    """For each `attn_implementation` of `load`: None if it runs on `device`, else the reason why not.

    By default `device` is the profile's. FlashAttention-2 needs an NVIDIA GPU of compute capability 8.0
    (Ampere) or later, flash-attn and 16-bit precision.
    Source: https://github.com/Dao-AILab/flash-attention (Installation and features).
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

    device = torch.device(device or profile().device)
    if device.type != "cuda" or not torch.cuda.is_available():
        reason = text("decode.attention.gpu")
    elif torch.cuda.get_device_capability(device) < (8, 0):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        reason = text("decode.attention.capability", found=capability)
    elif precision == "fp32":
        reason = text("decode.attention.precision")
    elif not is_flash_attn_2_available():
        reason = text("decode.attention.package")
    else:
        reason = None
    return {name: reason if name == "flash_attention_2" else None for name in ATTENTION}
