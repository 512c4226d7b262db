"""Fixtures of the tests of pairs: a course of one small lesson in a temporary root."""
from __future__ import annotations

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tests.course.small_course import (
    BADGE,
    CODE,
    NAME,
    SOLUTIONS,
    TABLE,
    configure,
    edit,
    replace_root,
    save,
    set_up_cell,
)
from tools import pairs


@pytest.fixture
def course(tmp_path):
    """A whole pair: a translated title and sentence, a set-up cell, two code cells with outputs."""
    configure(tmp_path, "ours/course")
    title = new_markdown_cell(f"# 01 · First\n\n{BADGE}", id="title")
    save(tmp_path, "en", [title, set_up_cell(tmp_path), new_code_cell(CODE, id="a"),
                          new_markdown_cell("A sentence.", id="text"), new_code_cell("print(data)", id="b")])
    assert pairs.sync(NAME, tmp_path, {"a": TABLE}) == []

    def translate(cells):
        for cell in cells:
            if cell.cell_type == "code":
                cell.outputs = [new_output("stream", name="stdout", text=f"출력 {cell.id}\n")]
                cell.execution_count = 7
        by_id = {cell.id: cell for cell in cells}
        by_id["title"].source = by_id["title"].source.replace("First", "처음")
        by_id["text"].source = "문장입니다."

    edit(tmp_path, "ko", translate)
    pairs.translated(NAME, [], tmp_path)
    assert pairs.status(tmp_path) == []
    return tmp_path


@pytest.fixture
def cli(course, monkeypatch):
    """The small course as the root of the command line, with a solutions pair."""
    title = new_markdown_cell(f"# 01 · First: solutions\n\n{BADGE}", id="solutions-title")
    save(course, "en", [title, set_up_cell(course), new_code_cell("print(1)", id="a")], SOLUTIONS)
    replace_root(monkeypatch, course)
    assert pairs.main(["sync"]) == 0 and pairs.main(["translated", "01"]) == 0
    return course
