"""The rooms of the package stand in layers: none imports from a higher one, and no import goes in a circle.

An import counts wherever it stands, inside a function as well: a late one hides an arrow and removes none.
"""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "course_lib"
LAYERS = [
    {"runtime"},
    {"models"},
    {"loading", "offline_models"},
    {"inference"},
    {"data"},
    {"training", "evaluation"},
    {"quantization"},
    {"export"},
    {"compare", "pictures", "graders"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path):
    """The dotted name of a file inside the package: "models.memory", "loading"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path):
    """The modules of the package that a file imports, each as its dotted name."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package.split(".") if package else []
        base = parts[:len(parts) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            deeper = ".".join([*base, alias.name])
            yield deeper if deeper in MODULES else ".".join(base)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    room = module_of(path).partition(".")[0]
    higher = sorted(name for name in imported(path) if name and LEVEL[name.partition(".")[0]] > LEVEL[room])
    assert not higher, f"{module_of(path)} imports {', '.join(higher)}, which lies above it"
    beside = sorted(name for name in imported(path) if name and name.partition(".")[0] != room
                    and LEVEL[name.partition(".")[0]] == LEVEL[room] and len(LAYERS[LEVEL[room]]) > 1)
    if room not in ("loading", "graders"):
        assert not beside, f"{module_of(path)} imports {', '.join(beside)}, which lies beside it"


def test_no_import_goes_round_in_a_circle():
    arrows = {name: {target for target in imported(path) if target in MODULES and target != name}
              for name, path in MODULES.items()}
    done = set()

    def visit(name, trail):
        assert name not in trail, " → ".join([*trail[trail.index(name):], name])
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in arrows:
        visit(name, [])


def test_names_are_lazy_by_one_table_only():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"), path
            assert not (isinstance(node, ast.Attribute) and node.attr == "import_module"), path


def test_nothing_in_the_package_imports_its_keepers():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level
                     else [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            assert not {name.partition(".")[0] for name in names} & {"tools", "bench", "demos", "tests"}, path
