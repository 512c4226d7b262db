"""`course.py progress`: what an exercise needs, found by names; what a learner's notebook gets told, run for real."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib import graders, lessons, progress, runtime
from course_lib.names import needed, study

RIGHT = 'def weight_gb(parameters, bits):\n    return parameters * bits / 8 / 1e9\n\ncl.check("01.1", weight_gb)'
UNTOUCHED = 'def speed(weight_gb, bandwidth):\n    ...  # TODO\n\ncl.check("01.2", speed)'
IMPORT = "import course_lib as cl"


def save(folder: Path, *sources: str, name: str = "my copy.ipynb") -> Path:
    """A notebook of code cells, with a text cell in front."""
    path = folder / name
    lessons.write(new_notebook(cells=[new_markdown_cell("Words."), *map(new_code_cell, sources)]), path)
    return path


def states(path: Path, lang: str = "en") -> dict[str, str]:
    return {one.exercise: one.state for one in progress.grade_notebook(path, lang)}


# --- what an exercise needs --------------------------------------------------------------------------------------

def sources_needed(*sources: str) -> list[str]:
    """The sources that the last cell needs, without its own."""
    cells = [part for source in sources for part in study(source)]
    return [cells[index].source for index in sorted(needed(cells, len(cells) - 1))][:-1]


@pytest.mark.parametrize("before, last, expected", [
    (["a = 1", "b = a + 1", "c = 3"], "b", ["a = 1", "b = a + 1"]),
    (["a = 1", "a = 2"], "a", ["a = 2"]),
    (["a = 1", "a = 2", "b = 3"], "a = 5\na", []),
    (["a = 1", "if True:\n    a = 2"], "a", ["a = 1", "if True:\n    a = 2"]),
    (["a = []", "a.append(1)", "a[0] = 2", "print(a)"], "a", ["a = []", "a.append(1)", "a[0] = 2"]),
    (["a = 1", "a += 1"], "a", ["a = 1", "a += 1"]),
    (["x = 1", "[x for x in range(3)]"], "x", ["x = 1"]),
    (["def f(x):\n    y = x\n    return y", "y = 1", "x = 1"], "f(2)", ["def f(x):\n    y = x\n    return y"]),
    (["with open('f') as file:\n    a = file.read()"], "a", ["with open('f') as file:\n    a = file.read()"]),
    (["a, (b, *c) = 1, (2, 3)"], "c", ["a, (b, *c) = 1, (2, 3)"]),
    (["n = 4", "print([n * i for i in range(n)])", "squares = [n * i for i in range(n)]"], "squares",
     ["n = 4", "squares = [n * i for i in range(n)]"]),
    (["a = 1"], "def f():\n    a = 2\n    return a", []),
    (["a = 1", "def f():\n    global a\n    a = 2"], "a", ["a = 1", "def f():\n    global a\n    a = 2"]),
    (["%%time\na = 1"], "a", ["%%time\na = 1"]),
    (["%pip list\na = 1"], "a", ["%pip list\na = 1"]),
    (["a = (", "b = 1"], "a", ["a = ("]),
])
def test_names_lead_to_the_cells(before, last, expected):
    assert sources_needed(*before, last) == expected


def test_a_function_finds_what_was_defined_after_it():
    sources = ["def f():\n    return g()", "h = 1", "def g():\n    return 1"]
    assert sources_needed(*sources, "f()") == [sources[0], sources[2]]


def test_imports_come_without_the_cell_that_they_stand_in():
    assert sources_needed("import math, os.path\nslow = math.factorial(10**6)", "math.pi") == ["import math, os.path"]
    assert sources_needed("import math as m\nm.shown = 1", "m.show()", "m.pi") == ["import math as m"], "no module changes"


def test_the_set_up_cell_is_always_needed_whole():
    set_up = lessons.SETUP.format(repository="a/b", lang="ko")
    assert sources_needed(set_up, "import math\n1", "2") == [set_up]


@pytest.mark.parametrize("source, found", [
    ('cl.check("01.1", f)', ("01.1",)), ("grade = check('12.3', f)", ("12.3",)),
    ('cl.check(exercise_id="01.1", answer=f)', ("01.1",)), ('check("01.1", f)\ncheck("01.2", g)', ("01.1", "01.2")),
    ('# cl.check("01.1", f)', ()), ('print("cl.check")', ()), ("check(name, f)", ()), ("check(1, f)", ()),
    ('def f(:\n    pass\ncl.check("01.1", f)', ("01.1",)),
])
def test_exercises_are_found_by_their_calls(source, found):
    assert study(source)[-1].checks == found


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
@pytest.mark.parametrize("name", lessons.notebook_names(solutions=False))
def test_every_exercise_of_the_course_is_found_and_cheap(name, lang):
    sources = [cell.source for cell in lessons.read(lessons.ROOT / "notebooks" / lang / name).cells
               if cell.cell_type == "code"]
    cells = [part for source in sources for part in study(source)]
    targets = [index for index, cell in enumerate(cells) if cell.checks]
    found = [exercise for index in targets for exercise in cells[index].checks]
    assert sorted(found) == [exercise for exercise in graders.exercises() if exercise[:2] == name[:2]]
    plan = set().union(*(needed(cells, index) for index in targets))
    assert len(plan) <= len(sources) / 2 or name[:2] == "12", "most of the lesson would run"


# --- for real ----------------------------------------------------------------------------------------------------

def test_one_notebook_with_every_kind_of_answer(tmp_path):
    """Cells that nothing needs do not run, and an error costs no other exercise its grade."""
    path = save(tmp_path, "open('ran.txt', 'w').write('a cell that takes a minute')", "this is no Python", IMPORT,
                "raise RuntimeError('of no exercise')", RIGHT, UNTOUCHED, 'cl.check("01.3", choice)', "choice = 'later'")
    before = path.read_bytes()
    rows = progress.grade_notebook(path, "ko")
    assert [(row.exercise, row.state) for row in rows] == [("01.1", "passed"), ("01.2", "not_yet"), ("01.3", "error")]
    assert re.search("[가-힣]", rows[1].note), "hints come in the language that was asked for"
    assert rows[2].note == "NameError: name 'choice' is not defined"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_helpers_copies_and_lost_cells(tmp_path):
    """A helper in a cell of its own; two cells for one exercise, of which one is right; an exercise that was deleted."""
    helper = "eight = 8\ndef size(bits):\n    return bits / eight"
    answer = 'grade = cl.check("01.1", lambda parameters, bits: parameters * size(bits) / 1e9)\nassert grade'
    rows = progress.grade_notebook(save(tmp_path, IMPORT, helper, answer, 'cl.check("01.1", None)', UNTOUCHED), "en")
    assert [(row.exercise, row.state) for row in rows] == [("01.1", "passed"), ("01.2", "not_yet"), ("01.3", "not_yet")]
    assert 'cl.check("01.3", …)' in rows[2].note


def test_a_kernel_that_dies_or_hangs_costs_one_exercise(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EXERCISE_TIMEOUT", 3)
    path = save(tmp_path, IMPORT, RIGHT, 'import os\nos._exit(1)\ncl.check("01.2", 1)', 'while True: pass\ncl.check("01.3", 1)',
                RIGHT.replace("01.1", "02.1"))
    rows = {row.exercise: row for row in progress.grade_notebook(path, "en")}
    assert rows["01.1"].state == "passed" and rows["02.1"].state == "not_yet"
    assert (rows["01.2"].state, rows["01.2"].note[:16]) == ("error", "the kernel ended")
    assert (rows["01.3"].state, rows["01.3"].note[:17]) == ("error", "stopped after 3 s")


def test_a_real_lesson_with_one_exercise_solved(tmp_path):
    """Lesson 02 as a learner's copy: new cell ids, one answer from the solutions, the others untouched."""
    notebook = lessons.read(lessons.ROOT / "notebooks" / "ko" / "02_load_and_chat.ipynb")
    solutions = lessons.read(lessons.ROOT / "notebooks" / "ko" / "solutions" / "02_load_and_chat.ipynb")
    solved = next(cell.source for cell in solutions.cells if 'cl.check("02.2"' in cell.source)
    sources = [solved if 'cl.check("02.2"' in cell.source else cell.source
               for cell in notebook.cells if cell.cell_type == "code"]
    assert states(save(tmp_path, *sources), "ko") == {"02.1": "not_yet", "02.2": "passed", "02.3": "not_yet"}


# --- the command line --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, words", [
    (None, "there is no notebook"), ("{", "is no notebook"), ("[1]", "is no notebook"), ("{}", "is no notebook"),
    (json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}), "has no exercises"),
])
def test_files_that_are_no_lesson(content, words, tmp_path, capsys):
    path = tmp_path / "thing.ipynb"
    if content is not None:
        path.write_text(content)
    assert progress.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert words in out and "Traceback" not in out and "0 of 1" in out


def test_an_unknown_lesson_lists_the_known(capsys):
    assert progress.main(["77"]) == 2
    assert "no lesson 77; there are 01_why_small_models" in capsys.readouterr().err


@pytest.mark.parametrize("all_pass", [True, False])
def test_table_and_status(all_pass, tmp_path, capsys, monkeypatch):
    rows = [progress.Outcome("01.1", "passed"),
            progress.Outcome("01.2", "passed" if all_pass else "not_yet", "" if all_pass else "Two\nlines.")]
    monkeypatch.setattr(progress, "grade_notebook", lambda path, lang: rows)
    assert progress.main(["1", str(tmp_path / "copy.ipynb"), "--lang", "ko"]) == (0 if all_pass else 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "연습 문제 결과     채점기의 설명" and lines[1].startswith("notebooks/ko/01_why_small_models.ipynb (")
    assert lines[2] == "01.1      통과" and (lines[3] == "01.2      통과" or lines[3] == "01.2      미완료   Two lines.")
    assert len(lines) == 8 and f"연습 문제 4개 중 {4 if all_pass else 2}개 통과" in lines[7]
