"""List, read and write the notebooks, and insert the configured set-up code and badges.

Names are paths below notebooks/en or notebooks/ko, such as "solutions/01_why_small_models.ipynb".
"""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.runtime import LANGUAGES

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600  # seconds; a GPU profile may download a model inside one cell
SETUP = '''try:
    import course_lib as cl
except ModuleNotFoundError:  # {on_colab}
    import google.colab  # {elsewhere}
    from importlib.metadata import version
    %pip install --quiet "torch=={{version('torch')}}" "course_lib @ git+https://github.com/{repository}"
    import course_lib as cl

cl.setup(lang="{lang}")'''
SETUP_COMMENTS = {
    "en": {"on_colab": "on Colab: install the course and keep the torch that is there",
           "elsewhere": "elsewhere the course starts with: python course.py lab"},
    "ko": {"on_colab": "Colab에서는 이미 설치된 torch를 그대로 두고 과정을 설치합니다",
           "elsewhere": "그 밖의 환경에서는 python course.py lab으로 시작합니다"},
}


def notebook_names(numbers: list[str] | None = None, *, root: Path = ROOT,
                   solutions: bool = True) -> list[str]:
    """Return the lessons in order, then their solutions; `numbers` ("01", "2") selects lessons.

    Raises:
        LookupError: no lesson has that number; the message lists the lessons.
    """
    folder = root / "notebooks" / "en"
    lessons = sorted(path.name for path in folder.glob("*.ipynb"))
    if numbers:
        wanted = [number.zfill(2) for number in numbers]
        unknown = [number for number in wanted if not any(name.startswith(f"{number}_") for name in lessons)]
        if unknown:
            known = ", ".join(name.removesuffix(".ipynb") for name in lessons)
            raise LookupError(f"no lesson {', '.join(unknown)}; there are {known}")
        lessons = [name for name in lessons if name[:2] in wanted]
    solved = [name for name in lessons if solutions and (folder / "solutions" / name).is_file()]
    return lessons + [f"solutions/{name}" for name in solved]


def all_names(root: Path = ROOT) -> list[str]:
    """Return the names of the notebooks that exist in either language, with solutions."""
    folders = [root / "notebooks" / lang for lang in LANGUAGES]
    paths = [(folder, path) for folder in folders for path in folder.rglob("*.ipynb")]
    return sorted({path.relative_to(folder).as_posix() for folder, path in paths
                   if ".ipynb_checkpoints" not in path.parts})


def path_of(name: str, lang: str, root: Path = ROOT) -> Path:
    return root / "notebooks" / lang / name


def read(path: Path) -> NotebookNode:
    """Read a notebook as nbformat version 4."""
    import nbformat

    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook to a temporary file, then rename it, so that an interrupted write loses nothing."""
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def is_setup(cell: NotebookNode) -> bool:
    """Tell whether this is the set-up cell, whose source is generated."""
    return "setup" in tags(cell)


def korean_table(cell: NotebookNode | None) -> dict[str, str | None]:
    """Return a copy of a Korean code cell's table: English word → Korean word, or None if it is the same."""
    return dict(cell.metadata.get("ko", {})) if cell is not None else {}


def repository(root: Path = ROOT) -> str:
    """Return "owner/name" from pyproject.toml's [project.urls]; LookupError if it is not there."""
    configured = (root / "pyproject.toml").read_text(encoding="utf-8")
    line = re.search(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"', configured, re.M)
    if not line:
        wanted = 'Repository = "https://github.com/OWNER/NAME"'
        raise LookupError(f"pyproject.toml has no {wanted} under [project.urls]; add it")
    return line.group(1)


def setup_source(lang: str, root: Path = ROOT) -> str:
    """Return the code of the set-up cell in one language."""
    return SETUP.format(repository=repository(root), lang=lang, **SETUP_COMMENTS[lang])


def badge(name: str, lang: str, root: Path = ROOT) -> str:
    """Return the Markdown of a notebook's "Open in Colab" badge, with paths relative to the notebook."""
    up = "../" * (name.count("/") + 1)
    link = f"https://colab.research.google.com/github/{repository(root)}/blob/main/notebooks/{lang}/{name}"
    return f"[![Open in Colab]({up}assets/open-in-colab.svg)]({link})"


def configured_source(cell: NotebookNode, name: str, lang: str, root: Path = ROOT) -> str:
    """Return the source of a cell with the current set-up code or badge."""
    if is_setup(cell):
        return setup_source(lang, root)
    if cell.cell_type != "markdown":
        return cell.source
    return re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: badge(name, lang, root), cell.source)
