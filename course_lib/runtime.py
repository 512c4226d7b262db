"""Where the course runs: profile, language, seed, cache folder, quiet logs.

A profile says which model and which sizes a lesson uses, so that the same notebook runs on a laptop
CPU and on a Colab GPU. Nothing here imports torch before it is needed: `import course_lib` stays quick.
"""
from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

LANGUAGES = ("en", "ko")
_state = {"lang": "en"}


@dataclass(frozen=True)
class Profile:
    """What a lesson uses on this machine.

    Attributes:
        name: "cpu", "colab" (one GPU of about 16 GB) or "gpu" (24 GB and more).
        device: "cpu" or "cuda".
        model: the name that lessons hand to `load`.
        larger_model: a bigger model of the same kind, for comparisons.
        precision: a precision in which `model` fits and runs fast on this device.
        batch_size: samples in one forward pass of a training step.
    """

    name: str
    device: str
    model: str
    larger_model: str
    precision: str
    batch_size: int


PROFILES = {
    "cpu": Profile("cpu", "cpu", "smollm2-135m", "HuggingFaceTB/SmolLM2-360M-Instruct", "fp32", 4),
    "colab": Profile("colab", "cuda", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "fp16", 8),
    "gpu": Profile("gpu", "cuda", "Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b-it", "bf16", 16),
}


@lru_cache
def profile() -> Profile:
    """The profile of this machine; the environment variable COURSE_PROFILE overrides the choice.

    Without a CUDA device: "cpu". With one: "gpu" from 20 GiB of its memory on, else "colab".

    Raises:
        ValueError: COURSE_PROFILE names no profile, or one that needs a GPU that is not there.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    wanted = os.environ.get("COURSE_PROFILE")
    if wanted is None:
        if not has_gpu:
            return PROFILES["cpu"]
        memory = torch.cuda.get_device_properties(0).total_memory
        return PROFILES["gpu" if memory >= 20 * 2**30 else "colab"]
    check_choice("COURSE_PROFILE", wanted, PROFILES)
    if PROFILES[wanted].device == "cuda" and not has_gpu:
        raise ValueError(f"COURSE_PROFILE is {wanted!r}, which needs a CUDA GPU, and torch sees none; unset it or use 'cpu'")
    return PROFILES[wanted]


def cache_dir() -> Path:
    """The folder for models and other large files; COURSE_CACHE overrides the platform's place for caches."""
    override = os.environ.get("COURSE_CACHE")
    if override:
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "slm-course"


def data_dir() -> Path:
    """The folder `data/`: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data"
    return checkout if (checkout / "catalog.json").is_file() else package / "data"


def set_seed(seed: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators, on the CPU and on every GPU."""
    import numpy
    import torch

    # as transformers.set_seed does, but that imports peft and bitsandbytes: a second at the start of every lesson
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def quiet() -> None:
    """Keep logs, warnings and progress bars of the libraries out of the notebooks' outputs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch  # noqa: F401 - sets up its own loggers, so it comes before we set their levels

    # torchao reports GPU kernels that a CPU lacks; LLM.int8 reports a cast for every product, thousands a text
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops",
                 "accelerate.utils.modeling"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft 0.21 asks for it
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def keep_freed_memory() -> bool:
    """Have the C library (glibc, Linux) keep freed memory for the next tensors; says whether it could.

    By default large tensors are mapped anew each time and every first touch of a page costs a trip into the kernel: on
    a CPU up to half of a training step. The process then holds its peak until it ends. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    m_trim_threshold, m_mmap_max = -1, -4
    return mallopt is not None and all((mallopt(m_mmap_max, 0), mallopt(m_trim_threshold, 2**31 - 1)))


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what a library prints whatever its settings say: greetings, and bars for every file."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def write_json(path: Path, content: dict, indent: int = 1) -> None:
    """Write a JSON file under a temporary name, then rename: it is whole, or as it was."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    part.replace(path)


def show_progress() -> bool:
    """Whether somebody watches: a terminal or a notebook, unless COURSE_QUIET is set (tests, stored outputs)."""
    return not os.environ.get("COURSE_QUIET") and ("ipykernel" in sys.modules or sys.stderr.isatty())


def check_choice(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raise the ValueError that names the argument, what came and what is allowed, unless `value` is allowed."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(map(str, allowed))}")


def set_language(lang: str) -> None:
    """Choose the language ("en" or "ko") of everything that the package prints or draws for people."""
    check_choice("lang", lang, LANGUAGES)
    _state["lang"] = lang


def language() -> str:
    """The language that `setup` or `set_language` chose last."""
    return _state["lang"]


@contextmanager
def in_language(lang: str | None) -> Iterator[None]:
    """Speak `lang` inside the `with` block; None keeps the language that is set."""
    before = language()
    set_language(lang or before)
    try:
        yield
    finally:
        set_language(before)


@lru_cache
def _strings() -> dict[str, dict[str, str]]:
    return json.loads((Path(__file__).parent / "strings.json").read_text(encoding="utf-8"))


def text(key: str, **values: object) -> str:
    """The string `key` of `strings.json` in the chosen language, with `{name}` fields filled in.

    Raises:
        KeyError: there is no such string.
    """
    return _strings()[key][language()].format(**values)
