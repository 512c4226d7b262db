"""Shared by the exports: the source folder of a model, and a separate process for each converter.

A source is a folder written by `save_pretrained`, or a model in memory with its tokenizer. Only safetensors
are read: a `.bin` file is a pickle, and unpickling can run code of its author. The converters of llama.cpp
and onnxruntime-genai patch libraries, print, exit on errors and use much memory, so each has its own process.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading import check_plain_model, resolve
from ..runtime import _FULL, silenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FAILED = "course_lib failed: "
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")


@contextmanager
def as_folder(
    model_or_folder: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[Path]:
    """Give the model as a folder of safetensors, config and tokenizer; it may last only as long as the block.

    Raises:
        ValueError: a hub id, a quantized model, an unmerged adapter, or a model without a tokenizer.
        LookupError, FileNotFoundError: there is no such folder, or it lacks config, safetensors or tokenizer.
    """
    with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
        if not isinstance(model_or_folder, (str, Path)):
            check_plain_model(model_or_folder, tokenizer)
            folder = Path(work) / Path(model_or_folder.config.name_or_path or "model").name
            with silenced():  # transformers draws a progress bar for every file
                model_or_folder.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            yield folder
            return
        folder = resolve(model_or_folder)
        if not isinstance(folder, Path):
            raise ValueError(f"model_or_folder is the hub id {folder!r}; load it first: "
                             f"model, tokenizer = cl.load({folder!r})")
        yield check_folder(folder if tokenizer is None else _with_tokenizer(folder, tokenizer, Path(work)))


def check_folder(folder: Path) -> Path:
    """Return the folder if it holds config, safetensors and tokenizer; else raise a FileNotFoundError."""
    if not (folder / "config.json").is_file():
        missing = "config.json; give a folder that save_pretrained wrote"
    elif not any(folder.glob("*.safetensors")):
        missing = ("*.safetensors (files ending in .bin are pickles, which can run code, and are not read); "
                   "save the model anew with save_pretrained")
    elif not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing = (f"tokenizer ({', '.join(TOKENIZER_FILES[:2])}); save one there with "
                   "tokenizer.save_pretrained(folder), or pass tokenizer=")
    else:
        return folder
    raise FileNotFoundError(f"folder {str(folder)!r} holds no {missing}")


def _with_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, work: Path) -> Path:
    """Make a folder in `work` with links to `folder`'s config and weights, and with this tokenizer."""
    copy = work / folder.name
    copy.mkdir()
    for path in [*folder.glob("*.safetensors"), *folder.glob("*config.json"), *folder.glob("*.index.json")]:
        if path.name == "tokenizer_config.json":
            continue
        try:
            os.symlink(path.absolute(), copy / path.name)
        except OSError:  # Windows without the right to make links
            shutil.copyfile(path, copy / path.name)
    tokenizer.save_pretrained(copy)
    return copy


def run_module(arguments: Sequence[str | Path], what: str, *, first_path: Path | None = None) -> str:
    """Run `python -m …` silently and offline, and return its output.

    Args:
        what: names the work in the error message, such as "the conversion to ONNX".
        first_path: a folder that the process searches for packages before all others.

    Raises:
        OSError, ValueError: as the process reports them; an OSError also if the disk is full.
        RuntimeError: it failed in another way; the message ends with its last line of output.
    """
    paths = [first_path, Path(__file__).resolve().parents[2], os.environ.get("PYTHONPATH")]
    quiet = {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path), "HF_HUB_OFFLINE": "1",
             "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8",
             "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-m", *map(str, arguments)], env={**os.environ, **quiet},
                            check=False, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if result.returncode == 0:
        return result.stdout
    words = result.stderr.strip() or result.stdout.strip()
    last = words.splitlines()[-1] if words else f"it ended with code {result.returncode}"
    if last.startswith(_FAILED):
        kind, *details = json.loads(last.removeprefix(_FAILED))
        raise {"OSError": OSError, "ValueError": ValueError}.get(kind, RuntimeError)(*details)
    for code in _FULL:
        if os.strerror(code) in words:
            raise OSError(code, os.strerror(code))
    raise RuntimeError(f"{what} failed: {textwrap.shorten(last, 500)}")


def report_failure(error: Exception) -> None:
    """Pass an error from the process that `run_module` started to its parent, as the last line of stderr."""
    kind = next((kind.__name__ for kind in (OSError, ValueError) if isinstance(error, kind)), "RuntimeError")
    number = getattr(error, "errno", None)
    report = [kind, str(error)] if number is None else [kind, number, str(error)]
    print("\n" + _FAILED + json.dumps(report), file=sys.stderr)
