"""The machinery of the bilingual course, on a small pair of notebooks in a temporary root: pairs, runs, graders."""
from __future__ import annotations

import copy
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib import execution, lessons, runtime

NAME = "01_first.ipynb"
SOLUTIONS = "solutions/01_first.ipynb"
HANGUL = re.compile("[가-힣]")
BADGE = "[![Open in Colab](old.svg)](old)"
STRINGS = json.loads((Path(lessons.__file__).parent / "strings.json").read_text(encoding="utf-8"))


# --- a small course ----------------------------------------------------------------------------------------------

def configure(root: Path, repository: str) -> None:
    lines = f'[project.urls]\nRepository = "https://github.com/{repository}"\n'
    (root / "pyproject.toml").write_text(lines, encoding="utf-8")


def set_up_cell(lang: str = "en"):
    source = lessons.SETUP.format(repository="ours/course", lang=lang)
    return new_code_cell(source, id="setup", metadata={"tags": ["setup"]})


def path_of(root: Path, lang: str, name: str = NAME) -> Path:
    return root / "notebooks" / lang / name


def save(root: Path, lang: str, cells: list, name: str = NAME) -> None:
    lessons.write(new_notebook(cells=copy.deepcopy(cells)), path_of(root, lang, name))


def cells_of(root: Path, lang: str, name: str = NAME) -> dict:
    return {cell.id: cell for cell in lessons.read(path_of(root, lang, name)).cells}


def edit(root: Path, lang: str, change, name: str = NAME) -> None:
    """Apply `change` to the list of cells of one notebook."""
    cells = lessons.read(path_of(root, lang, name)).cells
    save(root, lang, change(cells) or cells, name)


def change_source(cell_id: str, source: str):
    def change(cells):
        next(cell for cell in cells if cell.id == cell_id).source = source
    return change


def problems(root: Path) -> list[tuple[str, str]]:
    return [(finding.cell, finding.problem) for finding in lessons.status(root)]


@pytest.fixture
def course(tmp_path):
    """A whole pair: a translated title and sentence, a set-up cell, two code cells with outputs in both languages."""
    configure(tmp_path, "ours/course")
    lessons_folder = [new_markdown_cell(f"# 01 · First\n\n{BADGE}", id="title"), set_up_cell(),
                      new_code_cell("print('a')", id="a"), new_markdown_cell("A sentence.", id="text"),
                      new_code_cell("print('b')", id="b")]
    save(tmp_path, "en", lessons_folder)
    lessons.sync(NAME, tmp_path)

    def translate(cells):
        for cell in cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text=f"출력 {cell.id}\n")], 7
        by_id = {cell.id: cell for cell in cells}
        by_id["title"].source = by_id["title"].source.replace("First", "처음")
        by_id["text"].source = "문장입니다."

    edit(tmp_path, "ko", translate)
    lessons.translated(NAME, [], tmp_path)
    assert lessons.status(tmp_path) == []
    return tmp_path


def replace_root(monkeypatch, folder: Path) -> None:
    """Point ROOT, and the default arguments that hold it, to `folder`."""
    original = lessons.ROOT
    for module in (lessons, execution):
        monkeypatch.setattr(module, "ROOT", folder)
        for _, function in inspect.getmembers(module, inspect.isfunction):
            positional, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
            if original in positional:
                monkeypatch.setattr(function, "__defaults__", tuple(folder if v is original else v for v in positional))
            if original in keywords.values():
                monkeypatch.setattr(function, "__kwdefaults__", {**keywords, "root": folder})


@pytest.fixture
def cli(course, monkeypatch):
    """The small course as the root of the command line, with a solutions pair."""
    title = new_markdown_cell(f"# 01 · First: solutions\n\n{BADGE}", id="solutions-title")
    save(course, "en", [title, set_up_cell()], SOLUTIONS)
    replace_root(monkeypatch, course)
    assert lessons.main(["sync"]) == 0 and lessons.main(["translated", "01"]) == 0
    return course


# --- sync --------------------------------------------------------------------------------------------------------

def test_sync_makes_a_missing_korean_notebook(tmp_path):
    configure(tmp_path, "ours/course")
    save(tmp_path, "en", [set_up_cell(), new_markdown_cell("Words.", id="text"),
                          new_code_cell("1", id="one", outputs=[new_output("stream", text="1")], execution_count=1)])
    lessons.sync(NAME, tmp_path)
    korean = cells_of(tmp_path, "ko")
    assert list(korean) == ["setup", "text", "one"]
    assert 'lang="ko"' in korean["setup"].source
    assert korean["one"].outputs == [] and korean["one"].execution_count is None
    assert problems(tmp_path) == [("text", "not translated yet")]


def test_sync_of_a_whole_pair_changes_nothing(course):
    before = {lang: path_of(course, lang).read_bytes() for lang in runtime.LANGUAGES}
    lessons.sync(NAME, course)
    assert before == {lang: path_of(course, lang).read_bytes() for lang in runtime.LANGUAGES}


def test_sync_carries_new_removed_and_reordered_cells(course):
    def rearrange(cells):
        by_id = {cell.id: cell for cell in cells}
        return [by_id["title"], by_id["setup"], by_id["text"], new_markdown_cell("New.", id="new"),
                new_code_cell("print('new')", id="c", metadata={"tags": ["nbval-ignore-output"]}), by_id["b"]]

    edit(course, "en", rearrange)
    lessons.sync(NAME, course)
    korean = cells_of(course, "ko")
    assert list(korean) == ["title", "setup", "text", "new", "c", "b"]
    assert korean["text"].source == "문장입니다." and "처음" in korean["title"].source
    assert korean["c"].source == "print('new')" and korean["c"].metadata.tags == ["nbval-ignore-output"]
    assert korean["b"].outputs[0].text == "출력 b\n" and korean["b"].execution_count == 7
    assert problems(course) == [("new", "not translated yet")]


def test_sync_drops_only_the_outputs_of_changed_code(course):
    edit(course, "en", change_source("a", "print('changed')"))
    lessons.sync(NAME, course)
    korean = cells_of(course, "ko")
    assert korean["a"].source == "print('changed')"
    assert korean["a"].outputs == [] and korean["a"].execution_count is None
    assert korean["b"].outputs[0].text == "출력 b\n"
    assert lessons.status(course) == []


def test_sync_undoes_a_change_of_korean_code(course):
    edit(course, "ko", change_source("a", "print('나만의 코드')"))
    lessons.sync(NAME, course)
    assert cells_of(course, "ko")["a"].source == "print('a')"


def test_sync_follows_a_cell_that_turns_from_text_to_code(course):
    edit(course, "en", lambda cells: [new_code_cell("2", id="text") if cell.id == "text" else cell for cell in cells])
    assert problems(course) == [("text", "a code cell in one language, a text cell in the other (run sync)")]
    lessons.sync(NAME, course)
    assert cells_of(course, "ko")["text"].cell_type == "code"
    assert lessons.status(course) == []


def test_set_up_and_badge_follow_the_configured_repository(course):
    configure(course, "theirs/other.name")
    assert {cell for cell, _ in problems(course)} == {"title", "setup"}
    lessons.sync(NAME, course)
    for lang in runtime.LANGUAGES:
        cells = cells_of(course, lang)
        assert cells["setup"].source == lessons.SETUP.format(repository="theirs/other.name", lang=lang)
        link = f"https://colab.research.google.com/github/theirs/other.name/blob/main/notebooks/{lang}/{NAME}"
        assert f"[![Open in Colab](../assets/open-in-colab.svg)]({link})" in cells["title"].source
    assert lessons.status(course) == [], "a new repository name makes no translation stale"


def test_a_new_repository_name_does_not_hide_a_stale_title(course):
    edit(course, "en", change_source("title", cells_of(course, "en")["title"].source + " More."))
    configure(course, "theirs/other")
    lessons.sync(NAME, course)
    assert problems(course) == [("title", "stale: the English changed since it was translated")]


def test_badge_of_a_solutions_notebook_climbs_one_folder_more(course):
    assert lessons.badge(SOLUTIONS, "ko", course).startswith("[![Open in Colab](../../assets/")
    assert f"/notebooks/ko/{SOLUTIONS})" in lessons.badge(SOLUTIONS, "ko", course)


def test_repository_without_its_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    with pytest.raises(LookupError, match="Repository = "):
        lessons.repository(tmp_path)


# --- status and translated ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_status_names_a_missing_notebook(course, lang):
    path_of(course, lang).unlink()
    assert [str(finding) for finding in lessons.status(course)] == [f"{NAME}: missing in {lang}"]


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_status_names_a_missing_cell(course, lang):
    edit(course, lang, lambda cells: [cell for cell in cells if cell.id != "text"])
    assert problems(course) == [("", "only in one language: text (run sync)")]


def test_status_sees_another_order(course):
    edit(course, "ko", lambda cells: cells[::-1])
    assert problems(course) == [("", "the order of the cells differs (run sync)")]


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_status_sees_code_that_differs(course, lang):
    edit(course, lang, change_source("a", "print('A')"))
    assert problems(course) == [("a", "the code differs (run sync)")]


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_status_sees_a_changed_set_up_cell(course, lang):
    edit(course, lang, change_source("setup", "import course_lib as cl"))
    assert problems(course) == [("setup", f"the set-up cell in {lang} is not the configured one (run sync)")]


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_status_sees_a_badge_that_leads_elsewhere(course, lang):
    title = cells_of(course, lang)["title"].source
    edit(course, lang, change_source("title", title.replace("ours/course", "else/where")))
    assert ("title", f"the badge in {lang} is not the configured one (run sync)") in problems(course)


def test_status_sees_stale_text_until_it_is_translated(course):
    edit(course, "en", change_source("text", "Another sentence."))
    assert problems(course) == [("text", "stale: the English changed since it was translated")]
    lessons.sync(NAME, course)
    assert [cell for cell, _ in problems(course)] == ["text"], "sync alone translates nothing"
    lessons.translated(NAME, ["text"], course)
    assert lessons.status(course) == []


def test_status_looks_into_solutions_and_past_checkpoints(course):
    save(course, "en", [set_up_cell()], SOLUTIONS)
    save(course, "en", [set_up_cell()], ".ipynb_checkpoints/01_first-checkpoint.ipynb")
    assert [str(finding) for finding in lessons.status(course)] == [f"{SOLUTIONS}: missing in ko"]


def test_translated_marks_only_the_named_cells(course):
    edit(course, "en", lambda cells: [*cells, new_markdown_cell("x", id="x"), new_markdown_cell("y", id="y")])
    lessons.sync(NAME, course)
    lessons.translated(NAME, ["y"], course)
    assert problems(course) == [("x", "not translated yet")]
    lessons.translated(NAME, [], course)
    assert lessons.status(course) == []


@pytest.mark.parametrize("cell_id", ["nowhere", "a"])
def test_translated_refuses_what_is_no_text_cell(course, cell_id):
    before = path_of(course, "ko").read_bytes()
    with pytest.raises(LookupError, match=f"no text cell {cell_id} in both"):
        lessons.translated(NAME, ["text", cell_id], course)
    assert path_of(course, "ko").read_bytes() == before


def test_write_is_atomic(course, monkeypatch):
    before = path_of(course, "en").read_bytes()

    def fail(*_, **__):
        raise ValueError("no JSON")

    notebook = lessons.read(path_of(course, "en"))
    monkeypatch.setattr(nbformat, "writes", fail)
    with pytest.raises(ValueError, match="no JSON"):
        lessons.write(notebook, path_of(course, "en"))
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match="no JSON"):
        lessons.write(new_notebook(), path_of(course, "en"))
    assert path_of(course, "en").read_bytes() == before


def test_write_ends_with_one_line_break_and_has_no_carriage_returns(course):
    written = path_of(course, "ko").read_bytes()
    assert b"\r" not in written and written.endswith(b"}\n") and "문장입니다.".encode() in written


def test_notebook_names(course):
    save(course, "en", [set_up_cell()], "02_second.ipynb")
    save(course, "en", [set_up_cell()], SOLUTIONS)
    assert lessons.notebook_names(root=course) == [NAME, "02_second.ipynb", SOLUTIONS]
    assert lessons.notebook_names(["1"], root=course) == [NAME, SOLUTIONS]
    assert lessons.notebook_names(["02", "01"], root=course, solutions=False) == [NAME, "02_second.ipynb"]
    with pytest.raises(LookupError, match="no lesson 07, 99; there are 01_first, 02_second"):
        lessons.notebook_names(["7", "01", "99"], root=course)


# --- the command line --------------------------------------------------------------------------------------------

def test_cli_status(cli, capsys):
    assert lessons.main(["status"]) == 0
    assert capsys.readouterr().out == "every pair is whole\n"
    edit(cli, "en", change_source("text", "Changed."))
    assert lessons.main(["status"]) == 1
    assert capsys.readouterr().out == f"{NAME} text: stale: the English changed since it was translated\n"


def test_cli_sync_chooses_by_number(cli):
    edit(cli, "en", change_source("a", "print('changed')"))
    assert lessons.main(["sync", "1"]) == 0
    assert cells_of(cli, "ko")["a"].source == "print('changed')"


def test_cli_translated_finds_the_notebook_of_each_id(cli):
    edit(cli, "en", change_source("text", "Changed."))
    title = cells_of(cli, "en", SOLUTIONS)["solutions-title"].source
    edit(cli, "en", change_source("solutions-title", title + " More."), SOLUTIONS)
    assert lessons.main(["translated", "01", "text"]) == 0
    assert [finding.notebook for finding in lessons.status(cli)] == [SOLUTIONS]
    edit(cli, "en", change_source("text", "Changed again."))
    assert lessons.main(["translated", "01", "text", "solutions-title"]) == 0
    assert lessons.status(cli) == []


@pytest.mark.parametrize("argv, named", [
    (["sync", "99"], "01_first"), (["run", "99"], "01_first"), (["execute", "99"], "01_first"),
    (["translated", "99"], "01_first"), (["translated", "01", "nowhere"], "nowhere"),
])
def test_cli_says_what_is_unknown(cli, capsys, argv, named):
    assert lessons.main(argv) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["dance"], ["run", "--lang", "fr"]])
def test_cli_refuses_wrong_use(argv):
    with pytest.raises(SystemExit) as refused:
        lessons.main(argv)
    assert refused.value.code == 2


def test_cli_runs_the_chosen_language(cli, capsys):
    edit(cli, "en", lambda cells: [cell for cell in cells if cell.id != "setup"])
    edit(cli, "ko", lambda cells: [cell for cell in cells if cell.id not in ("setup", "a")])
    assert lessons.main(["run", "01", "--lang", "ko"]) == 0
    assert "1 passed, 0 failed" in capsys.readouterr().out
    assert [path.relative_to(cli).as_posix() for path in (cli / "build").rglob("*.ipynb")] == [f"build/ko/{NAME}"]


def test_module_can_be_called_from_the_command_line():
    environment = {**os.environ, "PYTHONPATH": str(lessons.ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "course_lib.lessons", "run", "99"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "no lesson 99" in done.stderr and "Traceback" not in done.stderr


# --- execution ---------------------------------------------------------------------------------------------------

@pytest.fixture
def runnable(tmp_path):
    """A function that runs a notebook of these code cells; it returns the result and the bytes of the source."""
    def run(*sources: str, **options):
        save(tmp_path, "en", [new_code_cell(source, id=f"c{index}") for index, source in enumerate(sources)])
        before = path_of(tmp_path, "en").read_bytes()
        return execution.run_notebook(NAME, "en", root=tmp_path, **options), before
    return run


def test_run_leaves_the_source_alone_and_shows_progress(runnable, tmp_path, capsys):
    result, before = runnable("# a comment\nprint('one', *range(3))", "'two'")
    assert result.error is None and (result.notebook, result.lang, result.cells) == (NAME, "en", 2)
    assert path_of(tmp_path, "en").read_bytes() == before
    copied = lessons.read(tmp_path / "build" / "en" / NAME).cells
    assert [cell.execution_count for cell in copied] == [1, 2] and copied[0].outputs[0].text == "one 0 1 2\n"
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"en/01_first \[1/2\] +\d+\.\d s  print\('one', \*range\(3\)\)", lines[0])
    assert lines[1] == "    one 0 1 2" and lines[2].startswith("en/01_first [2/2]") and lines[3] == "    'two'"
    assert execution.summarise([result], 1.0) == 0
    assert re.search(rf"{NAME} +en +2 +\d+\.\d  pass\n1 passed, 0 failed in 1 s", capsys.readouterr().out)


def test_run_shortens_what_a_talkative_cell_prints(runnable, capsys):
    runnable("for i in range(100): print(i)")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 + execution.SHOWN_LINES and f"{100 - execution.SHOWN_LINES} more lines" in out


def test_a_failing_cell_is_named_with_its_traceback(runnable, tmp_path, capsys):
    result, before = runnable("number = 0", "print('before')\n1 / number", "print('never')", store=True)
    assert "1 / number" in result.error and "ZeroDivisionError: division by zero" in result.error
    assert "\x1b" not in result.error
    assert path_of(tmp_path, "en").read_bytes() == before, "outputs are stored only when every cell passed"
    assert "never" not in capsys.readouterr().out
    assert execution.summarise([result], 2.0) == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "FAIL" in out and out.endswith("0 passed, 1 failed in 2 s\n")


def test_a_deliberate_error_passes(tmp_path):
    save(tmp_path, "en", [new_code_cell("1 / 0", id="error", metadata={"tags": ["raises-exception"]})])
    assert execution.run_notebook(NAME, "en", root=tmp_path).error is None


def test_a_hanging_cell_ends_at_the_timeout(runnable, monkeypatch):
    monkeypatch.setattr(execution, "CELL_TIMEOUT", 1)
    result, _ = runnable("import time; time.sleep(60)")
    assert "timed out" in result.error and "after 1 seconds" in result.error


def test_store_writes_outputs_into_the_source(runnable, tmp_path):
    result, before = runnable("import sys; print(sys.executable is not None)", store=True)
    assert result.error is None and not (tmp_path / "build").exists()
    notebook = lessons.read(path_of(tmp_path, "en"))
    assert notebook.cells[0].outputs[0].text == "True\n" and notebook.cells[0].execution_count == 1
    assert "widgets" not in notebook.metadata and "version" not in notebook.metadata.language_info
    assert "execution" not in notebook.cells[0].metadata


def test_a_notebook_runs_in_its_own_folder(runnable, tmp_path):
    result, _ = runnable("from pathlib import Path\nprint(Path.cwd().name)")
    assert result.error is None
    assert lessons.read(tmp_path / "build" / "en" / NAME).cells[0].outputs[0].text == "en\n"
