"""`course.py progress`: which cells run, and what a learner's notebook gets told, run for real."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_lib import graders
from course_lib.runtime import LANGUAGES
from tools import notebooks, progress

RIGHT = """def weight_gb(parameters, bits):
    return parameters * bits / 8 / 1e9

cl.check("01.1", weight_gb)"""
UNTOUCHED = 'def speed(weight_gb, bandwidth):\n    ...  # TODO\n\ncl.check("01.2", speed)'
IMPORT = "import course_lib as cl"
HEADING = "What came before.\n\n## Exercises"


def save(folder: Path, *sources: str, name: str = "my copy.ipynb") -> Path:
    """A notebook of code cells; those that begin a heading's text are text cells."""
    cells = [new_markdown_cell(source) if "## " in source else new_code_cell(source) for source in sources]
    notebooks.write(new_notebook(cells=[new_markdown_cell("Words."), *cells]), folder / name)
    return folder / name


def rows_of(path: Path, lang: str = "en") -> dict[str, progress.Outcome]:
    return {row.exercise: row for row in progress.grade_notebook(path, lang)}


# --- which cells --------------------------------------------------------------------------------------------

def test_set_up_imports_and_exercises_come_first(tmp_path):
    set_up = notebooks.setup_source("ko", notebooks.ROOT)
    sources = [set_up, "%pip list\nimport math as m, os.path\nslow = m.sin(1)", "def f():\n    import json",
               "x = (", RIGHT, "y = 1", "## 연습 문제", "helper = 1", UNTOUCHED, "## 요약", "last = 1"]
    first, every = progress.cells_of(save(tmp_path, *sources))
    imports = "import math as m, os.path"
    assert [cell.source for cell in first] == [set_up, imports, RIGHT, "helper = 1", UNTOUCHED, "last = 1"]
    assert [cell.number for cell in first] == [0, 1, 4, 6, 7, 8] and first[0].is_setup
    assert [cell.source for cell in every] == [source for source in sources if "## " not in source]
    first, every = progress.cells_of(save(tmp_path, "y = 1", RIGHT))
    assert first == every, "without the heading, all there is"


@pytest.mark.parametrize("source, checks", [
    ('cl.check("01.1", f)', ["01.1"]), ("grade = check('12.3', f)", ["12.3"]),
    ('cl.check(exercise_id="01.1", answer=f)', ["01.1"]),
    ('check("01.1", f)\ncheck("01.2", g)', ["01.1", "01.2"]),
    ('# cl.check("01.1", f)', []), ('print("cl.check")', []), ("check(name, f)", []), ("check(1, f)", []),
    ('def f(:\n    pass\ncl.check("01.1", f)', ["01.1"]),
])
def test_exercises_are_found_by_their_calls(source, checks):
    assert progress.Cell(0, source).checks == checks


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", notebooks.notebook_names(solutions=False))
def test_every_exercise_of_the_course_is_found_and_cheap(name, lang):
    first, every = progress.cells_of(notebooks.path_of(name, lang))
    assert sorted(exercise for cell in first for exercise in cell.checks) == graders.exercises(name[:2])
    whole = sum(cell == every[cell.number] for cell in first)
    assert whole <= len(every) / 2, "most of the lesson would run"


# --- for real -----------------------------------------------------------------------------------------------

def test_one_notebook_with_every_kind_of_answer(tmp_path):
    """Cells of the lesson do not run, an error costs no other exercise its grade, and nothing is written."""
    slow = "open('ran.txt', 'w').write('a cell that takes a minute')"
    path = save(tmp_path, slow, "this is no Python", IMPORT, HEADING,
                "raise RuntimeError('of no exercise')", RIGHT, UNTOUCHED, 'cl.check("01.3", 1 / 0)')
    before = path.read_bytes()
    rows = progress.grade_notebook(path, "ko")
    states = [(row.exercise, row.state) for row in rows]
    assert states == [("01.1", "passed"), ("01.2", "not_yet"), ("01.3", "error")]
    assert re.search("[가-힣]", rows[1].note), "hints come in the language that was asked for"
    assert rows[2].note == "ZeroDivisionError: division by zero"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("answer", [
    'cl.check("01.1", lambda parameters, bits: size(parameters, bits))', 'f = size\ncl.check("01.1", f)',
])
def test_a_name_from_the_lesson_makes_the_whole_notebook_run(answer, tmp_path):
    """Whether a cell asks for it or a function that the grader calls; a name that nobody binds stays."""
    helper = "def size(parameters, bits):\n    return parameters * bits / 8 / 1e9"
    third = 'cl.check("01.3", choice)'
    rows = rows_of(save(tmp_path, IMPORT, helper, "raise RuntimeError", HEADING, answer, third))
    assert (rows["01.1"].state, rows["01.2"].state) == ("passed", "not_yet")
    assert 'cl.check("01.2", …)' in rows["01.2"].note, "an exercise that was deleted"
    assert rows["01.3"].note == "NameError: name 'choice' is not defined"


def test_the_better_of_two_answers_counts_and_a_broken_set_up_explains_the_rest(tmp_path):
    grade = RIGHT.replace("cl.check", "grade = cl.check")
    assert rows_of(save(tmp_path, IMPORT, HEADING, grade, 'cl.check("01.1", None)'))["01.1"].state == "passed"
    path = save(tmp_path, "import nowhere\nimport course_lib as cl\ncl.setup()", HEADING, RIGHT)
    assert rows_of(path)["01.1"].note == "ModuleNotFoundError: No module named 'nowhere'"


def test_a_kernel_that_dies_or_hangs_costs_one_exercise(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EXERCISE_TIMEOUT", 3)
    path = save(tmp_path, IMPORT, HEADING, RIGHT, 'import os\nos._exit(1)\ncl.check("01.2", 1)',
                'while True: pass\ncl.check("01.3", 1)', RIGHT.replace("01.1", "02.1"))
    rows = rows_of(path)
    assert rows["01.1"].state == "passed" and rows["02.1"].state == "not_yet"
    assert (rows["01.2"].state, rows["01.2"].note[:16]) == ("error", "the kernel ended")
    assert (rows["01.3"].state, rows["01.3"].note[:17]) == ("error", "stopped after 3 s")


def test_a_real_lesson_with_one_exercise_solved(tmp_path):
    """Lesson 02 as a learner's copy: new cell ids, one answer from the solutions, the others untouched."""
    name = "02_load_and_chat.ipynb"
    lesson = notebooks.read(notebooks.path_of(name, "ko"))
    solutions = notebooks.read(notebooks.path_of(f"solutions/{name}", "ko"))
    solved = next(cell.source for cell in solutions.cells if 'cl.check("02.2"' in cell.source)
    sources = [solved if 'cl.check("02.2"' in cell.source else cell.source
               for cell in lesson.cells if cell.cell_type == "code" or "## 연습 문제" in cell.source]
    states = {exercise: row.state for exercise, row in rows_of(save(tmp_path, *sources), "ko").items()}
    assert states == {"02.1": "not_yet", "02.2": "passed", "02.3": "not_yet"}


# --- the command line ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, words", [
    (None, "there is no notebook"), ("{", "is no notebook"), ("[1]", "is no notebook"),
    ("{}", "is no notebook"),
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
    outcome = ("passed", "") if all_pass else ("not_yet", "Two\nlines.")
    rows = [progress.Outcome("01.1", "passed"), progress.Outcome("01.2", *outcome)]
    monkeypatch.setattr(progress, "grade_notebook", lambda path, lang: rows)
    assert progress.main(["1", str(tmp_path / "copy.ipynb"), "--lang", "ko"]) == (0 if all_pass else 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "연습 문제 결과     채점기의 설명"
    assert lines[1].startswith("notebooks/ko/01_why_small_models.ipynb (")
    assert lines[2] == "01.1      통과"
    assert lines[3] == ("01.2      통과" if all_pass else "01.2      미완료   Two lines.")
    assert len(lines) == 8 and f"연습 문제 4개 중 {4 if all_pass else 2}개 통과" in lines[7]
