"""Check that both languages of the lessons agree and that code cells follow the course's rules."""
from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.runtime import LANGUAGES

from . import filling, literals
from .notebooks import ROOT, all_names, configured_source, is_setup, korean_table, path_of, read, tags

if TYPE_CHECKING:
    from nbformat import NotebookNode

OWN = ("ko", "en_hash")  # metadata that only Korean cells have


@dataclass(frozen=True)
class Finding:
    """One problem of a notebook; `cell` is a cell id, or "" for the whole notebook."""

    notebook: str
    cell: str
    problem: str

    def __str__(self) -> str:
        return f"{self.notebook}{self.cell and ' '}{self.cell}: {self.problem}"


def text_hash(source: str) -> str:
    """Return the short hash of an English text that its Korean translation stores."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def status(root: Path = ROOT, names: list[str] | None = None) -> list[Finding]:
    """Return the findings of these notebooks, or of all notebooks; an empty list means no problem."""
    return [finding for name in names or all_names(root) for finding in pair_findings(name, root)]


def pair_findings(name: str, root: Path = ROOT) -> list[Finding]:
    """Find cells of one notebook that are missing, out of order, stale or different between languages."""
    absent = [lang for lang in LANGUAGES if not path_of(name, lang, root).is_file()]
    if absent:
        return [Finding(name, "", f"missing in {', '.join(absent)}")]
    english = read(path_of(name, "en", root)).cells
    korean = read(path_of(name, "ko", root)).cells
    ids = [cell.id for cell in english]
    others = [cell.id for cell in korean]
    if ids != others:
        alone = sorted(set(ids) ^ set(others))
        problem = f"only in one language: {', '.join(alone)}" if alone else "the order of the cells differs"
        return [Finding(name, "", f"{problem} (run sync)")]
    problems = [(ours.id, problem) for ours, theirs in zip(english, korean, strict=True)
                for problem in _cell_problems(ours, theirs, name, root)]
    problems += filling.conflicts({cell.id: korean_table(cell) for cell in korean})
    return [Finding(name, cell_id, problem) for cell_id, problem in problems]


def _cell_problems(english: NotebookNode, korean: NotebookNode, name: str, root: Path) -> list[str]:
    if english.cell_type != korean.cell_type:
        return ["a code cell in one language, a text cell in the other (run sync)"]
    configured = "set-up cell" if is_setup(english) else "badge"
    problems = [f"the {configured} in {lang} is not the configured one (run sync)"
                for cell, lang in ((english, "en"), (korean, "ko"))
                if cell.source != configured_source(cell, name, lang, root)]
    if english.metadata != {key: value for key, value in korean.metadata.items() if key not in OWN}:
        problems.append("tags or other metadata differ (run sync)")
    if is_setup(english):
        return problems
    if english.cell_type == "code":
        return problems + _code_problems(english, korean) + _rule_problems(english, name)
    if "en_hash" not in korean.metadata:
        return [*problems, "not translated yet"]
    if korean.metadata["en_hash"] != text_hash(english.source):
        return [*problems, "stale: the English changed since it was translated"]
    return problems


def _code_problems(english: NotebookNode, korean: NotebookNode) -> list[str]:
    """List the differences between a Korean code cell and the English cell with Korean words."""
    table = korean_table(korean)
    problems = literals.faults(english.source, table)
    if not problems and literals.korean_source(english.source, table) != korean.source:
        problems = ["the code differs (run sync)"]
    problems += [f"stale: the English of this entry is gone (run sync): {text}"
                 for text in literals.stale(english.source, table)]
    return problems + [f"no Korean yet for {text}" for text in literals.missing(english.source, table)]


def _rule_problems(cell: NotebookNode, name: str) -> list[str]:
    """List broken rules of a code cell: visible checks, English in f-string fields, hidden messages."""
    problems = []
    if "check" in tags(cell) and not cell.metadata.get("jupyter", {}).get("source_hidden"):
        problems.append("tagged `check`, but not collapsed (set jupyter.source_hidden)")
    try:
        nodes = list(ast.walk(ast.parse(literals.plain(cell.source))))
    except SyntaxError:
        nodes = []
    if not name.startswith("solutions/") and not {"check", "raises-exception"} & set(tags(cell)) and any(
            isinstance(node, ast.Assert) for node in nodes):
        problems.append("an assert in a cell that teaches (give it a cell of its own, tagged `check`)")
    problems += [f"{text!r} in a field of an f-string stays English (give it a name before)"
                 for text in literals.words_in_fields(cell.source)]
    if re.search(r"\bsay\(", cell.source):
        problems.append("say( hides what is printed (write the words in the cell)")
    return problems
