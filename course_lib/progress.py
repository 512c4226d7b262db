"""Which exercises of a learner's notebooks pass: `python course.py progress [NN …] [--lang ko]`.

Executing a whole lesson takes a minute, its exercises need a few cells. So `needed` finds, by names, what an exercise
depends on, and only that runs: top-down as in the notebook, in a kernel of its own. Exercises are found by their calls
`cl.check("NN.K", …)`, not by cell ids, so edited notebooks and copies from elsewhere work. Nothing is written to them.

What the analysis cannot see: an object changed under another name (`a = b; a.append(1)`, `shuffle(b)`).
"""
from __future__ import annotations

import argparse
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .lessons import CELL_TIMEOUT, LANGUAGES, ROOT, check, notebook_names, read
from .names import Cell, needed, study
from .runtime import in_language, set_language, text

GRADE = "application/vnd.slm-course.grade+json"  # how a grade comes out of the kernel
EXERCISE_TIMEOUT = 120  # seconds for a cell with an exercise; a grader takes milliseconds, an endless loop takes this
WIDTHS = (10, 9)  # of the table's first two columns


@dataclass(frozen=True)
class Outcome:
    """One row: an exercise, "passed", "not_yet" or "error", and what the grader or Python says about it."""

    exercise: str
    state: str
    note: str = ""


# --- in the kernel -----------------------------------------------------------------------------------------------

def listen(lang: str) -> None:
    """From now on, in this process, every grade is also sent to whoever runs the kernel, with its hint in `lang`."""
    from IPython.display import display

    from . import graders, lessons

    def recorded(exercise_id: str, answer: object):
        with in_language(lang):
            grade = check(exercise_id, answer)
        display({GRADE: {"exercise": exercise_id, "passed": grade.passed, "message": grade.message}}, raw=True)
        return grade

    lessons.check = graders.check = graders.grading.check = recorded


# --- running what is needed --------------------------------------------------------------------------------------

def grade_notebook(path: Path, lang: str, tell: Callable[[int, int], None] = lambda done, total: None) -> list[Outcome]:
    """Run what the exercises of one notebook need, and say of each whether it passes.

    Args:
        tell: called before each cell, with how many are done and how many there are.

    Raises:
        ValueError: the file is no notebook, or there is no exercise to be found in it; the message says so.
    """
    cells = [part for source in _code(path) for part in study(source)]
    expected = _expected(path, cells)
    targets = {index for index, cell in enumerate(cells) if cell.checks}
    closures = {index: needed(cells, index) for index in targets}
    grades: dict[str, list[dict]] = {}
    errors: dict[int, str] = {}
    pending, dead = set(targets), set()
    while pending:  # once, and once more after every cell that did not end or took the kernel with it
        plan = sorted(set().union(*(closures[index] for index in pending)) - dead)
        stopped = _execute(cells, plan, path.parent, lang, grades, errors, tell)
        pending = set() if stopped is None else {index for index in pending if index > stopped}
        dead.add(stopped)
    return [_outcome(exercise, grades.get(exercise, []),
                     [closures[index] for index in sorted(targets) if exercise in cells[index].checks], errors)
            for exercise in expected]


def _code(path: Path) -> list[str]:
    try:
        notebook = read(path)
        return [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    except FileNotFoundError:
        raise ValueError(text("progress.no_file", path=path)) from None
    except Exception as error:  # nbformat raises its own, json's, and what it stumbles over in a broken file
        raise ValueError(text("progress.no_notebook", path=path, reason=str(error).splitlines()[0][:80])) from None


def _expected(path: Path, cells: list[Cell]) -> list[str]:
    """The exercises of the lesson, whether the notebook still has their cells or not."""
    from .graders import exercises

    found = {exercise for cell in cells for exercise in cell.checks}
    numbers = {exercise[:2] for exercise in found} or set(re.findall(r"^\d\d(?=_)", path.name))
    wanted = sorted(found | {exercise for exercise in exercises() if exercise[:2] in numbers})
    if not wanted:
        raise ValueError(text("progress.no_exercises", path=path))
    return wanted


def _execute(cells: list[Cell], plan: list[int], folder: Path, lang: str, grades: dict[str, list[dict]],
             errors: dict[int, str], tell: Callable[[int, int], None]) -> int | None:
    """Run the cells of the plan in a fresh kernel, noting grades and errors; the index of a cell that stopped it all."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbformat.v4 import new_code_cell, new_notebook

    prelude = f"from course_lib.progress import listen as _listen\n_listen({lang!r})\ndel _listen"
    notebook = new_notebook(cells=[new_code_cell(prelude), *(new_code_cell(cells[index].source) for index in plan)])
    client = NotebookClient(notebook, kernel_name="python3", store_widget_state=False, record_timing=False,
                            shutdown_kernel="immediate", extra_arguments=["--IPKernelApp.log_level=40"],
                            resources={"metadata": {"path": str(folder)}})
    with client.setup_kernel(env={**os.environ, "COURSE_QUIET": "1"}):
        for position, index in enumerate([-1, *plan]):
            client.timeout = EXERCISE_TIMEOUT if index >= 0 and cells[index].checks else CELL_TIMEOUT
            tell(position, len(plan) + 1)
            cell = notebook.cells[position]
            try:
                client.execute_cell(cell, position)
            except CellExecutionError as error:
                errors[index] = f"{error.ename}: {error.evalue}"
            except CellTimeoutError:
                errors[index] = text("progress.timeout", seconds=client.timeout)
            except DeadKernelError:
                errors[index] = text("progress.died")
            for output in cell.outputs:
                if GRADE in output.get("data", {}):
                    grade = output.data[GRADE]
                    grades.setdefault(grade["exercise"], []).append(grade)
            if index in errors and not any(output.output_type == "error" for output in cell.outputs):
                return index
    return None


def _outcome(exercise: str, grades: list[dict], closures: list[set[int]], errors: dict[int, str]) -> Outcome:
    """The best of an exercise's grades; without any, the first error of a cell that it needs."""
    if any(grade["passed"] for grade in grades):
        return Outcome(exercise, "passed")
    if grades:
        return Outcome(exercise, "not_yet", grades[-1]["message"])
    if not closures:
        return Outcome(exercise, "not_yet", text("progress.missing", exercise=exercise))
    failed = [errors[index] for closure in closures for index in sorted(closure) if index in errors]
    return Outcome(exercise, "error", (failed or [errors.get(-1, text("progress.silent"))])[0])


# --- the table ---------------------------------------------------------------------------------------------------

def _cells_wide(letters: str) -> int:
    """Columns of a terminal: a Korean syllable takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)


def _row(*columns: str) -> str:
    """Two columns of fixed width, and a third that is as long as it is, on one line."""
    padded = "".join(column + " " * (width - _cells_wide(column))
                     for column, width in zip(columns, WIDTHS, strict=False))
    return (padded + " ".join(columns[2].split())).rstrip()


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def report(paths: list[Path], lang: str) -> int:
    """Print the table, lesson by lesson; the exit status: 0 when every exercise passes, else 1."""
    states = {"passed": text("progress.passed"), "not_yet": text("progress.not_yet"), "error": text("progress.error")}
    watched, started, outcomes = sys.stderr.isatty(), time.perf_counter(), []
    print(_row(text("progress.exercise"), text("progress.result"), text("progress.note")), flush=True)

    def tell(done: int, total: int) -> None:
        line = text("progress.running", path=path.name, done=done + 1, total=total)
        print("\r\x1b[K" + line[:100], end="", file=sys.stderr, flush=True)

    for path in paths:
        begin = time.perf_counter()
        try:
            found = grade_notebook(path, lang, tell) if watched else grade_notebook(path, lang)
        except ValueError as error:
            found = [Outcome(path.name[:2] if re.match(r"\d\d_", path.name) else "?", "error", str(error))]
        if watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(f"{_shown(path)} ({time.perf_counter() - begin:.0f} s)", flush=True)
        for one in found:
            print(_row(one.exercise, states[one.state], one.note), flush=True)
        outcomes += found
    passed = sum(one.state == "passed" for one in outcomes)
    print(text("progress.summary", passed=passed, total=len(outcomes), seconds=f"{time.perf_counter() - started:.0f}"))
    return 0 if passed == len(outcomes) else 1


def main(argv: list[str] | None = None) -> int:
    """The command line: numbers of lessons, or paths of notebooks; all lessons of the language without either."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.progress", description="Which exercises pass.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of lessons, or paths of notebooks")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="the language of the lessons and of the table")
    args = parser.parse_args(argv)
    set_language(args.lang)
    numbers = [one for one in args.lessons if not one.endswith(".ipynb")]
    try:
        names = notebook_names(numbers, solutions=False) if numbers or not args.lessons else []
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    folder = ROOT / "notebooks" / args.lang
    return report([folder / name for name in names]
                  + [Path(one).expanduser().absolute() for one in args.lessons if one.endswith(".ipynb")], args.lang)


if __name__ == "__main__":
    sys.exit(main())
