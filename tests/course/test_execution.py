"""Executing notebooks: a line for each cell, errors named, sources untouched unless all passed."""
from __future__ import annotations

import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.course.small_course import NAME, replace_root, save
from tools import execution, notebooks, pairs
from tools.notebooks import path_of


@pytest.fixture
def runnable(tmp_path):
    """A function that runs a notebook of these code cells; it returns the result and the source's bytes."""
    def run(*sources: str, **options):
        save(tmp_path, "en", [new_code_cell(source, id=f"c{index}") for index, source in enumerate(sources)])
        before = path_of(NAME, "en", tmp_path).read_bytes()
        return execution.run_notebook(NAME, "en", root=tmp_path, **options), before
    return run


def test_run_leaves_the_source_alone_and_shows_progress(runnable, tmp_path, capsys):
    source = "# a comment\nfrom pathlib import Path\nprint('in', Path.cwd().name)"
    result, before = runnable(source, "'two'", "for i in range(100): print(i)")
    assert result.error is None and (result.notebook, result.lang, result.cells) == (NAME, "en", 3)
    assert path_of(NAME, "en", tmp_path).read_bytes() == before
    copied = notebooks.read(tmp_path / "build" / "en" / NAME).cells
    assert [cell.execution_count for cell in copied] == [1, 2, 3]
    assert copied[0].outputs[0].text == "in en\n", "a notebook runs in its own folder"
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"en/01_first \[1/3\] +\d+\.\d s  from pathlib import Path", lines[0])
    assert lines[1] == "    in en" and lines[2].startswith("en/01_first [2/3]") and lines[3] == "    'two'"
    assert len(lines) == 5 + execution.SHOWN_LINES + 1
    assert lines[-1] == f"    … {100 - execution.SHOWN_LINES} more lines"
    assert execution.summarise([result], 1.0) == 0
    assert re.search(rf"{NAME} +en +3 +\d+\.\d  pass\n1 passed, 0 failed in 1 s", capsys.readouterr().out)


def test_a_failing_cell_is_named_with_its_traceback(runnable, tmp_path, capsys):
    result, before = runnable("number = 0", "print('before')\n1 / number", "print('never')", store=True)
    assert "1 / number" in result.error and "ZeroDivisionError: division by zero" in result.error
    assert "\x1b" not in result.error
    assert path_of(NAME, "en", tmp_path).read_bytes() == before, "outputs of a failed run are not stored"
    assert "never" not in capsys.readouterr().out
    assert execution.summarise([result], 2.0) == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "FAIL" in out and out.endswith("0 passed, 1 failed in 2 s\n")


def test_a_hanging_cell_ends_at_the_timeout(runnable, monkeypatch):
    monkeypatch.setattr(execution, "CELL_TIMEOUT", 1)
    result, _ = runnable("import time; time.sleep(60)")
    assert "timed out" in result.error and "after 1 seconds" in result.error


def test_store_writes_outputs_into_the_source(runnable, tmp_path):
    result, _ = runnable("import sys; print(1); sys.stdout.flush(); print(2)", store=True)
    assert result.error is None and not (tmp_path / "build").exists()
    notebook = notebooks.read(path_of(NAME, "en", tmp_path))
    assert [output.text for output in notebook.cells[0].outputs] == ["1\n2\n"]
    assert notebook.cells[0].execution_count == 1 and "execution" not in notebook.cells[0].metadata
    assert "widgets" not in notebook.metadata and "version" not in notebook.metadata.language_info
    assert notebook.metadata.language_info.name == "python"


def test_cells_go_on_past_errors_until_the_kernel_is_gone(tmp_path):
    allowed = new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})
    sources = ["x", "x = 1", "import os; os._exit(1)", "x"]
    notebook = new_notebook(cells=[new_markdown_cell("Words."), allowed, *map(new_code_cell, sources)])
    ran = list(execution.execute(notebook, tmp_path))
    assert [cell.ending for cell in ran] == ["done", "error", "done", "died"]
    assert ran[1].error == "NameError: name 'x' is not defined" and ran[3].error


def test_cli_runs_the_chosen_language(tmp_path, monkeypatch, capsys):
    save(tmp_path, "en", [new_code_cell("1 / 0")])
    save(tmp_path, "ko", [new_code_cell("print('안녕')")])
    replace_root(monkeypatch, tmp_path)
    assert pairs.main(["run", "01", "--lang", "ko"]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out
    copies = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "build").rglob("*.ipynb")]
    assert copies == [f"build/ko/{NAME}"]
