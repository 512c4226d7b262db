"""The command line of pairs, what translators read and write with it, and the files behind it."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_notebook

from tests.course.small_course import (
    CODE,
    KOREAN_CODE,
    LOSS,
    NAME,
    SOLUTIONS,
    TABLE,
    cells_of,
    change_source,
    edit,
    save,
    set_up_cell,
)
from tools import notebooks, pairs
from tools.notebooks import path_of

# --- files --------------------------------------------------------------------------------------------------

def test_write_is_atomic(course, monkeypatch):
    path = path_of(NAME, "en", course)
    before = path.read_bytes()

    def fail(*_, **__):
        raise ValueError("no JSON")

    notebook = notebooks.read(path)
    for module, function in ((nbformat, "writes"), (os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="no JSON"):
            patch.setattr(module, function, fail)
            notebooks.write(notebook if function == "writes" else new_notebook(), path)
    assert path.read_bytes() == before


def test_write_ends_with_one_line_break_and_has_no_carriage_returns(course):
    written = path_of(NAME, "ko", course).read_bytes()
    assert b"\r" not in written and written.endswith(b"}\n") and "문장입니다.".encode() in written


def test_notebook_names(course):
    save(course, "en", [set_up_cell(course)], "02_second.ipynb")
    save(course, "en", [set_up_cell(course)], SOLUTIONS)
    assert notebooks.notebook_names(root=course) == [NAME, "02_second.ipynb", SOLUTIONS]
    assert notebooks.notebook_names(["1"], root=course) == [NAME, SOLUTIONS]
    assert notebooks.notebook_names(["02", "01"], root=course, solutions=False) == [NAME, "02_second.ipynb"]
    with pytest.raises(LookupError, match="no lesson 07, 99; there are 01_first, 02_second"):
        notebooks.notebook_names(["7", "01", "99"], root=course)


# --- the command line ---------------------------------------------------------------------------------------

def test_cli_status(cli, capsys):
    assert pairs.main(["status"]) == 0 == pairs.main(["status", "1"])
    assert capsys.readouterr().out.endswith("every pair is whole\n")
    edit(cli, "en", change_source("text", "Changed."))
    assert pairs.main(["status", "01"]) == 1
    assert capsys.readouterr().out == f"{NAME} text: stale: the English changed since it was translated\n"


def test_cli_sync_chooses_by_number_and_says_what_it_left(cli, capsys):
    edit(cli, "en", change_source("b", "print(1 + 1)"))
    assert pairs.main(["sync", "1"]) == 0
    assert cells_of(cli, "ko")["b"].source == "print(1 + 1)"
    edit(cli, "ko", lambda cells: cells[2].metadata["ko"].update({"# why": "no comment"}))
    assert pairs.main(["sync"]) == 1
    assert f"left as it is: {NAME} a: the Korean of # why must be one comment" in capsys.readouterr().err


def test_cli_translated_finds_the_notebook_of_each_id(cli):
    edit(cli, "en", change_source("text", "Changed."))
    title = cells_of(cli, "en", SOLUTIONS)["solutions-title"].source
    edit(cli, "en", change_source("solutions-title", title + " More."), SOLUTIONS)
    assert pairs.main(["translated", "01", "text"]) == 0
    assert [finding.notebook for finding in pairs.status(cli)] == [SOLUTIONS]
    edit(cli, "en", change_source("text", "Changed again."))
    assert pairs.main(["translated", "01", "text", "solutions-title"]) == 0
    assert pairs.status(cli) == []


def test_cli_literals_and_fill(cli, tmp_path, capsys):
    """What `literals` prints is what `fill` reads, section by section or by cell alone."""
    edit(cli, "en", change_source("a", CODE + '\nprint("one more", "in both")'))
    edit(cli, "en", change_source("a", 'print("in both")  # new'), SOLUTIONS)
    assert pairs.main(["literals", "01"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {NAME: {"a": {**TABLE, '"one more"': "", '"in both"': ""}},
                       SOLUTIONS: {"a": {'"in both"': "", "# new": ""}}}
    assert pairs.main(["literals", "01", "--missing"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed[NAME] == {"a": {'"one more"': "", '"in both"': ""}}
    printed[NAME]["a"]['"one more"'] = '"하나 더"'
    for written in (printed, {"a": {'"in both"': None, "# new": "# 새로운 것"}}):
        (tmp_path / "filled.json").write_text(json.dumps(written), encoding="utf-8")
        assert pairs.main(["fill", "01", str(tmp_path / "filled.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{NAME}: 1 entries written, 1 still missing",
                                                    f"{NAME}: 1 entries written, 0 still missing",
                                                    f"{SOLUTIONS}: 2 entries written, 0 still missing"]
    assert cells_of(cli, "ko")["a"].source == KOREAN_CODE + '\nprint("하나 더", "in both")'
    assert cells_of(cli, "ko", SOLUTIONS)["a"].source == 'print("in both")  # 새로운 것'
    assert pairs.status(cli) == [] and pairs.main(["literals", "01", "--missing"]) == 0
    assert capsys.readouterr().out == "{}\n"


@pytest.mark.parametrize("written, words", [
    ({"a": {"# wy": "# 이유"}}, f"{NAME}, {SOLUTIONS} a: no literal or comment # wy; did you mean # why"),
    ({"text": {"# why": "# 이유"}}, "no code cell text"),
    ({"setup": {"# why": "# 이유"}}, "no code cell setup"),
    ({NAME: {"a": {"# wy": ""}}}, f"{NAME} a: no literal or comment # wy"),
    ({"07_x.ipynb": {"a": {"# why": ""}}}, f"no notebook 07_x.ipynb; there are {NAME}, {SOLUTIONS}"),
    ({"a": {"# why": "이유", "# wy": None}}, "no literal or comment # wy"),
    ({"a": {"# why": "이유"}}, f"{NAME} a: the Korean of # why must be one comment with its #"),
    ({"a": {LOSS: 'f"{loss:.2f} 손실"'}}, "lost: {steps}; added: none"),
    ({"a": ["# why"]}, "a must hold an object"), (["a"], "the file must hold an object"),
])
def test_fill_names_what_does_not_fit_and_writes_nothing(cli, written, words, tmp_path, capsys):
    before = [path_of(name, "ko", cli).read_bytes() for name in (NAME, SOLUTIONS)]
    (tmp_path / "filled.json").write_text(json.dumps(written), encoding="utf-8")
    assert pairs.main(["fill", "01", str(tmp_path / "filled.json")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.endswith("nothing was written\n") and "Traceback" not in error
    assert before == [path_of(name, "ko", cli).read_bytes() for name in (NAME, SOLUTIONS)]


@pytest.mark.parametrize("content, words", [(None, "cannot be read"), ("{", "is no JSON: ")])
def test_fill_says_what_is_wrong_with_a_file(cli, content, words, tmp_path, capsys):
    if content:
        (tmp_path / "filled.json").write_text(content, encoding="utf-8")
    assert pairs.main(["fill", "01", str(tmp_path / "filled.json")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("argv, named", [
    (["sync", "99"], "01_first"), (["run", "99"], "01_first"), (["execute", "99"], "01_first"),
    (["status", "99"], "01_first"), (["translated", "99"], "01_first"),
    (["translated", "01", "nowhere"], "nowhere"),
    (["literals", "99"], "01_first"),
])
def test_cli_says_what_is_unknown(cli, capsys, argv, named):
    assert pairs.main(argv) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["dance"], ["run", "--lang", "fr"], ["fill", "01"]])
def test_cli_refuses_wrong_use(argv):
    with pytest.raises(SystemExit) as refused:
        pairs.main(argv)
    assert refused.value.code == 2


def test_module_can_be_called_from_the_command_line():
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "tools.pairs", "run", "99"]
    done = subprocess.run(command, env=environment, cwd=notebooks.ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "no lesson 99" in done.stderr and "Traceback" not in done.stderr
