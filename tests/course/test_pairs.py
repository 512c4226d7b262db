"""The two languages of a lesson, on a small pair of notebooks in a temporary root."""
from __future__ import annotations

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from course_lib.runtime import LANGUAGES
from tests.course.small_course import (
    CODE,
    KOREAN_CODE,
    LOSS,
    NAME,
    SOLUTIONS,
    TABLE,
    cells_of,
    change_source,
    configure,
    edit,
    problems,
    save,
    set_up_cell,
)
from tools import filling, notebooks, pairs
from tools.notebooks import path_of

# --- sync ---------------------------------------------------------------------------------------------------

def test_sync_makes_a_missing_korean_notebook(tmp_path):
    configure(tmp_path, "ours/course")
    one = new_code_cell("1", id="one", outputs=[new_output("stream", text="1")], execution_count=1)
    save(tmp_path, "en", [set_up_cell(tmp_path), new_markdown_cell("Words.", id="text"), one])
    pairs.sync(NAME, tmp_path)
    korean = cells_of(tmp_path, "ko")
    assert list(korean) == ["setup", "text", "one"]
    assert 'lang="ko"' in korean["setup"].source and "# Colab에서는 " in korean["setup"].source
    assert korean["one"].outputs == [] and korean["one"].execution_count is None
    assert problems(tmp_path) == [("text", "not translated yet")]


def test_sync_of_a_whole_pair_changes_nothing(course):
    before = {lang: path_of(NAME, lang, course).read_bytes() for lang in LANGUAGES}
    assert pairs.sync(NAME, course) == []
    assert before == {lang: path_of(NAME, lang, course).read_bytes() for lang in LANGUAGES}


def test_sync_carries_new_removed_and_reordered_cells_with_their_tags(course):
    def rearrange(cells):
        by_id = {cell.id: cell for cell in cells}
        by_id["text"].metadata["tags"] = ["folded"]
        return [by_id["title"], by_id["setup"], by_id["text"], new_markdown_cell("New.", id="new"),
                new_code_cell("print(0)", id="c", metadata={"tags": ["nbval-ignore-output"]}), by_id["b"]]

    edit(course, "en", rearrange)
    pairs.sync(NAME, course)
    korean = cells_of(course, "ko")
    assert list(korean) == ["title", "setup", "text", "new", "c", "b"]
    assert korean["text"].source == "문장입니다." and "처음" in korean["title"].source
    assert korean["c"].source == "print(0)" and korean["c"].metadata.tags == ["nbval-ignore-output"]
    assert korean["text"].metadata.tags == ["folded"]
    assert korean["b"].outputs[0].text == "출력 b\n" and korean["b"].execution_count == 7
    assert problems(course) == [("new", "not translated yet")]


def test_korean_code_is_made_from_english_and_its_table(course):
    assert cells_of(course, "ko")["a"].source == KOREAN_CODE
    assert cells_of(course, "ko")["a"].metadata == {"ko": TABLE}
    edit(course, "ko", change_source("a", "print('나만의 코드')"))
    assert problems(course) == [("a", "the code differs (run sync)")]
    pairs.sync(NAME, course)
    assert cells_of(course, "ko")["a"].source == KOREAN_CODE


def test_sync_drops_only_the_outputs_of_changed_code(course):
    edit(course, "en", change_source("a", CODE.replace("3", "4")))
    assert problems(course) == [("a", "the code differs (run sync)")]
    pairs.sync(NAME, course)
    korean = cells_of(course, "ko")
    assert korean["a"].source == KOREAN_CODE.replace("3", "4")
    assert korean["a"].outputs == [] and korean["a"].execution_count is None
    assert korean["b"].outputs[0].text == "출력 b\n" and korean["setup"].outputs[0].text == "출력 setup\n"
    assert pairs.status(course) == []


def test_an_entry_whose_english_is_gone_is_printed_and_leaves(course, capsys):
    edit(course, "en", change_source("a", CODE.replace("# why", "# why so")))
    assert problems(course) == [("a", "the code differs (run sync)"),
                                ("a", "stale: the English of this entry is gone (run sync): # why"),
                                ("a", "no Korean yet for # why so")]
    pairs.sync(NAME, course)
    assert capsys.readouterr().out.endswith('leaves the table: {"# why": "# 이유"}\n')
    assert cells_of(course, "ko")["a"].source == KOREAN_CODE.replace("# 이유", "# why so")
    assert problems(course) == [("a", "no Korean yet for # why so")]


def test_sync_leaves_a_cell_whose_table_does_not_fit(course):
    edit(course, "en", change_source("a", CODE.replace("loss, steps =", "loss, steps = 5,")))
    edit(course, "ko", lambda cells: cells[2].metadata["ko"].update({LOSS: 'f"손실 {loss:.3f}"'}))
    [refused] = pairs.sync(NAME, course)
    assert str(refused).startswith(f"{NAME} a: the Korean of {LOSS} has other fields")
    assert "lost: {loss:.2f}, {steps}; added: {loss:.3f}" in str(refused)
    assert cells_of(course, "ko")["a"].source == KOREAN_CODE and cells_of(course, "ko")["a"].outputs
    assert ("a", refused.problem) in problems(course)


def test_sync_follows_a_cell_that_turns_from_text_to_code(course):
    code = new_code_cell("2", id="text")
    edit(course, "en", lambda cells: [code if cell.id == "text" else cell for cell in cells])
    assert problems(course) == [("text", "a code cell in one language, a text cell in the other (run sync)")]
    pairs.sync(NAME, course)
    assert cells_of(course, "ko")["text"].cell_type == "code"
    assert pairs.status(course) == []


def test_set_up_and_badge_follow_the_configured_repository(course):
    configure(course, "theirs/other.name")
    assert {cell for cell, _ in problems(course)} == {"title", "setup"}
    pairs.sync(NAME, course)
    for lang in LANGUAGES:
        cells = cells_of(course, lang)
        assert "github.com/theirs/other.name" in cells["setup"].source
        assert f'lang="{lang}"' in cells["setup"].source
        link = f"https://colab.research.google.com/github/theirs/other.name/blob/main/notebooks/{lang}/{NAME}"
        assert f"[![Open in Colab](../assets/open-in-colab.svg)]({link})" in cells["title"].source
    assert pairs.status(course) == [], "a new repository name makes no translation stale"
    title = cells_of(course, "en")["title"].source
    edit(course, "en", change_source("title", title + " More."))
    configure(course, "theirs/third")
    pairs.sync(NAME, course)
    assert problems(course) == [("title", "stale: the English changed since it was translated")]


def test_badge_of_a_solutions_notebook_climbs_one_folder_more(course):
    badge = notebooks.badge(SOLUTIONS, "ko", course)
    assert badge.startswith("[![Open in Colab](../../assets/") and f"/notebooks/ko/{SOLUTIONS})" in badge


def test_repository_without_its_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    with pytest.raises(LookupError, match="Repository = "):
        notebooks.repository(tmp_path)


# --- status and translated ----------------------------------------------------------------------------------

@pytest.mark.parametrize("lang", LANGUAGES)
def test_status_names_a_missing_notebook_and_a_missing_cell(course, lang):
    edit(course, lang, lambda cells: [cell for cell in cells if cell.id != "text"])
    assert problems(course) == [("", "only in one language: text (run sync)")]
    path_of(NAME, lang, course).unlink()
    assert [str(finding) for finding in pairs.status(course)] == [f"{NAME}: missing in {lang}"]


def test_status_sees_another_order_and_other_tags(course):
    edit(course, "en", lambda cells: cells[4].metadata.update(tags=["nbval-ignore-output"]))
    assert problems(course) == [("b", "tags or other metadata differ (run sync)")]
    edit(course, "ko", lambda cells: cells[::-1])
    assert problems(course) == [("", "the order of the cells differs (run sync)")]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_status_sees_what_does_not_follow_the_configuration(course, lang):
    edit(course, lang, change_source("setup", "import course_lib as cl"))
    assert problems(course) == [("setup", f"the set-up cell in {lang} is not the configured one (run sync)")]
    title = cells_of(course, lang)["title"].source
    edit(course, lang, change_source("title", title.replace("ours/", "else/")))
    assert ("title", f"the badge in {lang} is not the configured one (run sync)") in problems(course)


def test_status_sees_stale_text_until_it_is_translated(course):
    edit(course, "en", change_source("text", "Another sentence."))
    assert problems(course) == [("text", "stale: the English changed since it was translated")]
    pairs.sync(NAME, course)
    assert [cell for cell, _ in problems(course)] == ["text"], "sync alone translates nothing"
    pairs.translated(NAME, ["text"], course)
    assert pairs.status(course) == []


def test_status_looks_into_solutions_and_past_checkpoints(course):
    save(course, "en", [set_up_cell(course)], SOLUTIONS)
    save(course, "en", [set_up_cell(course)], ".ipynb_checkpoints/01_first-checkpoint.ipynb")
    assert [str(finding) for finding in pairs.status(course)] == [f"{SOLUTIONS}: missing in ko"]
    assert pairs.status(course, [NAME]) == []


@pytest.mark.parametrize("cell, words", [
    (new_code_cell("x = 1\nassert x", id="x"), "an assert in a cell that teaches"),
    (new_code_cell("%time\nfor x in y:\n    assert x", id="x"), "an assert in a cell that teaches"),
    (new_code_cell("assert x", id="x", metadata={"tags": ["check"]}), "tagged `check`, but not collapsed"),
    (new_code_cell('say("lesson01.x")', id="x"), "say( hides what is printed"),
    (new_code_cell('x = f"{\'yes\' if y else \'no\'}"', id="x"),
     "'yes' in a field of an f-string stays English"),
])
def test_status_names_what_a_cell_must_not_have(course, cell, words):
    edit(course, "en", lambda cells: [*cells, cell])
    pairs.sync(NAME, course)
    assert problems(course)[0][1].startswith(words)


@pytest.mark.parametrize("cell", [
    new_code_cell("assert x", id="x", metadata={"tags": ["check"], "jupyter": {"source_hidden": True}}),
    new_code_cell("assert x", id="x", metadata={"tags": ["raises-exception"]}),
    new_code_cell("code = '''\nassert x\n'''", id="x"), new_code_cell("essay(1)", id="x"),
])
def test_status_leaves_other_cells_alone(course, cell):
    edit(course, "en", lambda cells: [*cells, cell])
    pairs.sync(NAME, course)
    assert [problem for _, problem in problems(course) if not problem.startswith("no Korean yet")] == []


def test_a_check_may_stand_in_a_solution(course):
    save(course, "en", [set_up_cell(course), new_code_cell("assert True", id="x")], SOLUTIONS)
    pairs.sync(SOLUTIONS, course)
    assert pairs.status(course) == []


def test_a_key_has_one_korean_name_in_a_notebook(course):
    edit(course, "en", lambda cells: [*cells, new_code_cell('x["in GB"] = 1', id="x"),
                                      new_code_cell('x["in GB"]', id="y")])
    pairs.sync(NAME, course, {"x": {'"in GB"': '"GB 단위"'}, "y": {'"in GB"': None}})
    assert problems(course) == [("y", 'the Korean of "in GB" is null, in x "GB 단위"')]


def test_translated_marks_only_the_named_cells(course):
    edit(course, "en", lambda cells: [*cells, new_markdown_cell("x", id="x"), new_markdown_cell("y", id="y")])
    pairs.sync(NAME, course)
    pairs.translated(NAME, ["y"], course)
    assert problems(course) == [("x", "not translated yet")]
    pairs.translated(NAME, [], course)
    assert pairs.status(course) == []


@pytest.mark.parametrize("cell_id", ["nowhere", "a"])
def test_translated_refuses_what_is_no_text_cell(course, cell_id):
    before = path_of(NAME, "ko", course).read_bytes()
    with pytest.raises(LookupError, match=f"no text cell {cell_id} in both"):
        pairs.translated(NAME, ["text", cell_id], course)
    assert path_of(NAME, "ko", course).read_bytes() == before


def test_a_made_pair_holds_for_whoever_reads_it_as_text(course):
    """Words without a table are listed; a cell that is no Python is the same in both languages."""
    others = [new_code_cell("x = (", id="x"), new_code_cell("%%bash\n# ls", id="y")]
    edit(course, "en", lambda cells: [*cells, *others])
    pairs.sync(NAME, course)
    assert filling.listed([NAME], course) == {NAME: {"a": TABLE}}
    assert pairs.status(course) == []
