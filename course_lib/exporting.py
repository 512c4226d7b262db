"""What every export has in common: where the model comes from, and that nothing half-written is ever found.

A source is a folder in `save_pretrained`'s form, or a model in memory with its tokenizer. Weights are read from
safetensors alone: a `.bin` file is a pickle, and unpickling runs whatever code its author put into it. The converters
themselves (llama.cpp's, onnxruntime-genai's) run in a process of their own: they patch libraries, print, and end the
process when something is wrong; none of it reaches the notebook, and their memory is free afterwards.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FAILED = "course_lib failed: "


@contextmanager
def replacing(target: str | Path, mark: str | None = None) -> Iterator[Path]:
    """A temporary place beside `target`; what the block puts there takes the name once the block has ended well.

    Both lie on one disk, so that the last step is a rename: whoever looks finds the old file, or the whole new one.

    Args:
        mark: the file by which a folder is known as an earlier export, to be replaced; without it no folder is that holds
            something.

    Raises:
        OSError: the disk is full (`errno` says so); the message names `target`, and nothing stays of the attempt.
        FileExistsError: `target` is a folder with other things in it than an earlier export.
    """
    target = Path(target).absolute()
    if target.is_dir() and any(target.iterdir()) and not (mark and (target / mark).is_file()):
        raise FileExistsError(f"{str(target)!r} is a folder with other files in it; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as work:
        made = Path(work) / target.name
        try:
            yield made
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(error.errno, f"the disk is full: {str(target)!r} was not written. Make room and try again") from error
        if target.is_dir():
            target.rename(Path(work) / "earlier")
        os.replace(made, target)


@contextmanager
def as_folder(
    model_or_folder: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Path]:
    """The model as a folder of safetensors, config and tokenizer: the one given, or one written for the time being.

    Raises:
        ValueError: a quantized model, one with an adapter that is not merged, or a model without a tokenizer.
        FileNotFoundError: the folder lacks its config, safetensors or tokenizer.
    """
    if isinstance(model_or_folder, (str, Path)):
        folder = resolve(model_or_folder)
        if not isinstance(folder, Path):
            raise ValueError(f"model_or_folder is the hub id {folder!r}; load it first: model, tokenizer = cl.load({folder!r})")
        if tokenizer is None:
            yield check_folder(folder)
            return
        with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
            yield check_folder(_with_tokenizer(folder, tokenizer, Path(work)))
        return
    _check_model(model_or_folder, tokenizer)
    with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
        folder = Path(work) / (Path(model_or_folder.config.name_or_path or "model").name)
        model_or_folder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder


def check_folder(folder: Path) -> Path:
    """`folder`, if an export can start from it: config, weights as safetensors, tokenizer.

    Raises:
        FileNotFoundError: names what is missing.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no config.json; give one that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"folder {str(folder)!r} holds no *.safetensors (files ending in .bin are pickles, which can "
                                "run code, and are not read); save the model anew with save_pretrained")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"folder {str(folder)!r} holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])}); save one "
                                "there with tokenizer.save_pretrained(folder), or pass tokenizer=")
    return folder


def _check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):  # a PeftModel is none either
        hint = "merge its adapter first: cl.finetune.merge(model)" if hasattr(model, "peft_config") else (
            "give a folder, or a model as cl.load gives it")
        raise ValueError(f"model_or_folder is a {type(model).__name__}; {hint}")
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the model has an adapter that is not merged; cl.finetune.merge(model) adds it to the weights")
    if getattr(model, "quantization_method", None):
        method = getattr(model.quantization_method, "value", model.quantization_method)
        raise ValueError(f"the model is quantized ({method}), and would be rounded a second time; "
                         "load it in bf16 or fp32 and export that")
    if tokenizer is None:
        raise ValueError("tokenizer is missing: a model in memory has none, so pass tokenizer= as well")


def _with_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, work: Path) -> Path:
    """A folder in `work` with links to `folder`'s config and weights, and with this tokenizer."""
    made = work / folder.name
    made.mkdir()
    for path in [*folder.glob("*.safetensors"), *folder.glob("*config.json"), *folder.glob("*.index.json")]:
        try:
            os.symlink(path.absolute(), made / path.name)
        except OSError:  # Windows, without the right to
            shutil.copyfile(path, made / path.name)
    for name in ("tokenizer_config.json", *TOKENIZER_FILES):
        (made / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(made)
    return made


def need_package(name: str, version: str) -> None:
    """Raise a ModuleNotFoundError that says how to install the package, unless it is there."""
    if find_spec(name) is None:
        raise ModuleNotFoundError(f"the package {name} is not installed: pip install '{name}>={version}'")


def run_module(arguments: Sequence[str | Path], what: str) -> str:
    """Run `python -m …` without a sound, offline; its output, or its last words in an error.

    Raises:
        OSError: with the `errno` of the process, such as ENOSPC. ValueError: it says that the input is at fault.
        RuntimeError: it failed otherwise.
    """
    here = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    quiet = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false",
             "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-m", *map(str, arguments)], env={**os.environ, **quiet}, capture_output=True,
                            text=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode == 0:
        return result.stdout
    words = result.stderr.strip() or result.stdout.strip()
    last = words.splitlines()[-1] if words else f"it ended with code {result.returncode}"
    if last.startswith(_FAILED):
        report = json.loads(last.removeprefix(_FAILED))
        raise {"OSError": OSError, "ValueError": ValueError}.get(report["kind"], RuntimeError)(*report["arguments"])
    for code in _FULL:
        if os.strerror(code) in words:
            raise OSError(code, os.strerror(code))
    raise RuntimeError(f"{what} failed: {textwrap.shorten(last, 500)}")


def report_failure(error: Exception) -> None:
    """In the process that `run_module` started: hand the error over, as the last line of stderr."""
    if isinstance(error, OSError) and error.errno is not None:
        report = {"kind": "OSError", "arguments": [error.errno, str(error)]}
    else:
        kind = "OSError" if isinstance(error, OSError) else "ValueError" if isinstance(error, ValueError) else "RuntimeError"
        report = {"kind": kind, "arguments": [str(error)]}
    print("\n" + _FAILED + json.dumps(report), file=sys.stderr)

