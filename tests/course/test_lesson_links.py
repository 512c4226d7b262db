"""The package and the notebooks: no name twice, and each lesson that a docstring names uses what names it."""
from __future__ import annotations

import ast
import re
from functools import lru_cache

import pytest

from course_lib.runtime import LANGUAGES
from tests.course.reading import EVERY, LESSONS, code_cells, every_notebook
from tools import literals
from tools.notebooks import ROOT


@lru_cache
def modules() -> dict[str, ast.Module]:
    """Module → its tree; "data", "show.data", …"""
    base = ROOT / "course_lib"
    paths = {".".join(path.relative_to(base).with_suffix("").parts): path for path in base.rglob("*.py")}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
            for name, path in paths.items()}


def definitions(tree: ast.AST, *, nested: bool = False) -> list:
    """The functions and classes of a module and the methods of its classes; with `nested`, all there are."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if nested:
        return [node for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [node for node in tree.body if isinstance(node, kinds)]
    classes = [node for node in found if isinstance(node, ast.ClassDef)]
    return found + [method for node in classes for method in definitions(node)]


def public(nodes: list) -> dict[str, ast.AST]:
    return {node.name: node for node in nodes if not node.name.startswith("_")}


@every_notebook
def test_no_notebook_defines_what_the_package_has(name):
    taken = {word for tree in modules().values() for word in public(definitions(tree))}
    assert {"load", "estimate_memory", "weight_bytes", "total"} <= taken
    trees = [ast.parse(literals.plain(cell.source)) for cell in code_cells(name)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    methods = {method for node in nodes if isinstance(node, ast.ClassDef) for method in node.body}
    own = [node for tree in trees for node in definitions(tree, nested=True) if node not in methods]
    assert {node.name for node in own} & taken == set()


LESSON_LINK = re.compile(r"\blessons?\s+(\d+(?:(?:,\s*|\s+(?:and|to)\s+)\d+)*)", re.IGNORECASE)


def docstring_links() -> list[tuple[str, str, str]]:
    """(module, name, lesson number) of each lesson that a public docstring names."""
    links = []
    for module, tree in modules().items():
        if module.startswith("graders."):  # a lesson calls them through `check`
            continue
        for name, node in {module: tree, **public(definitions(tree))}.items():
            for numbers in LESSON_LINK.findall(ast.get_docstring(node) or ""):
                links += [(module, name, number) for number in re.findall(r"\d+", numbers)]
    return links


def test_docstrings_link_to_lessons():
    modules_that_link = {module for module, _, _ in docstring_links()}
    assert {"loading", "models.catalog", "models.memory", "inference.benchmark"} <= modules_that_link


@pytest.mark.parametrize("module, name, number", docstring_links())
def test_docstring_links_resolve(module, name, number):
    """The number is a lesson's; where that lesson is written, its code uses what links to it."""
    stem = next((stem for stem in LESSONS if stem.startswith(f"{number}_")), None)
    assert stem, f"{module}.{name} names lesson {number}"
    below = [tree for other, tree in modules().items() if f"{other}.".startswith(f"{module}.")]
    own = {module.split(".")[-1], *(word for tree in below for word in public(definitions(tree)))}
    words = {name} if name != module else own
    for lang in LANGUAGES:
        if f"{lang}/{stem}.ipynb" in EVERY:
            code = "\n".join(cell.source for cell in code_cells(f"{lang}/{stem}.ipynb"))
            assert words & set(re.findall(r"\w+", code)), f"lesson {number} says nothing of {module}.{name}"
