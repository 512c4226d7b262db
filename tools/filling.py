"""Exchange of Korean words with a translator: list the words of code cells, check what comes back."""
from __future__ import annotations

import difflib
import json
from pathlib import Path

from . import literals
from .notebooks import ROOT, is_setup, korean_table, path_of, read

Tables = dict[str, dict[str, "str | None"]]  # cell id → English word → Korean word, None if it is the same


def listed(names: list[str], root: Path = ROOT, *, missing_only: bool = False) -> dict[str, Tables]:
    """Return notebook → cell id → word to translate → its Korean (None: the same; "": not translated yet)."""
    sections = {}
    for name in names:
        tables = _korean_tables(name, root)
        cells = {}
        for cell_id, source in _english_code(name, root).items():
            table = tables.get(cell_id, {})
            cells[cell_id] = {word: table.get(word, "") for word in literals.for_people(source)}
        if missing_only:
            cells = {cell_id: {word: "" for word, korean in cell.items() if korean == ""}
                     for cell_id, cell in cells.items()}
        sections[name] = {cell_id: cell for cell_id, cell in cells.items() if cell}
    return {name: cells for name, cells in sections.items() if cells}


def entries(path: Path) -> dict:
    """Read a translator's JSON file; a ValueError says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def additions(names: list[str], written: dict, root: Path = ROOT) -> dict[str, Tables]:
    """Sort a translator's entries by notebook: {notebook: {cell id: {English word: Korean word or None}}}.

    `written` has the same form, or begins at the cell ids, which are then searched in all of `names`. Words
    with the Korean "" are left for later.

    Raises:
        ValueError: entries that match no cell or cannot stand in their cell; the message lists all of them.
    """
    sectioned = bool(written) and all(str(key).endswith(".ipynb") for key in written)
    sections = written if sectioned else {"": written}
    code = {name: _english_code(name, root) for name in names}
    unknown = [section for section in sections if section and section not in code]
    problems = [f"no notebook {section}; there are {', '.join(names)}" for section in unknown]
    chosen: dict[str, Tables] = {}
    for section, cells in sections.items():
        if section in unknown:
            continue
        within = {section: code[section]} if section else code
        for cell_id, table in _object(cells, section or "the file").items():
            holders = {name: sources[cell_id] for name, sources in within.items() if cell_id in sources}
            if not holders:
                problems.append(f"{', '.join(within)}: no code cell {cell_id}{_near(cell_id, within)}")
                continue
            problems += _place(_object(table, cell_id), cell_id, holders, chosen)
    for name, cells in chosen.items():
        tables = _korean_tables(name, root)
        problems += [f"{name} {cell_id}: {fault}" for cell_id, table in cells.items()
                     for fault in literals.faults(code[name][cell_id], {**tables.get(cell_id, {}), **table})]
    if problems:
        raise ValueError("\n".join([*problems, "nothing was written"]))
    return chosen


def conflicts(tables: Tables) -> list[tuple[str, str]]:
    """Return (cell id, sentence) for each plain literal whose Korean differs from that in an earlier cell."""
    problems = []
    above: dict[str, tuple[str, str | None]] = {}
    # cells share keys: a column named in one cell must have the same name where another reads it
    for cell_id, table in tables.items():
        for word, korean in table.items():
            if word.startswith("#") or literals.fields(word):
                continue
            other, before = above.setdefault(word, (cell_id, korean))
            if before != korean:
                here = korean or "null"
                problems.append((cell_id, f"the Korean of {word} is {here}, in {other} {before or 'null'}"))
    return problems


def _place(table: dict, cell_id: str, holders: dict[str, str], chosen: dict[str, Tables]) -> list[str]:
    """Add a cell's entries to `chosen` for each notebook that has the word; return the problems."""
    problems = []
    present = {name: [word.text for word in literals.words(source)] for name, source in holders.items()}
    for word, korean in table.items():
        having = [name for name, texts in present.items() if word in texts]
        if not having:
            where = f"{', '.join(holders)} {cell_id}"
            problems.append(f"{where}: no literal or comment {word}{_near(word, present)}")
        for name in having if korean != "" else []:
            chosen.setdefault(name, {}).setdefault(cell_id, {})[word] = korean
    return problems


def _near(wanted: str, known: dict) -> str:
    close = difflib.get_close_matches(wanted, [text for texts in known.values() for text in texts], n=1)
    return f"; did you mean {close[0]}" if close else ""


def _object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold an object {{…}}, not {value!r}; nothing was written")
    return value


def _english_code(name: str, root: Path) -> dict[str, str]:
    return {cell.id: cell.source for cell in read(path_of(name, "en", root)).cells
            if cell.cell_type == "code" and not is_setup(cell)}


def _korean_tables(name: str, root: Path) -> Tables:
    path = path_of(name, "ko", root)
    return {cell.id: korean_table(cell) for cell in read(path).cells} if path.is_file() else {}
