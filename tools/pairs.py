"""Keep the two languages of a lesson in step: `notebooks/en/X.ipynb` and `notebooks/ko/X.ipynb`.

Lessons are edited in English. A Korean code cell is generated: the English code with the Korean of its
comments and literals, which its metadata hold under "ko" (see tools/literals.py). A Korean text cell is
written by hand and stores the hash of the English text that it translates; `status` lists stale ones.

  python -m tools.pairs status [NN …]           what is missing, stale or different
  python -m tools.pairs sync [NN …]             carry cells, code and tags over to Korean
  python -m tools.pairs translated NN [ID …]    the Korean of these text cells renders today's English
  python -m tools.pairs literals NN [--missing] the literals and comments for people and their Korean, as JSON
  python -m tools.pairs fill NN FILE.json       put Korean words in (JSON as `literals` prints)
  python -m tools.pairs execute [NN …] [--lang] run and store the outputs (for committing), solutions too
  python -m tools.pairs run [NN …] [--lang]     run without touching the sources; copies go to build/
"""
from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.runtime import LANGUAGES

from . import filling, literals
from .findings import Finding, status, text_hash
from .notebooks import ROOT, configured_source, is_setup, korean_table, notebook_names, path_of, read, write

if TYPE_CHECKING:
    from nbformat import NotebookNode


# --- from English to Korean ---------------------------------------------------------------------------------

def sync(name: str, root: Path = ROOT, additions: filling.Tables | None = None) -> list[Finding]:
    """Copy cells, order, code and tags of the English notebook to the Korean one; keep the Korean texts.

    A new text cell stays English until it is translated. A table entry whose English is gone is printed and
    removed. `additions`: cell id → entries to add to the cell's table. Returns findings for code cells that
    were left unchanged because of faults in their table.
    """
    english = read(path_of(name, "en", root))
    path = path_of(name, "ko", root)
    former = {cell.id: cell for cell in read(path).cells} if path.is_file() else {}
    korean = copy.deepcopy(english)
    renewed = {}  # hash of an English text → hash with today's badge: a new badge makes nothing stale
    for cell in english.cells:
        before = text_hash(cell.source)
        cell.source = configured_source(cell, name, "en", root)
        renewed[before] = text_hash(cell.source)
    refused = []
    for index, cell in enumerate(korean.cells):
        old = former.get(cell.id)
        if old is not None and old.cell_type != cell.cell_type:
            old = None
        if cell.cell_type != "code":
            korean.cells[index] = _text_cell(cell, old, renewed)
        elif is_setup(cell):
            cell.outputs = old.outputs if old is not None else []
            cell.execution_count = old.execution_count if old is not None else None
        else:
            problems = _fill_code_cell(cell, old, (additions or {}).get(cell.id, {}), name)
            refused += [Finding(name, cell.id, problem) for problem in problems]
            if problems and old is not None:
                korean.cells[index] = old
        korean.cells[index].source = configured_source(korean.cells[index], name, "ko", root)
    write(english, path_of(name, "en", root))
    write(korean, path)
    return refused


def _text_cell(cell: NotebookNode, old: NotebookNode | None, renewed: dict[str, str]) -> NotebookNode:
    """Return the former Korean text cell with the English metadata, or the English cell if it is new."""
    if old is None:
        return cell
    rendered = old.metadata.get("en_hash")
    old.metadata = cell.metadata
    if rendered:
        old.metadata["en_hash"] = renewed.get(rendered, rendered)
    return old


def _fill_code_cell(cell: NotebookNode, old: NotebookNode | None, additions: dict[str, str | None],
                    name: str) -> list[str]:
    """Translate a copy of an English code cell in place; return the problems that prevent it."""
    table = {**korean_table(old), **additions}
    cell.outputs = []
    cell.execution_count = None
    problems = literals.faults(cell.source, table)
    if problems:
        return problems
    for gone in literals.stale(cell.source, table):
        entry = json.dumps({gone: table.pop(gone)}, ensure_ascii=False)
        print(f"{name} {cell.id}: the English is gone, so this entry leaves the table: {entry}")
    cell.source = literals.korean_source(cell.source, table)
    if old is not None and old.source == cell.source:
        cell.outputs = old.outputs
        cell.execution_count = old.execution_count
    if table:
        cell.metadata["ko"] = table
    return []


def translated(name: str, cells: list[str], root: Path = ROOT) -> None:
    """Record that `cells` (default: all text cells) translate the current English; LookupError if unknown."""
    cells_of = read(path_of(name, "en", root)).cells
    english = {cell.id: cell for cell in cells_of if cell.cell_type == "markdown"}
    korean = read(path_of(name, "ko", root))
    texts = {cell.id: cell for cell in korean.cells if cell.id in english and cell.cell_type == "markdown"}
    unknown = set(cells) - set(texts)
    if unknown:
        raise LookupError(f"{name} has no text cell {', '.join(sorted(unknown))} in both languages")
    for cell_id in cells or texts:
        texts[cell_id].metadata["en_hash"] = text_hash(english[cell_id].source)
    write(korean, path_of(name, "ko", root))


# --- the command line ---------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.pairs", description="Keep the lessons whole.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, explanation in (("status", "what is missing, stale or different"),
                                 ("sync", "carry cells and code from en to ko"),
                                 ("execute", "run and store the outputs"),
                                 ("run", "run without touching the sources")):
        commands.add_parser(command, help=explanation).add_argument("numbers", nargs="*", metavar="NN")
    for command in ("execute", "run"):
        commands.choices[command].add_argument("--lang", choices=LANGUAGES, action="append")
    for command, explanation in (("translated", "these Korean texts are up to date"),
                                 ("literals", "the words for people in code cells, as JSON"),
                                 ("fill", "put the Korean of literals and comments in")):
        commands.add_parser(command, help=explanation).add_argument("number", metavar="NN")
    commands.choices["translated"].add_argument("cells", nargs="*", metavar="ID")
    commands.choices["literals"].add_argument("--missing", action="store_true", help="only without Korean")
    commands.choices["fill"].add_argument("file", type=Path, metavar="FILE.json")
    args = parser.parse_args(argv)
    try:
        return _dispatch(args)
    except (LookupError, ValueError) as error:
        print(error.args[0], file=sys.stderr)
        return 2


def _dispatch(args: argparse.Namespace) -> int:
    numbers = args.numbers if "numbers" in args else [args.number]
    names = notebook_names(numbers, solutions=args.command != "run")
    if args.command in ("run", "execute"):
        from . import execution

        languages = args.lang or (["en"] if args.command == "run" else LANGUAGES)
        return execution.run_all(names, languages, store=args.command == "execute")
    if args.command == "status":
        findings = status(names=names if numbers else None)
        print("\n".join(map(str, findings)) or "every pair is whole")
        return 1 if findings else 0
    if args.command == "sync":
        return _sync_all(names, {})
    if args.command == "literals":
        print(json.dumps(filling.listed(names, missing_only=args.missing), ensure_ascii=False, indent=2))
    elif args.command == "fill":
        additions = filling.additions(names, filling.entries(args.file))
        status_code = _sync_all(names, additions)
        for name, cells in additions.items():
            left = sum(map(len, filling.listed([name], missing_only=True).get(name, {}).values()))
            print(f"{name}: {sum(map(len, cells.values()))} entries written, {left} still missing")
        return status_code
    else:
        _mark_translated(names, args.cells)
    return 0


def _sync_all(names: list[str], additions: dict[str, filling.Tables]) -> int:
    """Run `sync` for several notebooks; return exit status 1 if a cell was left unchanged, else 0."""
    refused = [finding for name in names for finding in sync(name, additions=additions.get(name))]
    for finding in refused:
        print(f"left as it is: {finding}", file=sys.stderr)
    return 1 if refused else 0


def _mark_translated(names: list[str], cells: list[str]) -> None:
    """Run `translated` for cells of a lesson or of its solutions."""
    held = {name: {cell.id for cell in read(path_of(name, "en")).cells} for name in names}
    unknown = set(cells).difference(*held.values())
    if unknown:
        raise LookupError(f"no cell {', '.join(sorted(unknown))} in {', '.join(held)}")
    for name, ids in held.items():
        own = [cell_id for cell_id in cells if cell_id in ids]
        if own or not cells:
            translated(name, own)


if __name__ == "__main__":
    sys.exit(main())
