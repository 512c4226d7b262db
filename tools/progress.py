"""Report which exercises pass: `python -m tools.progress [NN … | notebooks] [--lang ko]`.

To save time, only these cells run first: the set-up, imports, calls of `check`, and all cells below the
heading "Exercises". If a name is missing, the whole notebook runs. Exercises are recognised by their calls
`cl.check("NN.K", …)`, so edited copies work. Notebooks are not changed.
"""
from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from course_lib.graders import exercises
from course_lib.runtime import LANGUAGES, set_language, text

from . import execution
from .literals import plain
from .notebooks import CELL_TIMEOUT, ROOT, is_setup, notebook_names, read

GRADE = "application/vnd.slm-course.grade+json"  # MIME type of a grade among a cell's outputs
EXERCISE_TIMEOUT = 120  # seconds for a cell with an exercise; stops an endless loop
HEADING = re.compile(r"^#+ (Exercises|연습 문제)\s*$", re.M)
CHECKED = re.compile(r"""^[^#\n]*?\bcheck\(\s*(?:exercise_id\s*=\s*)?["'](\d\d\.\d+)["']""", re.M)
WIDTHS = (10, 9)  # terminal columns of the table's first two columns


@dataclass(frozen=True)
class Outcome:
    """State of one exercise ("passed", "not_yet" or "error") with the message of the grader or of Python."""

    exercise: str
    state: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A code cell of a learner's notebook, or only its imports; `number` is its index among code cells."""

    number: int
    source: str
    is_setup: bool = False

    @property
    def checks(self) -> list[str]:
        return CHECKED.findall(self.source)


@dataclass
class Sitting:
    """Results of a run: the grades of each exercise, and errors by number of the cell."""

    grades: dict[str, list[dict]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def lacks_a_name(self) -> bool:
        """Tell whether a cell, or a function called by a grader, raised a NameError."""
        messages = [grade["message"] for grades in self.grades.values() for grade in grades]
        return any("NameError: " in note for note in [*self.errors.values(), *messages])


# --- which cells --------------------------------------------------------------------------------------------

def cells_of(path: Path) -> tuple[list[Cell], list[Cell]]:
    """Return the cells that the exercises most likely need, and all code cells; ValueError if unreadable."""
    try:
        cells = read(path).cells
        kinds = [(cell.cell_type, cell.source, cell.cell_type == "code" and is_setup(cell)) for cell in cells]
    except FileNotFoundError:
        raise ValueError(text("progress.no_file", path=path)) from None
    except Exception as error:  # nbformat raises errors of many kinds for a broken file
        reason = str(error).splitlines()[0][:80]
        raise ValueError(text("progress.no_notebook", path=path, reason=reason)) from None
    first = []
    every = []
    below = False
    for kind, source, setup in kinds:
        if kind != "code":
            below = below or kind == "markdown" and bool(HEADING.search(source))
            continue
        cell = Cell(len(every), source, setup or bool(re.search(r"^[^#\n]*\bsetup\(", source, re.M)))
        every.append(cell)
        if below or cell.is_setup or cell.checks:
            first.append(cell)
        elif imports := imports_in(source):
            first.append(Cell(cell.number, imports))
    return (first if below else every), every


def imports_in(source: str) -> str:
    """Return the top-level import statements of a cell."""
    try:
        tree = ast.parse(plain(source))
    except SyntaxError:
        return ""
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(map(ast.unparse, imports))


def expected_exercises(path: Path, cells: list[Cell]) -> list[str]:
    """Return the exercises of the lesson, also those whose cells the notebook no longer has.

    Raises:
        ValueError: no cell checks an exercise, and the file name has no lesson number.
    """
    checked = {exercise for cell in cells for exercise in cell.checks}
    numbers = {exercise[:2] for exercise in checked} or set(re.findall(r"^\d\d(?=_)", path.name))
    wanted = set(checked)
    for number in numbers:
        try:
            wanted |= set(exercises(number))
        except LookupError:  # not our lesson: `check` itself reports the unknown exercise
            continue
    if not wanted:
        raise ValueError(text("progress.no_exercises", path=path))
    return sorted(wanted)


# --- running them -------------------------------------------------------------------------------------------

def grade_notebook(path: Path, lang: str,
                   tell: Callable[[int, int], None] = lambda done, total: None) -> list[Outcome]:
    """Run what the exercises of a notebook need; call `tell(cells done, all cells)` after each cell.

    Raises:
        ValueError: the file is not a notebook, or it has no exercise.
    """
    first, every = cells_of(path)
    wanted = expected_exercises(path, every)
    dead: set[int] = set()
    sitting = _sit(first, dead, path.parent, lang, tell)
    if first != every and sitting.lacks_a_name():
        sitting = _sit(every, dead, path.parent, lang, tell)
    return [_outcome(exercise, [cell for cell in every if exercise in cell.checks or cell.is_setup], sitting)
            for exercise in wanted]


def _sit(cells: list[Cell], dead: set[int], folder: Path, lang: str,
         tell: Callable[[int, int], None]) -> Sitting:
    """Run cells past failing ones; those that hang or end the kernel go into `dead`, the others run again."""
    from nbformat.v4 import new_code_cell, new_notebook

    sitting = Sitting()
    listening = f"{inspect.getsource(send_grades)}\nsend_grades({lang!r}, {GRADE!r})\ndel send_grades"
    while True:
        plan = [Cell(-1, listening), *(cell for cell in cells if cell.number not in dead)]
        known = len(dead)
        notebook = new_notebook(cells=[new_code_cell(cell.source) for cell in plan])
        timeouts = [EXERCISE_TIMEOUT if cell.checks else CELL_TIMEOUT for cell in plan]
        for done, ran in enumerate(execution.execute(notebook, folder, timeouts)):
            tell(done, len(plan))
            number = plan[done].number
            if ran.ending in ("timeout", "died"):
                dead.add(number)
            if ran.ending != "done":
                sitting.errors[number] = {"timeout": text("progress.timeout", seconds=timeouts[done]),
                                          "died": text("progress.died")}.get(ran.ending, ran.error)
            for output in ran.cell.outputs:
                if GRADE in output.get("data", {}):
                    sitting.grades.setdefault(output.data[GRADE]["exercise"], []).append(output.data[GRADE])
        if len(dead) == known or -1 in dead:
            return sitting


def send_grades(lang: str, kind: str) -> None:
    """Send every grade out of the kernel as display data, with its message in `lang`; runs in the kernel."""
    from course_lib.graders import on_grade

    def send(exercise: str, passed: bool, key: str, fields: dict) -> None:
        from IPython.display import display

        from course_lib.runtime import in_language, text

        with in_language(lang):
            message = text(key, **fields)
        display({kind: {"exercise": exercise, "passed": passed, "message": message}}, raw=True)

    on_grade(send)


def _outcome(exercise: str, needed: list[Cell], sitting: Sitting) -> Outcome:
    """Return the best grade of an exercise or, without a grade, the error of the set-up or its own cell."""
    grades = sitting.grades.get(exercise, [])
    if any(grade["passed"] for grade in grades):
        return Outcome(exercise, "passed")
    if grades:
        return Outcome(exercise, "not_yet", grades[-1]["message"])
    if not any(exercise in cell.checks for cell in needed):
        return Outcome(exercise, "not_yet", text("progress.missing", exercise=exercise))
    numbers = [-1, *(cell.number for cell in sorted(needed, key=lambda cell: not cell.is_setup))]
    notes = [sitting.errors[number] for number in numbers if number in sitting.errors]
    return Outcome(exercise, "error", notes[0] if notes else text("progress.silent"))


# --- the table ----------------------------------------------------------------------------------------------

def _columns(letters: str) -> int:
    """Count terminal columns; a Korean syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)


def _row(*columns: str) -> str:
    """Format two columns of fixed width and a third of any length as one line."""
    padded = [column + " " * (width - _columns(column))
              for column, width in zip(columns, WIDTHS, strict=False)]
    return ("".join(padded) + " ".join(columns[2].split())).rstrip()


def report(paths: list[Path], lang: str) -> int:
    """Print the table of outcomes; return exit status 0 if every exercise passes, else 1."""
    states = {state: text(f"progress.{state}") for state in ("passed", "not_yet", "error")}
    watched = sys.stderr.isatty()
    started = time.perf_counter()
    outcomes = []
    print(_row(text("progress.exercise"), text("progress.result"), text("progress.note")), flush=True)

    def tell(done: int, total: int) -> None:
        line = text("progress.running", path=path.name, done=done + 1, total=total)
        print("\r\x1b[K" + line[:100], end="", file=sys.stderr, flush=True)

    for path in paths:
        begin = time.perf_counter()
        try:
            rows = grade_notebook(path, lang, tell) if watched else grade_notebook(path, lang)
        except ValueError as error:
            rows = [Outcome(path.name[:2] if re.match(r"\d\d_", path.name) else "?", "error", str(error))]
        if watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path
        print(f"{shown} ({time.perf_counter() - begin:.0f} s)", flush=True)
        for row in rows:
            print(_row(row.exercise, states[row.state], row.note), flush=True)
        outcomes += rows
    passed = sum(row.state == "passed" for row in outcomes)
    seconds = f"{time.perf_counter() - started:.0f}"
    print(text("progress.summary", passed=passed, total=len(outcomes), seconds=seconds))
    return 0 if passed == len(outcomes) else 1


def main(argv: list[str] | None = None) -> int:
    """Grade the lessons with the given numbers, the notebooks at the given paths, or all lessons."""
    parser = argparse.ArgumentParser(prog="python -m tools.progress", description="Which exercises pass.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons, or paths of notebooks")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="the language of lessons and table")
    args = parser.parse_args(argv)
    set_language(args.lang)
    copies = [Path(given).expanduser().absolute() for given in args.lessons if given.endswith(".ipynb")]
    numbers = [given for given in args.lessons if not given.endswith(".ipynb")]
    try:
        names = notebook_names(numbers, solutions=False) if numbers or not args.lessons else []
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return report([ROOT / "notebooks" / args.lang / name for name in names] + copies, args.lang)


if __name__ == "__main__":
    sys.exit(main())
