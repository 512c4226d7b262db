"""How fast a model can answer, predicted from the machine and measured on it.

An answer has two phases. The prefill reads the whole prompt at once: about 2 floating-point operations for every
parameter and prompt token, so the arithmetic decides. Decoding makes one token after another, and each needs every
weight once: bytes of weights over memory bandwidth, so the memory decides. `predict` is that rule of thumb for the
least time (it counts the input embedding as well, of which only a few rows are read), `benchmark` the measurement.
Lesson 01 builds the rule, lesson 09 goes deeper: `roofline` counts operations and bytes one by one, and
`speculative_generate` gets several tokens out of one reading of the weights (both in modules of their own).

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", arXiv 2211.05102, section 2.
"""
from __future__ import annotations

import importlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from .loading import ATTENTION
from .memory import Peak
from .runtime import data_dir, language, profile, text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ELSEWHERE = {"roofline": "roofline", "speculative_generate": "speculative"}  # name → its module, imported when asked for


def __getattr__(name: str):
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f".{_ELSEWHERE[name]}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Device:
    """A machine, as far as speed is concerned.

    Attributes:
        memory: bytes of memory for weights and cache.
        bandwidth: bytes a second between memory and processor.
        flops: floating-point operations a second in 16 bit, dense; None where no figure is published.
        source: where the figures come from, with `url`.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float | None
    source: str
    url: str


@dataclass(frozen=True)
class Latency:
    """Seconds to the first token (None where the device's FLOP rate is unknown), and for each token after it."""

    first_token: float | None
    per_token: float


def devices() -> dict[str, Device]:
    """The machines of `data/devices.json` by key, named in the chosen language."""
    entries = json.loads((data_dir() / "devices.json").read_text(encoding="utf-8"))["devices"]
    return {entry["key"]: Device(entry["name"][language()], entry["memory_gb"] * 1e9, entry["bandwidth_gb_s"] * 1e9,
                                 entry["tflops"] and entry["tflops"] * 1e12, entry["source"], entry["url"])
            for entry in entries}


def predict(parameters: int, weight_bytes: float, device: Device, prompt_tokens: int = 1000) -> Latency:
    """The least time that an answer takes on `device` by the rule of thumb, for one user at a time.

    Args:
        parameters: of the model; weight_bytes: their size in the chosen precision.
        prompt_tokens: length of the prompt in tokens.

    Raises:
        ValueError: a size below 1.
    """
    for name, value in (("parameters", parameters), ("weight_bytes", weight_bytes), ("prompt_tokens", prompt_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    per_token = weight_bytes / device.bandwidth
    if device.flops is None:
        return Latency(None, per_token)
    return Latency(max(2 * parameters * prompt_tokens / device.flops, per_token), per_token)


def cost_per_million_tokens(per_token: float, price_per_hour: float) -> float:
    """Price of a million generated tokens, one stream, at `per_token` seconds each, in the currency of `price_per_hour`."""
    if per_token <= 0 or price_per_hour < 0:
        raise ValueError(f"per_token is {per_token} and price_per_hour {price_per_hour}; the first must be above 0, "
                         "the second not below")
    return per_token * 1e6 / 3600 * price_per_hour


def this_machine(dtype: str = "float32") -> Device:
    """The profile's device, measured once: best of several reads of 256 MB, best of several matrix products.

    Bandwidth is that of a matrix-vector product, the operation that decoding consists of.
    """
    return Device(text("decode.this_machine"), *_measured(dtype), text("decode.measured"), "")


@lru_cache
def _measured(dtype: str) -> tuple[float, float, float]:
    """Memory, bandwidth and FLOP rate."""
    import psutil
    import torch

    where, kind = profile().device, getattr(torch, dtype)
    rows = 256 * 2**20 // (4096 * kind.itemsize)
    weights, vector = torch.ones(rows, 4096, dtype=kind, device=where), torch.ones(4096, dtype=kind, device=where)
    bandwidth = weights.nbytes / min(timings(lambda: weights @ vector, 7))
    side = 1024 if where == "cpu" else 8192
    square = torch.ones(side, side, dtype=kind, device=where)
    flops = 2 * side**3 / min(timings(lambda: square @ square, 7))
    memory = psutil.virtual_memory().total if where == "cpu" else torch.cuda.get_device_properties(0).total_memory
    return memory, bandwidth, flops


def timings(work: Callable[[], object], runs: int) -> list[float]:
    """Wall time in seconds of each of `runs` runs, after one that warms up and does not count."""
    times = []
    for _ in range(runs + 1):
        _synchronize()
        start = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - start)
    return times[1:]


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class BenchmarkResult:
    """Medians over the runs, and their spread (largest minus smallest), in seconds and tokens a second.

    Attributes:
        prompt_tokens: with the chat template; None for a `Timed` object, which does not say.
        peak_memory: bytes at the peak of the run that warms up, above what was held before it: tensors on a GPU, resident
            memory of the process on a CPU. There weights count where a runtime maps their file and reads it only now, and
            memory that an earlier run left to the process does not: compare first runs.
    """

    prompt_tokens: int | None
    new_tokens: int
    first_token: float
    first_token_spread: float
    tokens_per_second: float
    tokens_per_second_spread: float
    peak_memory: int


class Timed(Protocol):
    """A loaded model, of whatever runtime, that times its own answers."""

    def timed(self, prompt: str, new_tokens: int) -> list[float]:
        """`time.perf_counter()` at the start and when each new token was ready: new_tokens + 1 values."""


class _Stopwatch:
    """A streamer for `generate` that notes when the prompt arrives and when each token does."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        _synchronize()
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class _Generation:
    """transformers' `generate`, as a `Timed` object."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def inputs(self, prompt: str):
        return self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                                  return_tensors="pt", return_dict=True).to(self.model.device)

    def timed(self, prompt: str, new_tokens: int) -> list[float]:
        import torch

        inputs, watch = self.inputs(prompt), _Stopwatch()
        start = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(**inputs, do_sample=False, temperature=1.0, top_p=1.0, top_k=50, max_new_tokens=new_tokens,
                                min_new_tokens=new_tokens, streamer=watch, pad_token_id=self.tokenizer.pad_token_id)
        return [start, *watch.times[1:]]  # the first entry is the prompt


def benchmark(
    model: PreTrainedModel | Timed, tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: str = "Explain what a language model is.", *, new_tokens: int = 32, runs: int = 5,
) -> BenchmarkResult:
    """Measure time to the first token and decode rate, apart: a warm-up, then `runs` runs of exactly `new_tokens` tokens.

    Args:
        model: a transformers model with its tokenizer, or a `Timed` object without one.
        prompt: the user's words; the chat template is added.

    Raises:
        ValueError: fewer than 2 new tokens (no decode step to time), no run, a model without its tokenizer, or a `Timed`
            object that made another number of tokens.
    """
    if new_tokens < 2 or runs < 1:
        raise ValueError(f"new_tokens is {new_tokens} and runs {runs}; they must be at least 2 and 1")
    if tokenizer is None and not hasattr(model, "timed"):
        raise ValueError("tokenizer is missing: a transformers model is timed with its tokenizer")
    route = model if tokenizer is None else _Generation(model, tokenizer)
    with _extra_memory("cpu" if tokenizer is None else model.device) as peak:
        route.timed(prompt, new_tokens)
    first, rates = [], []
    for _ in range(runs):
        start, *tokens = route.timed(prompt, new_tokens)
        if len(tokens) != new_tokens:
            raise ValueError(f"model timed {len(tokens)} tokens where new_tokens is {new_tokens}; it must not stop before")
        first.append(tokens[0] - start)
        rates.append((new_tokens - 1) / (tokens[-1] - tokens[0]))
    read = None if tokenizer is None else route.inputs(prompt)["input_ids"].shape[1]
    return BenchmarkResult(read, new_tokens, statistics.median(first), max(first) - min(first), statistics.median(rates),
                           max(rates) - min(rates), peak.bytes)


@contextmanager
def _extra_memory(device: str | torch.device) -> Iterator[Peak]:
    """The most memory held inside the block above that at its start; resident memory is looked at every millisecond."""
    import psutil
    import torch

    found = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        found.bytes = max(found.bytes, process.memory_info().rss - before)

    def watch() -> None:
        while not done.wait(0.001):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        look()
        done.set()
        thread.join()


def available_attention(device: str | None = None, precision: str = "bf16") -> dict[str, str | None]:
    """For each attention that `load(attn=...)` takes, None where it runs here, or the reason why not.

    FlashAttention-2 needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later, the package flash-attn and 16-bit
    computation. Source: https://github.com/Dao-AILab/flash-attention (Installation and features).

    Args:
        device: "cpu", "cuda", "cuda:1", …; the profile's by default.
        precision: as in `load`.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

    place, reason = torch.device(device or profile().device), None
    if place.type != "cuda" or not torch.cuda.is_available():
        reason = text("decode.attention.gpu")
    elif torch.cuda.get_device_capability(place) < (8, 0):
        reason = text("decode.attention.capability", found=".".join(map(str, torch.cuda.get_device_capability(place))))
    elif precision == "fp32":
        reason = text("decode.attention.precision")
    elif not is_flash_attn_2_available():
        reason = text("decode.attention.package")
    return {name: reason if name == "flash_attention_2" else None for name in ATTENTION}
