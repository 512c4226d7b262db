"""Every notebook on disk, read as text: pairs, outputs, exercises, what a lesson must have."""
from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from course_lib import graders
from course_lib.runtime import LANGUAGES
from tests.course.reading import (
    EVERY,
    LESSONS,
    NOTEBOOKS,
    TAUGHT,
    code_cells,
    every_lesson,
    every_notebook,
    language,
    notebook,
    outputs,
    texts,
    words_of,
)
from tools import literals, notebooks, pairs
from tools.notebooks import tags

PARTS = {  # what marks each part of a lesson, in its order
    "en": (r"\A# \d\d · \S", r"!\[Open in Colab\]", "After this lesson you can",
           r"\*\*Time:\*\*.*\d.*GPU", r"cl\.setup\(", r"^> \*\*Check the claim\.\*\*", "^## Exercises$",
           r"^\*\*\d\d\.1 \(", "^## Summary$",
           r"\*\*Next:\*\*"),
    "ko": (r"\A# \d\d · \S", r"!\[Open in Colab\]", "이 레슨을 마치면",
           r"\*\*시간:\*\*.*\d.*GPU", r"cl\.setup\(",
           r"^> \*\*주장 검증\.\*\*", "^## 연습 문제$", r"^\*\*\d\d\.1 \(", "^## 요약$", r"\*\*다음:\*\*"),
}
MACHINE_PATH = re.compile(r"(?<![\w.])(/(?:root|home|tmp|work|Users|content)/|[A-Z]:\\)")
WIDGET = "application/vnd.jupyter.widget-view+json"
# --- pairs and cells ----------------------------------------------------------------------------------------

def test_every_pair_is_whole():
    assert [str(finding) for finding in pairs.status()] == []


def test_the_names_are_those_of_the_lesson_map():
    assert EVERY, "no notebooks on disk"
    assert {Path(name).stem for name in EVERY} <= set(LESSONS)
    assert set(TAUGHT) == {name.replace("solutions/", "") for name in EVERY}
    assert set(EVERY) - set(TAUGHT) == {name[:3] + "solutions/" + name[3:] for name in TAUGHT}


@every_notebook
def test_cell_ids_are_unique(name):
    stored = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))  # nbformat would repair what is wrong
    ids = [cell["id"] for cell in stored["cells"]]
    assert len(ids) == len(set(ids))


@every_notebook
def test_cells_are_short(name):
    assert [cell.id for cell in code_cells(name) if len(cell.source.splitlines()) > 40] == []


@every_notebook
def test_metadata_are_a_plain_python_notebook(name):
    metadata = notebook(name).metadata
    assert metadata.kernelspec.name == "python3"
    assert "widgets" not in metadata


@every_notebook
def test_the_configured_set_up_cell_comes_first(name):
    first, *others = code_cells(name)
    assert first.source == notebooks.setup_source(language(name))
    assert "setup" in tags(first) and not any("setup" in tags(cell) for cell in others)


@every_notebook
def test_one_clean_run(name):
    assert [cell.execution_count for cell in code_cells(name)] == list(range(1, len(code_cells(name)) + 1))


@every_notebook
def test_outputs_are_quiet(name):
    stray = [(cell.id, output) for cell, output in outputs(name) if output.get("name") == "stderr"
             or output.output_type == "error" and "raises-exception" not in tags(cell)]
    assert stray == []


@every_notebook
def test_outputs_name_no_path_of_a_machine(name):
    found = [(cell.id, MACHINE_PATH.search(words_of(output))) for cell, output in outputs(name)]
    assert [(cell_id, match.group()) for cell_id, match in found if match] == []


@every_notebook
def test_most_outputs_are_compared(name):
    loose = [cell for cell in code_cells(name) if "nbval-ignore-output" in tags(cell)]
    assert len(loose) <= len(code_cells(name)) / 2
    assert not any("nbval-skip" in tags(cell) for cell in code_cells(name))


@every_notebook
def test_widgets_have_a_picture_for_a_plain_viewer(name):
    widgets = [(cell.id, output.data) for cell, output in outputs(name) if WIDGET in output.get("data", {})]
    assert [cell_id for cell_id, data in widgets if "image/png" not in data] == []


# --- exercises ----------------------------------------------------------------------------------------------

def checks(name: str) -> dict[str, str]:
    """Exercise id → what the cell that checks it shows."""
    found = {}
    for cell in code_cells(name):
        for exercise_id in re.findall(r'cl\.check\("(\d\d\.\d)"', cell.source):
            found[exercise_id] = "".join(map(words_of, cell.outputs))
    return found


def exercises_of(name: str) -> set[str]:
    return set(graders.exercises(Path(name).name[:2]))


def test_every_grader_belongs_to_a_lesson():
    for lang in LANGUAGES:
        taught = [exercises_of(name) for name in TAUGHT if language(name) == lang]
        assert set().union(*taught) == set(graders.exercises())


@every_notebook
def test_untouched_exercises_fail_and_solutions_pass(name):
    mark, other = ("✘", "✔") if name in TAUGHT else ("✔", "✘")
    shown = checks(name)
    assert set(shown) == exercises_of(name)
    assert all(mark in message and other not in message for message in shown.values()), shown


@every_lesson
def test_exercises_are_stated_with_a_level(name):
    whole = "\n".join(cell.source for cell in texts(name))
    stated = re.findall(r"^\*\*(\d\d\.\d) \([^)]+\)\.\*\*", whole, re.M)
    assert stated == sorted(checks(name)) and 2 <= len(stated) <= 3


# --- what a lesson has --------------------------------------------------------------------------------------

@every_lesson
def test_parts_of_a_lesson_come_in_order(name):
    whole = "\n\n".join(cell.source for cell in notebook(name).cells)
    found = [re.search(pattern, whole, re.M) for pattern in PARTS[language(name)]]
    missing = [pattern for pattern, match in zip(PARTS[language(name)], found, strict=True) if not match]
    assert missing == []
    assert [match.start() for match in found] == sorted(match.start() for match in found)


@every_lesson
def test_title_cell(name):
    title = notebook(name).cells[0].source
    assert title.startswith(f"# {Path(name).name[:2]} · ")
    assert notebooks.badge(name[3:], language(name)) in title
    assert len(re.findall("^- ", title, re.M)) == 3, "three things that you can do at the end"


@every_lesson
def test_claims_are_asserted(name):
    trees = [ast.parse(literals.plain(cell.source)) for cell in code_cells(name)]
    assert sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree)) >= 3


@every_lesson
def test_there_is_a_picture_with_labels_in_the_language(name):
    other = name.replace("ko/", "en/", 1) if language(name) == "ko" else name.replace("en/", "ko/", 1)
    ours, theirs = ({(cell.id, output.data["image/png"]) for cell, output in outputs(which)
                     if "image/png" in output.get("data", {})} for which in (name, other))
    assert ours
    assert ours & theirs == set(), "the same picture in both languages"


@every_lesson
def test_summary_has_five_lines(name):
    heading = {"en": "## Summary", "ko": "## 요약"}[language(name)]
    summary = "\n".join(cell.source for cell in texts(name)).partition(heading)[2]
    assert re.findall(r"^(\d+)\. ", summary, re.M) == list("12345")


@every_lesson
def test_sources_are_linked(name):
    links = set(re.findall(r"\]\((https://[^)\s]+)", "\n".join(cell.source for cell in texts(name))))
    assert len({link for link in links if "colab.research" not in link}) >= 3


@every_notebook
def test_relative_links_resolve(name):
    folder = (NOTEBOOKS / name).parent
    broken = []
    for cell in texts(name):
        words = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", words):
            outside = re.match(r"https?:|mailto:|#", target)
            if not outside and not (folder / target.partition("#")[0]).is_file():
                broken.append((cell.id, target))
    assert broken == []


@every_notebook
def test_pictures_in_the_text_have_a_description(name):
    bare = re.compile(r"!\[\s*\]\(|<img(?![^>]*\balt=)")
    assert [cell.id for cell in texts(name) if bare.search(cell.source)] == []
