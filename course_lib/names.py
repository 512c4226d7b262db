"""Which cells of a notebook a cell needs, found by the names that they bind and use.

A notebook runs from top to bottom, so a name means what the last cell above bound it to, and what the cells between
changed about it (`x.append(1)`, `x[0] = 1`, a binding inside an `if`). A name in a function's body is looked up when
the function is called, so it may also come from any cell above the one that asks.
"""
from __future__ import annotations

import ast
import re
import symtable
from dataclasses import dataclass, replace

EXERCISE = re.compile(r"\d\d\.\d+")


@dataclass(frozen=True)
class Cell:
    """A code cell, and the names in it.

    Attributes:
        uses: names that must be there when it runs.
        later: those of them that functions in it look up when they are called.
        binds: names that it surely binds.
        changes: names that it may bind, or whose objects it changes.
        checks: the exercises that it hands to `check`.
        imports: names that it imports; calling a module's functions changes no module.
        always: whether every exercise needs it: the set-up cell, and imports of everything.
    """

    source: str
    uses: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()
    binds: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    checks: tuple[str, ...] = ()
    imports: frozenset[str] = frozenset()
    always: bool = False


def study(source: str) -> list[Cell]:
    """One cell as a list: its imports, if it has any, as a cell before it, so that they can be had without the rest."""
    plain = _plain(source)
    try:
        tree, table = ast.parse(plain), symtable.symtable(plain, "cell", "exec")
    except (SyntaxError, ValueError):  # what can be seen of a cell that is not Python
        checks = re.findall(r"""\bcheck\(\s*["'](\d\d\.\d+)["']""", source)
        return [Cell(source, binds=frozenset(re.findall(r"^(?:def |class )?(\w+)(?= *=|\()", source, re.M)),
                     checks=tuple(dict.fromkeys(checks)))]
    cell = _facts(source, tree, table)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    if not imports or cell.always:
        return [cell]
    names = frozenset(name for node in imports for name in _bound(node))
    return [Cell("\n".join(map(ast.unparse, imports)), binds=names, imports=names), replace(cell, binds=cell.binds - names)]


def needed(cells: list[Cell], target: int) -> set[int]:
    """The indices of the cells that a cell needs, itself among them."""
    modules = frozenset().union(*(cell.imports for cell in cells))
    found = {target, *(index for index in range(target) if cells[index].always)}
    queue = [(index, name) for index in found for name in cells[index].uses]
    done = set()
    while queue:
        asking = at, name = queue.pop()
        if asking in done:
            continue
        done.add(asking)
        for index in reversed(range(at)):
            cell = cells[index]
            if index not in found and (name in cell.binds or name in cell.changes and name not in modules):
                found.add(index)
                queue += [(index, other) for other in cell.uses] + [(target, other) for other in cell.later]
            if name in cell.binds:
                break
    return found


# --- one cell ----------------------------------------------------------------------------------------------------

def _plain(source: str) -> str:
    """The cell as Python: `%magic` and `!command` become calls; below `%%time` and its like stands Python."""
    if source.lstrip().startswith("%%"):
        source = source.lstrip().partition("\n")[2]
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return TransformerManager().transform_cell(source)
    except SyntaxError:
        return source


def _facts(source: str, tree: ast.Module, table: symtable.SymbolTable) -> Cell:
    used, bound, later = set(), set(), set()
    for symbol in table.get_symbols():
        used |= {symbol.get_name()} if symbol.is_referenced() else set()
        bound |= {symbol.get_name()} if symbol.is_assigned() or symbol.is_imported() else set()
    for scope in _scopes(table):
        for symbol in scope.get_symbols():
            later |= {symbol.get_name()} if symbol.is_global() and symbol.is_referenced() else set()
            bound |= {symbol.get_name()} if symbol.is_declared_global() and symbol.is_assigned() else set()
    used |= later
    uses, binds = set(), set()  # in order: what is bound above in the same cell is asked of no other
    for node in _steps(tree.body):
        read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)
                and (isinstance(part.ctx, ast.Load) or isinstance(node, ast.AugAssign))}
        uses |= (read & (used | bound)) - binds
        binds |= _bound(node)
    nodes = list(ast.walk(tree))
    imports = frozenset(name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for name in _bound(node))
    changes = (bound - binds) | ({_changed(node) for node in nodes} - {None} - imports)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return Cell(source, frozenset(uses), frozenset(later - binds), frozenset(binds),
                frozenset(changes), tuple(dict.fromkeys(filter(None, map(_checked, calls)))), imports,
                any(_called(call) == "setup" for call in calls) or "*" in imports)


def _scopes(table: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    return [scope for child in table.get_children() for scope in (child, *_scopes(child))]


def _steps(body: list[ast.stmt]) -> list[ast.AST]:
    """The statements in order; those of a `with` are as sure to run as the others."""
    steps: list[ast.AST] = []
    for node in body:
        steps += [*node.items, *_steps(node.body)] if isinstance(node, (ast.With, ast.AsyncWith)) else [node]
    return steps


def _bound(node: ast.AST) -> set[str]:
    """The names that a statement surely binds."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = {ast.Assign: lambda: node.targets, ast.AnnAssign: lambda: [node.target] if node.value else [],
               ast.withitem: lambda: [node.optional_vars] if node.optional_vars else []}.get(type(node), list)()
    return {part.id for target in targets for part in ast.walk(target)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _changed(node: ast.AST) -> str | None:
    """The name whose object a node changes: `x.a = 1`, `x[0] = 1`, or `x.append(1)` as a statement of its own."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        node = node.value.func
    elif not isinstance(node, (ast.Attribute, ast.Subscript)) or isinstance(node.ctx, ast.Load):
        return None
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _called(call: ast.Call) -> str | None:
    return getattr(call.func, "attr", getattr(call.func, "id", None))


def _checked(call: ast.Call) -> str | None:
    """The exercise of `check("NN.K", …)`, by whatever way the name is reached."""
    values = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "exercise_id")]
    known = _called(call) == "check" and values and isinstance(values[0], ast.Constant) and isinstance(values[0].value, str)
    return values[0].value if known and EXERCISE.fullmatch(values[0].value) else None
