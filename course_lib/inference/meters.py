"""Measure the cost of work on this machine: seconds, peak memory, bytes of a model's weights.

`peak_bytes` counts the tensors that torch allocates. `resident_memory` and `peak_bytes(resident=True)` ask
the operating system for the memory of the process, including libraries and mapped files; runtimes other than
torch show only there. `measured_bytes` counts the weights of a loaded model.
"""
from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import profile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def machine() -> str:
    """Processor, cores, memory, system and versions in one line, to be stored with measurements."""
    import platform

    import psutil
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB{device}, "
            f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}")


def synchronize() -> None:
    """Wait for the GPU, if there is one: calls to it return before their work is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def timings(work: Callable[[], object], runs: int) -> list[float]:
    """Wall-clock seconds of each of `runs` runs, after a warm-up run that does not count."""
    return [seconds(work) for _ in range(runs + 1)][1:]


def resident_memory() -> tuple[int, float]:
    """Resident bytes of this process, and how many are backed by no file (NaN on macOS and Windows)."""
    import psutil

    resident = psutil.Process().memory_info().rss
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return resident, float("nan")
    return resident, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@dataclass
class Peak:
    """The result of `peak_bytes`, valid once its `with` block has ended."""

    bytes: int = 0


@contextmanager
def peak_bytes(device: str | torch.device | None = None, *, resident: bool = False) -> Iterator[Peak]:
    """Measure the peak memory in the `with` block, in bytes above what was held at its start.

    By default `device` is the profile's. On a GPU, torch's allocator counts the tensors. On a CPU, the memory
    events of torch's profiler do, at a few microseconds per operation; the freeing of older memory is left
    out. With `resident` a CPU's figure is the process's resident memory instead, read every millisecond.
    Source: https://docs.pytorch.org/docs/stable/profiler.html (profile_memory).
    """
    import torch

    gc.collect()  # a finished trainer is a cycle; if freed inside the block, it would lower the peak
    peak = Peak()
    device = torch.device(device or profile().device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    elif resident:
        with _watching_resident_memory(peak):
            yield peak
    else:
        with _no_native_logs(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                                       profile_memory=True) as record:
            yield peak
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        peak.bytes = max(accumulate((event.nbytes() for event in events), initial=0))


@contextmanager
def _watching_resident_memory(peak: Peak) -> Iterator[None]:
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    done = threading.Event()

    def look() -> None:
        peak.bytes = max(peak.bytes, process.memory_info().rss - before)

    def watch() -> None:
        while not done.wait(0.001):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        look()
        done.set()
        thread.join()


@contextmanager
def _no_native_logs() -> Iterator[None]:
    """Silence the process's stderr, where the profiler's C++ code writes past Python's `sys.stderr`."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measured_bytes(model: PreTrainedModel) -> int:
    """Bytes of a loaded model's weights, each shared tensor once, with bitsandbytes' scales and tables."""
    tensors = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        # get_memory_footprint() leaves out what bitsandbytes adds
        state = getattr(weight, "quant_state", None)  # 4 bit
        if state is not None:
            tensors += [state.absmax, state.code]
            if state.nested:
                tensors += [state.offset, state.state2.absmax, state.state2.code]
        if getattr(weight, "SCB", None) is not None:  # int8: one scale a row
            tensors.append(weight.SCB)
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
