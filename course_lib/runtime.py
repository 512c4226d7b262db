"""Where the course runs: profile, language, seed, cache folder, quiet logs.

A profile names the model and the sizes that a lesson uses, so that the same notebook runs on a laptop's CPU
and on a Colab GPU. torch is imported only when it is needed, which keeps `import course_lib` fast.
"""
from __future__ import annotations

import ctypes
import errno
import importlib.util
import io
import json
import logging
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

LANGUAGES = ("en", "ko")
_state = {"lang": "en"}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class Profile:
    """The models and sizes that a lesson uses on this machine."""

    name: str  # "cpu", "colab" (one GPU of about 16 GB) or "gpu" (24 GB and more)
    device: str  # "cpu" or "cuda"
    model: str  # what lessons pass to `cl.load`
    larger_model: str  # a bigger model of the same kind, for comparisons
    precision: str  # in which `model` fits and runs fast on this device
    batch_size: int  # samples in one forward pass of a training step


PROFILES = {
    "cpu": Profile("cpu", "cpu", "smollm2-135m", "HuggingFaceTB/SmolLM2-360M-Instruct", "fp32", 4),
    "colab": Profile("colab", "cuda", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "fp16", 8),
    "gpu": Profile("gpu", "cuda", "Qwen/Qwen2.5-7B-Instruct", "google/gemma-2-9b-it", "bf16", 16),
}


@lru_cache
def profile() -> Profile:
    """Return this machine's profile, or the one that the environment variable COURSE_PROFILE names.

    Without a CUDA device it is "cpu", with one of at least 20 GiB of memory "gpu", otherwise "colab".

    Raises:
        ValueError: COURSE_PROFILE names no profile, or one that needs a GPU that is missing.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    wanted = os.environ.get("COURSE_PROFILE")
    if wanted is None:
        large = has_gpu and torch.cuda.get_device_properties(0).total_memory >= 20 * 2**30
        return PROFILES["gpu" if large else "colab" if has_gpu else "cpu"]
    check_choice("COURSE_PROFILE", wanted, PROFILES)
    if PROFILES[wanted].device == "cuda" and not has_gpu:
        raise ValueError(f"COURSE_PROFILE is {wanted!r}, which needs a CUDA GPU, and torch sees none; "
                         "unset it or use 'cpu'")
    return PROFILES[wanted]


def cache_dir() -> Path:
    """Return the folder for models and other large files: COURSE_CACHE, or one in the platform's cache."""
    if override := os.environ.get("COURSE_CACHE"):
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "slm-course"


def data_dir() -> Path:
    """Return the folder `data/`, which is beside the package in a checkout and inside it in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data"
    return checkout if (checkout / "catalog.json").is_file() else package / "course_data"


def set_seed(seed: int = 0) -> None:
    """Seed the random generators of Python, NumPy and torch, on the CPU and on every GPU."""
    import numpy
    import torch

    # not transformers.set_seed, which imports peft and bitsandbytes: a second for every lesson
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def quiet() -> None:
    """Keep logs, warnings and progress bars of the libraries out of the notebooks' outputs."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch  # noqa: F401 - sets up its own loggers, so it comes before we set their levels

    # torchao reports GPU kernels that a CPU lacks; LLM.int8 reports a cast for every matrix product
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.autograd._functions",
                 "bitsandbytes.backends.cpu.ops", "accelerate.utils.modeling"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    # peft 0.21 uses it
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def keep_freed_memory() -> bool:
    """Make glibc (Linux) keep freed memory for the next tensors, and return whether it does.

    By default it maps each large tensor anew, and the page faults take up to half of a training step on a
    CPU. With this setting, the process holds its peak memory until it ends. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # M_MMAP_MAX is -4, M_TRIM_THRESHOLD is -1
    return mallopt is not None and all((mallopt(-4, 0), mallopt(-1, 2**31 - 1)))


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress all output inside the `with` block, for libraries that have no setting for it."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def write_json(path: Path, content: dict, indent: int = 1) -> None:
    """Write a JSON file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def show_progress() -> bool:
    """Return whether progress is shown: in a terminal or a notebook, unless COURSE_QUIET is set."""
    return not os.environ.get("COURSE_QUIET") and ("ipykernel" in sys.modules or sys.stderr.isatty())


def check_choice(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raise a ValueError that lists the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(map(str, allowed))}")


def need_package(name: str, version: str) -> None:
    """Raise a ModuleNotFoundError that says how to install an optional package, if it is missing."""
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"the package {name} is not installed: pip install '{name}>={version}'")


def set_language(lang: str) -> None:
    """Set the language ("en" or "ko") of everything that the package prints or draws."""
    check_choice("lang", lang, LANGUAGES)
    _state["lang"] = lang


def language() -> str:
    """Return the language that `setup` or `set_language` set last."""
    return _state["lang"]


@contextmanager
def in_language(lang: str | None) -> Iterator[None]:
    """Use the language `lang` inside the `with` block; None keeps the one that is set."""
    before = language()
    set_language(lang or before)
    try:
        yield
    finally:
        set_language(before)


@lru_cache
def _strings() -> dict[str, dict[str, str]]:
    return json.loads((Path(__file__).parent / "strings.json").read_text(encoding="utf-8"))


_PARTICLES = re.compile(r"\((이/가|은/는|을/를|과/와|으로/로)\)")  # stands after a field of a Korean string
# how a Latin word ends → a syllable with that final consonant
_LATIN = {r"[LR]$|^[lr]$|[a-z]le?$": "얼", r"[MNmn]$|[a-z]([mn]e|ng)$": "언"}


def text(key: str, **values: object) -> str:
    """Return the string `key` of `strings.json` in the language that is set, with its fields filled in.

    In a Korean string, "{name}(이/가)" takes the particle that fits the value of `name` (see `josa`).
    """
    filled = _strings()[key][language()].format(**values)
    if language() == "ko":
        filled = _PARTICLES.sub(lambda mark: josa(filled[:mark.start()], mark[1]), filled)
    return filled


def josa(word: object, pair: str) -> str:
    """Return the Korean particle that fits after a word or value, by its last sound when read aloud.

    A digit is read by its name (3 is 삼), a capital too (LLM ends in 엠), other Latin words as words (file is
    파일). Closing brackets, quotes and backticks are skipped. `pair` holds the forms after a consonant and
    after a vowel, such as "이/가"; for "으로/로", ㄹ counts as a vowel.
    """
    after_consonant, after_vowel = pair.split("/")
    ending = re.search(r"([가-힣]|\d|[A-Za-z]+|%)[^가-힣\dA-Za-z%]*$", str(word))
    last = ending[1] if ending else "%"
    if last.isdecimal():
        last = "영일이삼사오육칠팔구"[int(last)]
    elif last.isascii():
        last = next((syllable for sound, syllable in _LATIN.items() if re.search(sound, last)), "가")
    final = (ord(last) - ord("가")) % 28  # Unicode has 28 endings to a syllable: 0 is none, 8 is ㄹ
    return after_vowel if final == 0 or final == 8 and after_consonant == "으로" else after_consonant


def progress(steps: Iterable) -> Iterable:
    """Wrap `steps` in a progress bar, which appears where `show_progress` allows it."""
    from tqdm.auto import tqdm

    return tqdm(steps, disable=not show_progress(), leave=False)


@contextmanager
def replacing(target: str | Path, mark: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `target`, and rename it to `target` when the block ends without error.

    Both paths are on one disk, so `target` is always either the old file or the complete new one. A folder
    that is not empty is replaced only if it contains the file `mark`, which identifies an earlier export.

    Raises:
        OSError: the disk is full (see `errno`); nothing is left of the attempt.
        FileExistsError: `target` is a folder with other content.
    """
    target = Path(target).absolute()
    if target.is_dir() and any(target.iterdir()) and not (mark and (target / mark).is_file()):
        raise FileExistsError(f"{str(target)!r} is a folder with other files in it; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = {"prefix": f".{target.name}-", "dir": target.parent}
    with tempfile.TemporaryDirectory(**beside, ignore_cleanup_errors=True) as work:
        temporary = Path(work) / target.name
        try:
            yield temporary
        except OSError as error:
            if error.errno not in _FULL:
                raise
            message = f"the disk is full: {str(target)!r} was not written. Make room and try again"
            raise OSError(error.errno, message) from error
        if target.is_dir():
            target.rename(Path(work) / "earlier")
        os.replace(temporary, target)


def use_korean_font() -> None:
    """Make matplotlib use NanumGothic (from koreanize-matplotlib), with Latin and Korean glyphs."""
    import matplotlib
    from matplotlib import font_manager

    # only its fonts: importing the package needs distutils, which Python 3.12 removed
    package = Path(importlib.util.find_spec("koreanize_matplotlib").submodule_search_locations[0])
    if "NanumGothic" not in font_manager.get_font_names():
        for style in ("", "Bold"):
            font_manager.fontManager.addfont(package / "fonts" / f"NanumGothic{style}.ttf")
    matplotlib.rcParams.update({"font.family": "NanumGothic", "axes.unicode_minus": False, "figure.dpi": 90,
                                "axes.spines.top": False, "axes.spines.right": False})


def setup(lang: str = "en", seed: int = 0) -> None:
    """Start a lesson: set language, seed, quiet logs and Korean font, and print where it runs."""
    import torch
    import transformers

    set_language(lang)
    quiet()
    set_seed(seed)
    use_korean_font()
    machine = profile()
    if machine.device == "cuda":
        device = torch.cuda.get_device_name()
    else:
        keep_freed_memory()
        device = text("setup.cpu", threads=torch.get_num_threads())
    print(text("setup.line", profile=machine.name, device=device, python=sys.version.split()[0],
               torch=torch.__version__, transformers=transformers.__version__))
