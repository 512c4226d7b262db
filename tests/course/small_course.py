"""A course of one small lesson in a temporary root, and what tests do with it."""
from __future__ import annotations

import copy
import inspect
from pathlib import Path

from nbformat.v4 import new_code_cell, new_notebook

from tools import execution, filling, findings, notebooks, pairs

NAME = "01_first.ipynb"
SOLUTIONS = "solutions/01_first.ipynb"
BADGE = "[![Open in Colab](old.svg)](old)"
LOSS = 'f"loss {loss:.2f} after {steps} steps"'
KOREAN_LOSS = 'f"{steps}스텝 뒤 손실 {loss:.2f}"'
CODE = f'%time loss, steps = 1.0, 3\nprint({LOSS}, data["loss"])  # why'
KOREAN_CODE = f'%time loss, steps = 1.0, 3\nprint({KOREAN_LOSS}, data["loss"])  # 이유'
TABLE = {LOSS: KOREAN_LOSS, "# why": "# 이유"}


def configure(root: Path, repository: str) -> None:
    """Write the one line of pyproject.toml that the notebooks need."""
    lines = f'[project.urls]\nRepository = "https://github.com/{repository}"\n'
    (root / "pyproject.toml").write_text(lines, encoding="utf-8")


def set_up_cell(root: Path):
    """The English set-up cell."""
    return new_code_cell(notebooks.setup_source("en", root), id="setup", metadata={"tags": ["setup"]})


def save(root: Path, lang: str, cells: list, name: str = NAME) -> None:
    """Write a notebook of these cells."""
    notebooks.write(new_notebook(cells=copy.deepcopy(cells)), notebooks.path_of(name, lang, root))


def cells_of(root: Path, lang: str, name: str = NAME) -> dict:
    """The cells of a notebook by their ids."""
    return {cell.id: cell for cell in notebooks.read(notebooks.path_of(name, lang, root)).cells}


def edit(root: Path, lang: str, change, name: str = NAME) -> None:
    """Apply `change` to the list of cells of one notebook; it changes the list, or returns another."""
    cells = notebooks.read(notebooks.path_of(name, lang, root)).cells
    save(root, lang, change(cells) or cells, name)


def change_source(cell_id: str, source: str):
    """A change for `edit`: another source for one cell."""
    def change(cells):
        next(cell for cell in cells if cell.id == cell_id).source = source
    return change


def problems(root: Path) -> list[tuple[str, str]]:
    """The findings of a course as (cell id, problem)."""
    return [(finding.cell, finding.problem) for finding in pairs.status(root)]


def replace_root(monkeypatch, folder: Path) -> None:
    """Point ROOT, and the default arguments that hold it, to `folder`."""
    original = notebooks.ROOT
    for module in (execution, filling, findings, notebooks, pairs):
        monkeypatch.setattr(module, "ROOT", folder)
        for _, function in inspect.getmembers(module, inspect.isfunction):
            positional = function.__defaults__ or ()
            keywords = function.__kwdefaults__ or {}
            if original in positional:
                replaced = tuple(folder if value is original else value for value in positional)
                monkeypatch.setattr(function, "__defaults__", replaced)
            if original in keywords.values():
                monkeypatch.setattr(function, "__kwdefaults__", {**keywords, "root": folder})
