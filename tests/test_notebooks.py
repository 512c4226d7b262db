"""Every notebook on disk, read as text: pairs, outputs, what a lesson must have, two languages. Nothing is executed."""
from __future__ import annotations

import ast
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest

from course_lib import graders, lessons
from course_lib.runtime import LANGUAGES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
LESSONS = ("01_why_small_models", "02_load_and_chat", "03_architectures", "04_data_quality", "05_distillation",
           "06_efficient_training", "07_quantization", "08_on_device", "09_fast_inference",
           "10_evaluation_and_selection", "11_finetune_korean_qa", "12_capstone")
EVERY = sorted(path.relative_to(NOTEBOOKS).as_posix() for lang in LANGUAGES
               for path in (NOTEBOOKS / lang).rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
TAUGHT = [name for name in EVERY if "/solutions/" not in name]
PARTS = {  # what marks each part of a lesson, in its order
    "en": (r"\A# \d\d · \S", r"!\[Open in Colab\]", "After this lesson you can", r"\*\*Time:\*\*.*\d.*GPU", r"cl\.setup\(",
           r"^> \*\*Check the claim\.\*\*", "^## Exercises$", r"^\*\*\d\d\.1 \(", "^## Summary$", r"\*\*Next:\*\*"),
    "ko": (r"\A# \d\d · \S", r"!\[Open in Colab\]", "이 레슨을 마치면", r"\*\*시간:\*\*.*\d.*GPU", r"cl\.setup\(",
           r"^> \*\*주장 검증\.\*\*", "^## 연습 문제$", r"^\*\*\d\d\.1 \(", "^## 요약$", r"\*\*다음:\*\*"),
}
MACHINE_PATH = re.compile(r"(?<![\w.])(/(?:root|home|tmp|work|Users|content)/|[A-Z]:\\)")
WIDGET = "application/vnd.jupyter.widget-view+json"
every_notebook = pytest.mark.parametrize("name", EVERY)
every_lesson = pytest.mark.parametrize("name", TAUGHT)


# --- reading -----------------------------------------------------------------------------------------------------

@lru_cache
def notebook(name: str):
    return lessons.read(NOTEBOOKS / name)


def language(name: str) -> str:
    return name[:2]


def code_cells(name: str) -> list:
    return [cell for cell in notebook(name).cells if cell.cell_type == "code" and cell.source.strip()]


def texts(name: str) -> list:
    return [cell for cell in notebook(name).cells if cell.cell_type == "markdown"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def outputs(name: str) -> list:
    """Pairs of a code cell and one of its outputs."""
    return [(cell, output) for cell in code_cells(name) for output in cell.outputs]


def words_of(output) -> str:
    """The text of an output that a reader sees, tables as HTML too; not a traceback."""
    shown = [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([output.get("text", ""), *shown])


def python_of(cell) -> str:
    """The code of a cell without IPython's magics and shell lines, so that `ast` reads it."""
    if cell.source.startswith("%%"):
        return ""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)


def prose(text: str) -> str:
    """Markdown without code, formulas, link targets and tags: what is left are words."""
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"`[^`]*`", r"\$[^$\n]*\$", r"\]\([^)]*\)", r"<[^>]+>", r"https?://\S+"):
        text = re.sub(pattern, " ", text, flags=re.S)
    return text


def hangul_and_latin(text: str) -> tuple[int, int]:
    words = prose(text)
    return len(re.findall("[가-힣]", words)), len(re.findall("[A-Za-z]", words))


# --- pairs and cells ---------------------------------------------------------------------------------------------

def test_every_pair_is_whole():
    assert [str(finding) for finding in lessons.status(ROOT)] == []


def test_the_names_are_those_of_the_lesson_map():
    assert EVERY, "no notebooks on disk"
    assert {Path(name).stem for name in EVERY} <= set(LESSONS)
    assert set(TAUGHT) == {name.replace("solutions/", "") for name in EVERY}
    assert {name for name in EVERY if name not in TAUGHT} == {name[:3] + "solutions/" + name[3:] for name in TAUGHT}


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
    assert first.source == lessons.SETUP.format(repository=lessons.repository(ROOT), lang=language(name))
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


# --- the package and the notebooks -------------------------------------------------------------------------------

@lru_cache
def modules() -> dict[str, ast.Module]:
    """Module → its tree; "data", "show.data", …"""
    base = ROOT / "course_lib"
    return {".".join(path.relative_to(base).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
            for path in base.rglob("*.py")}


def definitions(tree: ast.AST, *, nested: bool = False) -> list:
    """The functions and classes of a module and the methods of its classes; with `nested`, all there are."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if nested:
        return [node for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [node for node in tree.body if isinstance(node, kinds)]
    return found + [method for node in found if isinstance(node, ast.ClassDef) for method in definitions(node)]


def public(nodes: list) -> dict[str, ast.AST]:
    return {node.name: node for node in nodes if not node.name.startswith("_")}


@every_notebook
def test_no_notebook_defines_what_the_package_has(name):
    taken = {word for tree in modules().values() for word in public(definitions(tree))}
    assert {"load", "estimate", "weight_bytes", "total"} <= taken
    trees = [ast.parse(python_of(cell)) for cell in code_cells(name)]
    methods = {method for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for method in node.body}
    own = [node for tree in trees for node in definitions(tree, nested=True) if node not in methods]
    assert {node.name for node in own} & taken == set()


LESSON_LINK = re.compile(r"\blessons?\s+(\d+(?:(?:,\s*|\s+(?:and|to)\s+)\d+)*)", re.IGNORECASE)


def docstring_links() -> list[tuple[str, str, str]]:
    """(module, name, lesson number) of each lesson that a public docstring names."""
    links = []
    for module, tree in modules().items():
        if module.startswith("graders."):  # a lesson calls them through `check`
            continue
        for name, node in {module: tree, **public(definitions(tree))}.items():
            for numbers in LESSON_LINK.findall(ast.get_docstring(node) or ""):
                links += [(module, name, number) for number in re.findall(r"\d+", numbers)]
    return links


def test_docstrings_link_to_lessons():
    assert {"loading", "catalog", "memory", "decode"} <= {module for module, _, _ in docstring_links()}


@pytest.mark.parametrize("module, name, number", docstring_links())
def test_docstring_links_resolve(module, name, number):
    """The number is one of the twelve; where that lesson is written, its code uses what links to it."""
    stem = next((stem for stem in LESSONS if stem.startswith(f"{number}_")), None)
    assert stem, f"{module}.{name} names lesson {number}"
    words = {name} if name != module else {module.split(".")[-1], *public(definitions(modules()[module]))}
    for lang in LANGUAGES:
        if f"{lang}/{stem}.ipynb" in EVERY:
            code = "\n".join(cell.source for cell in code_cells(f"{lang}/{stem}.ipynb"))
            assert words & set(re.findall(r"\w+", code)), f"lesson {number} says nothing of {module}.{name}"


# --- exercises ---------------------------------------------------------------------------------------------------

def checks(name: str) -> dict[str, str]:
    """Exercise id → what the cell that checks it shows."""
    found = {}
    for cell in code_cells(name):
        for exercise_id in re.findall(r'cl\.check\("(\d\d\.\d)"', cell.source):
            found[exercise_id] = "".join(map(words_of, cell.outputs))
    return found


def exercises_of(name: str) -> set[str]:
    return {exercise_id for exercise_id in graders.exercises() if Path(name).name[:2] == exercise_id[:2]}


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
    stated = re.findall(r"^\*\*(\d\d\.\d) \([^)]+\)\.\*\*", "\n".join(cell.source for cell in texts(name)), re.M)
    assert stated == sorted(checks(name)) and 2 <= len(stated) <= 3


# --- what a lesson has -------------------------------------------------------------------------------------------

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
    assert lessons.badge(name[3:], language(name), ROOT) in title
    assert len(re.findall("^- ", title, re.M)) == 3, "three things that you can do at the end"


@every_lesson
def test_claims_are_asserted(name):
    trees = [ast.parse(python_of(cell)) for cell in code_cells(name)]
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
    folder, broken = (NOTEBOOKS / name).parent, []
    for cell in texts(name):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)):
            if not re.match(r"https?:|mailto:|#", target) and not (folder / target.partition("#")[0]).is_file():
                broken.append((cell.id, target))
    assert broken == []


@every_notebook
def test_pictures_in_the_text_have_a_description(name):
    assert [cell.id for cell in texts(name) if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=)", cell.source)] == []


# --- two languages -----------------------------------------------------------------------------------------------

def reads_as(text: str) -> str | None:
    """The language of a text cell, or None where there are too few words to tell."""
    hangul, latin = hangul_and_latin(text)
    if latin > 60 and hangul < 0.3 * latin:
        return "en"
    return "ko" if hangul > 60 and hangul > 0.3 * latin else None


QUOTED = re.compile(r"“[^”]*”|\"[^\"\n]*\"|‘[^’]*’|「[^」]*」")
PLAIN = r"\w*[가-힣](?<!니)다"  # 이다, 한다, 했다, …; 합니다 and 입니다 end in 니다
CASUAL = r"\w*(?:해|돼|예|에|아|어|여|려|세|네|군|지|나|봐|와|워|져|게|래|데|거든)요|\w*죠"  # a question may end in 까요
CLOSED = re.compile(rf"({PLAIN}|{CASUAL})(?=[.!?…]|[*_]*\s*$)", re.M)


def wrong_endings(text: str) -> list[str]:
    """Words that end a sentence in a style other than 합니다체, outside quotation marks."""
    return [match.group() for match in CLOSED.finditer(QUOTED.sub(" ", prose(text)))]


@pytest.mark.parametrize("text, found", [
    ("모델을 불러옵니다. 크기를 비교하십시오. 어디입니까? 어떻게 될까요?", []),
    ("크기를 비교한다. 되었다.", ["비교한다", "되었다"]),
    ("- 작은 모델이다\n", ["모델이다"]),
    ("**중요합니다.** 이것이 **답이다**", ["답이다"]),
    ("같이 해요. 이렇게 돼요! 해볼게요. 쉽죠?", ["해요", "돼요", "해볼게요", "쉽죠"]),
    ("> \"7B는 14 GB를 차지한다.\" 사실은 더 큽니다.", []),
    ("“작은 모델이면 충분하다.”라고 말합니다. `이다.` 뒤에 옵니다.", []),
    ("온도는 필요할 때만 씁니다(중요. 필요.)", []),
])
def test_wrong_endings(text, found):
    assert wrong_endings(text) == found


def test_reads_as():
    english, korean = "These are plain English words about models. " * 3, "작은 모델을 직접 불러와 살펴봅니다. " * 6
    assert (reads_as(english), reads_as(korean), reads_as("**MMLU**")) == ("en", "ko", None)
    assert reads_as(korean + "`AutoModelForCausalLM.from_pretrained` [x](https://huggingface.co/docs)") == "ko"


@every_notebook
def test_text_is_in_the_language_of_the_notebook(name):
    assert [cell.id for cell in texts(name) if reads_as(cell.source) not in (language(name), None)] == []


@pytest.mark.parametrize("name", [name for name in EVERY if language(name) == "ko"])
def test_korean_is_polite_throughout(name):
    found = {cell.id: wrong_endings(cell.source) for cell in texts(name)}
    assert {cell_id: words for cell_id, words in found.items() if words} == {}


@pytest.mark.parametrize("name", [name for name in EVERY if language(name) == "ko"])
def test_emphasis_really_ends_in_korean(name):
    """In CommonMark, `*한국어(English)*은` is no emphasis: after a bracket the closing star must not touch a letter."""
    broken = [(cell.id, found) for cell in texts(name) for found in re.findall(r"\S*[^\w\s*]\*{1,2}(?=\w)\S*", cell.source)]
    assert broken == []
