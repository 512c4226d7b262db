"""Keeping the course whole: set-up of a lesson, the two languages of a pair, execution.

A pair is `notebooks/en/X.ipynb` and `notebooks/ko/X.ipynb`: the same cells in the same order with the same ids.
English is where a lesson is edited. `sync` carries code from en to ko and leaves Korean text alone; each Korean
text cell keeps the hash of the English that it renders, so `status` names the cells that went stale.

    python -m course_lib.lessons status              what is missing, stale or different
    python -m course_lib.lessons sync [NN …]         carry cells and code over; then translate what status names
    python -m course_lib.lessons translated NN ID …  the Korean of these cells renders the English as it is now
    python -m course_lib.lessons execute [NN …]      run both languages and store the outputs (for committing)
    python -m course_lib.lessons run [NN …]          run without touching the sources; copies go to build/
"""
from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import runtime
from .graders import check  # noqa: F401 - lessons.check is one of the course's names
from .runtime import LANGUAGES

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600  # seconds; a GPU profile may download a model inside one cell
SETUP = '''try:
    import course_lib as cl
except ModuleNotFoundError:  # on Colab: install the course and keep the torch that is there
    import google.colab  # elsewhere the course starts with: python course.py lab
    from importlib.metadata import version
    %pip install --quiet "torch=={{version('torch')}}" "course_lib @ git+https://github.com/{repository}"
    import course_lib as cl

cl.setup(lang="{lang}")'''


def setup(lang: str = "en", seed: int = 0) -> None:
    """Start a lesson: language of all output, seed, quiet logs, a font with Korean glyphs; prints where it runs."""
    import torch
    import transformers

    from . import show

    runtime.set_language(lang)
    runtime.quiet()
    runtime.set_seed(seed)
    show.use_korean_font()
    here = runtime.profile()
    on_cpu = here.device != "cuda"
    if on_cpu:
        runtime.keep_freed_memory()
    device = runtime.text("setup.cpu", threads=torch.get_num_threads()) if on_cpu else torch.cuda.get_device_name()
    print(runtime.text("setup.line", profile=here.name, device=device, python=sys.version.split()[0],
                       torch=torch.__version__, transformers=transformers.__version__))


# --- the notebooks on disk ---------------------------------------------------------------------------------------

def notebook_names(numbers: list[str] | None = None, *, root: Path = ROOT, solutions: bool = True) -> list[str]:
    """Names such as "01_why_small_models.ipynb" and "solutions/01_…", in order; `numbers` ("01", "2") chooses.

    Raises:
        LookupError: no lesson has that number; the message lists the lessons there are.
    """
    base = root / "notebooks" / "en"
    lessons = sorted(path.name for path in base.glob("*.ipynb"))
    if numbers:
        wanted = [number.zfill(2) for number in numbers]
        unknown = [number for number in wanted if not any(name.startswith(f"{number}_") for name in lessons)]
        if unknown:
            known = ", ".join(name.removesuffix(".ipynb") for name in lessons)
            raise LookupError(f"no lesson {', '.join(unknown)}; there are {known}")
        lessons = [name for name in lessons if name[:2] in wanted]
    also = [f"solutions/{name}" for name in lessons if solutions and (base / "solutions" / name).is_file()]
    return lessons + also


def read(path: Path) -> NotebookNode:
    """A notebook from disk, as nbformat version 4."""
    import nbformat

    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook under a temporary name, then rename, so that an interrupted write loses nothing."""
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)


# --- a pair of languages -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Finding:
    """One thing that keeps a pair from being whole; `cell` is a cell id, or "" for the notebook."""

    notebook: str
    cell: str
    problem: str

    def __str__(self) -> str:
        return f"{self.notebook} {self.cell}: {self.problem}" if self.cell else f"{self.notebook}: {self.problem}"


def text_hash(source: str) -> str:
    """The short hash that a Korean cell keeps of the English text that it renders."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def repository(root: Path = ROOT) -> str:
    """The one configured "owner/name": `Repository` in pyproject.toml's [project.urls]."""
    configured = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"', configured, re.M)
    if not found:
        raise LookupError('pyproject.toml has no Repository = "https://github.com/OWNER/NAME" under [project.urls]')
    return found.group(1)


def badge(name: str, lang: str, root: Path = ROOT) -> str:
    """Markdown of the "Open in Colab" badge of one notebook, relative to that notebook's folder."""
    up = "../" * (name.count("/") + 1)
    link = f"https://colab.research.google.com/github/{repository(root)}/blob/main/notebooks/{lang}/{name}"
    return f"[![Open in Colab]({up}assets/open-in-colab.svg)]({link})"


def is_setup(cell: NotebookNode) -> bool:
    """Whether this is the one code cell that differs between the languages."""
    return "setup" in cell.metadata.get("tags", [])


def _own_text(cell: NotebookNode, name: str, lang: str, root: Path) -> str:
    """A cell's source with what follows from the configuration put in: the set-up code and the badge."""
    if is_setup(cell):
        return SETUP.format(repository=repository(root), lang=lang)
    return re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: badge(name, lang, root), cell.source)


def sync(name: str, root: Path = ROOT) -> None:
    """Give the Korean notebook the English one's cells, order and code; Korean text, by cell id, stays.

    A text cell that is new in English arrives untranslated; `status` says so until `translated` is called.
    """
    paths = {lang: root / "notebooks" / lang / name for lang in LANGUAGES}
    en = read(paths["en"])
    korean = {cell.id: cell for cell in read(paths["ko"]).cells} if paths["ko"].is_file() else {}
    ko = copy.deepcopy(en)
    renewed = {}  # hash of an English text → its hash with today's badge: another badge makes no translation stale
    for cell in en.cells:
        before, cell.source = cell.source, _own_text(cell, name, "en", root)
        renewed[text_hash(before)] = text_hash(cell.source)
    for index, cell in enumerate(ko.cells):
        old = korean.get(cell.id)
        if cell.cell_type == "code":
            if old is not None and old.cell_type == "code" and (old.source == cell.source or is_setup(cell)):
                cell.outputs, cell.execution_count = old.outputs, old.execution_count
            else:
                cell.outputs, cell.execution_count = [], None
        elif old is not None and old.cell_type == cell.cell_type:
            ko.cells[index] = cell = old
            if "en_hash" in cell.metadata:
                cell.metadata["en_hash"] = renewed.get(cell.metadata["en_hash"], cell.metadata["en_hash"])
        cell.source = _own_text(cell, name, "ko", root)
    write(en, paths["en"])
    write(ko, paths["ko"])


def translated(name: str, cells: list[str], root: Path = ROOT) -> None:
    """Record that the Korean of these cells (all text cells where `cells` is empty) renders today's English.

    Raises:
        LookupError: a cell id that is no text cell of both notebooks.
    """
    en = {cell.id: cell for cell in read(root / "notebooks" / "en" / name).cells if cell.cell_type == "markdown"}
    path = root / "notebooks" / "ko" / name
    ko = read(path)
    texts = {cell.id: cell for cell in ko.cells if cell.id in en and cell.cell_type == "markdown"}
    unknown = set(cells) - set(texts)
    if unknown:
        raise LookupError(f"{name} has no text cell {', '.join(sorted(unknown))} in both languages")
    for cell_id in cells or texts:
        texts[cell_id].metadata["en_hash"] = text_hash(en[cell_id].source)
    write(ko, path)


def pair_findings(name: str, root: Path = ROOT) -> list[Finding]:
    """What keeps one pair from being whole: cells missing, out of order, stale, untranslated, code that differs."""
    paths = {lang: root / "notebooks" / lang / name for lang in LANGUAGES}
    absent = [lang for lang, path in paths.items() if not path.is_file()]
    if absent:
        return [Finding(name, "", f"missing in {', '.join(absent)}")]
    en, ko = read(paths["en"]).cells, read(paths["ko"]).cells
    if [cell.id for cell in en] != [cell.id for cell in ko]:
        differing = {cell.id for cell in en} ^ {cell.id for cell in ko}
        alone = f"only in one language: {', '.join(sorted(differing))}"
        what = alone if differing else "the order of the cells differs"
        return [Finding(name, "", f"{what} (run sync)")]
    found = []
    for a, b in zip(en, ko, strict=True):
        if a.cell_type != b.cell_type:
            found.append(Finding(name, a.id, "a code cell in one language, a text cell in the other (run sync)"))
            continue
        for cell, lang in ((a, "en"), (b, "ko")):
            if cell.source != _own_text(cell, name, lang, root):
                what = "set-up cell" if is_setup(cell) else "badge"
                found.append(Finding(name, a.id, f"the {what} in {lang} is not the configured one (run sync)"))
        if a.cell_type == "code":
            if a.source != b.source and not is_setup(a):
                found.append(Finding(name, a.id, "the code differs (run sync)"))
        elif "en_hash" not in b.metadata:
            found.append(Finding(name, a.id, "not translated yet"))
        elif b.metadata["en_hash"] != text_hash(a.source):
            found.append(Finding(name, a.id, "stale: the English changed since it was translated"))
    return found


def status(root: Path = ROOT) -> list[Finding]:
    """The findings of every notebook that exists in either language; empty when the course is whole."""
    names = {path.relative_to(root / "notebooks" / lang).as_posix() for lang in LANGUAGES
             for path in (root / "notebooks" / lang).rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    return [finding for name in sorted(names) for finding in pair_findings(name, root)]


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.lessons", description="Keep the lessons whole.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="what is missing, stale or different")
    for command, help_text in (("sync", "carry cells and code from en to ko"), ("execute", "run and store the outputs"),
                               ("run", "run without touching the sources")):
        sub = commands.add_parser(command, help=help_text)
        sub.add_argument("numbers", nargs="*", metavar="NN")
        if command != "sync":
            sub.add_argument("--lang", choices=LANGUAGES, action="append")
    sub = commands.add_parser("translated", help="these Korean cells are up to date")
    sub.add_argument("number", metavar="NN")
    sub.add_argument("cells", nargs="*", metavar="ID")
    args = parser.parse_args(argv)
    try:
        return _dispatch(args)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2


def _dispatch(args: argparse.Namespace) -> int:
    from . import execution

    if args.command == "status":
        found = status()
        print("\n".join(map(str, found)) or "every pair is whole")
        return 1 if found else 0
    if args.command == "translated":
        held = {name: {cell.id for cell in read(ROOT / "notebooks" / "en" / name).cells}
                for name in notebook_names([args.number])}
        unknown = set(args.cells).difference(*held.values())
        if unknown:
            raise LookupError(f"no cell {', '.join(sorted(unknown))} in {', '.join(held)}")
        for name, ids in held.items():
            here = [cell_id for cell_id in args.cells if cell_id in ids]
            if here or not args.cells:
                translated(name, here)
        return 0
    names = notebook_names(args.numbers, solutions=args.command != "run")
    if args.command == "sync":
        for name in names:
            sync(name)
        return 0
    started = time.perf_counter()
    results = [execution.run_notebook(name, lang, store=args.command == "execute")
               for lang in args.lang or (["en"] if args.command == "run" else LANGUAGES) for name in names]
    return execution.summarise(results, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
