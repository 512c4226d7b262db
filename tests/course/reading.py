"""Every notebook on disk, read as text."""
from __future__ import annotations

import re
from functools import lru_cache

import pytest

from course_lib.runtime import LANGUAGES
from tools import notebooks
from tools.notebooks import ROOT

NOTEBOOKS = ROOT / "notebooks"
LESSONS = ("01_why_small_models", "02_load_and_chat", "03_architectures", "04_data_quality",
           "05_distillation", "06_efficient_training", "07_quantization", "08_on_device", "09_fast_inference",
           "10_evaluation_and_selection", "11_finetune_korean_qa", "12_capstone")
EVERY = sorted(path.relative_to(NOTEBOOKS).as_posix() for lang in LANGUAGES
               for path in (NOTEBOOKS / lang).rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
TAUGHT = [name for name in EVERY if "/solutions/" not in name]
every_notebook = pytest.mark.parametrize("name", EVERY)
every_lesson = pytest.mark.parametrize("name", TAUGHT)


@lru_cache
def notebook(name: str):
    return notebooks.read(NOTEBOOKS / name)


def language(name: str) -> str:
    return name[:2]


def code_cells(name: str) -> list:
    return [cell for cell in notebook(name).cells if cell.cell_type == "code" and cell.source.strip()]


def texts(name: str) -> list:
    return [cell for cell in notebook(name).cells if cell.cell_type == "markdown"]


def outputs(name: str) -> list:
    """Pairs of a code cell and one of its outputs."""
    return [(cell, output) for cell in code_cells(name) for output in cell.outputs]


def words_of(output) -> str:
    """The text of an output that a reader sees, tables as HTML too; not a traceback."""
    shown = [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([output.get("text", ""), *shown])


def prose(text: str) -> str:
    """Markdown without code, formulas, link targets and tags: what is left are words."""
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"`[^`]*`", r"\$[^$\n]*\$", r"\]\([^)]*\)", r"<[^>]+>",
                    r"https?://\S+"):
        text = re.sub(pattern, " ", text, flags=re.S)
    return text


def hangul_and_latin(text: str) -> tuple[int, int]:
    words = prose(text)
    return len(re.findall("[가-힣]", words)), len(re.findall("[A-Za-z]", words))
