"""READMEs, glossary and data card, held against the disk."""
import json
import re
from pathlib import Path

import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]
READMES = {"en": ROOT / "README.md", "ko": ROOT / "README.ko.md"}
TEACHING = {"en": ROOT / "docs" / "teaching.md", "ko": ROOT / "docs" / "teaching.ko.md"}
DOCUMENTS = [
    *READMES.values(),
    *TEACHING.values(),
    ROOT / "data" / "README.md",
    ROOT / "notebooks" / "glossary.md",
]
TITLES = {"en": ("What is where", "Lessons"), "ko": ("무엇이 어디에 있는가", "레슨")}


def section(text, title):
    return re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(document):
    targets = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", document.read_text("utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("lang", READMES)
def test_the_tree_names_every_room_and_the_files_at_the_top(lang):
    tree = section(READMES[lang].read_text("utf-8"), TITLES[lang][0])
    named = set(re.findall(r"^  (\S+\.(?:py|json)|\w+(?=/))", tree, re.M))
    there = {path.name for path in (ROOT / "course_lib").iterdir()
             if path.suffix in (".py", ".json") or (path / "__init__.py").is_file()}
    assert named == there - {"__init__.py"}
    tops = {top.rstrip("/") for top in re.findall(r"^(\S+)", tree.replace("```", ""), re.M)}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    made = {"build", "__pycache__", *(name for name in folders if name.endswith(".egg-info"))}
    assert folders - made <= tops
    assert all((ROOT / top).exists() for top in tops)


@pytest.mark.parametrize("lang", READMES)
def test_the_table_of_lessons_links_what_is_there_and_nothing_else(lang):
    rows = re.findall(r"^\| (\d\d) \|(.*)$", section(READMES[lang].read_text("utf-8"), TITLES[lang][1]), re.M)
    ready = {name[:2]: name for name in notebooks.notebook_names(solutions=False)}
    assert [number for number, _ in rows] == [f"{number:02}" for number in range(1, 13)]
    for number, row in rows:
        if number not in ready:
            assert "](" not in row
            continue
        for language in ("en", "ko"):
            assert f"](notebooks/{language}/{ready[number]})" in row
        assert f"github/{notebooks.repository()}/blob/main/notebooks/{lang}/{ready[number]})" in row
        assert re.search(r"\| \d+ ?(s|초) \|", row), "the measured time is missing"


def test_the_two_readmes_have_the_same_sections_and_figures():
    texts = [path.read_text("utf-8") for path in READMES.values()]
    assert len({text.count("\n## ") for text in texts}) == 1
    tables = [re.findall(r"^\| (?:fp32|bf16|int8|nf4) \|.*$", text, re.M) for text in texts]
    assert tables[0] == tables[1] and len(tables[0]) == 4


def test_the_commands_of_the_readme_exist():
    program = (ROOT / "course.py").read_text("utf-8")
    for text in (path.read_text("utf-8") for path in [*READMES.values(), *TEACHING.values()]):
        for command in set(re.findall(r"python course\.py (\w+)", text)):
            assert f"\ndef {command}(args):" in program


@pytest.mark.parametrize("lang", TEACHING)
def test_the_plans_of_the_teacher_add_up(lang):
    text = TEACHING[lang].read_text("utf-8")
    seconds = {number: int(value) for number, value in
               re.findall(r"^\| (\d\d) \|.*?\| (\d+) ?(?:s|초) \|", READMES[lang].read_text("utf-8"), re.M)}
    rows = [(number, [int(figure) for figure in figures]) for number, *figures in
            re.findall(r"^\| (\d\d|all|전체) ?[^|]*\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text, re.M)]
    assert [number for number, _ in rows[:-1]] == [f"{number:02}" for number in range(1, 13)]
    for number, (reading, running, exercises, total) in rows[:-1]:
        assert reading + running + exercises == total
        if number in seconds:
            assert running == -(-seconds[number] // 60), f"lesson {number}: {seconds[number]} s"
    assert rows[-1][1] == [sum(column) for column in zip(*(figures for _, figures in rows[:-1]), strict=True)]
    slots = [(int(hour) * 60 + int(minute), int(length)) for hour, minute, length in
             re.findall(r"^\| (\d\d):(\d\d) \| (\d+) \|", text, re.M)]
    ends = [start + length for start, length in slots]
    assert [start for start, _ in slots] == [9 * 60 if start == 9 * 60 else end
                                             for (start, _), end in zip(slots, [0, *ends], strict=False)]
    assert sum(start == 9 * 60 for start, _ in slots) == 3 and max(ends) <= 17 * 60 + 30
    points = [int(one) for one in re.findall(r"^\| [^|]+ \| (\d+) \| \d+–", text, re.M)]
    assert points == [20, 20, 30, 15, 15]


def test_the_teacher_gets_the_same_in_both_languages():
    english, korean = (path.read_text("utf-8") for path in TEACHING.values())
    for pattern in (r"^#+", r"^\| [\d:]+ \| \d+ \|", r"^\*\*\d+\.", r"notebooks/(?:en|ko)/(\d\d)",
                    r"\d+–\d+:"):
        assert re.findall(pattern, english, re.M) == re.findall(pattern, korean, re.M)


def glossary():
    text = (ROOT / "notebooks" / "glossary.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*) ?\|$", text, re.M)
    return [(english.strip(), korean.strip(), [word.strip() for word in avoided.split(",") if word.strip()])
            for english, korean, avoided in rows[1:] if not english.startswith("---")]


def korean_prose():
    for path in sorted((ROOT / "notebooks" / "ko").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            for cell in notebooks.read(path).cells:
                if cell.cell_type == "markdown":
                    yield f"{path.name} {cell.id}", cell.source
    yield "README.ko.md", READMES["ko"].read_text("utf-8")
    yield "teaching.ko.md", TEACHING["ko"].read_text("utf-8")
    strings = json.loads((ROOT / "course_lib" / "strings.json").read_text("utf-8"))
    strings |= json.loads((ROOT / "demos" / "browser" / "page" / "texts.json").read_text("utf-8"))
    yield from ((key, texts["ko"]) for key, texts in strings.items())
    catalog = json.loads((ROOT / "data" / "catalog.json").read_text("utf-8"))
    yield from ((entry["id"], entry["note"]["ko"]) for entry in catalog["models"] if entry["note"])
    benchmarks = json.loads((ROOT / "data" / "benchmarks.json").read_text("utf-8"))
    yield from ((name, entry["what"]["ko"]) for name, entry in benchmarks["benchmarks"].items())
    yield from ((entry["model"], entry["note"]["ko"]) for entry in benchmarks["circulated"] if entry["note"])


def test_korean_keeps_to_the_glossary():
    entries = glossary()
    assert len(entries) > 30
    wrong = [(place, word, korean) for place, text in korean_prose() for _, korean, avoided in entries
             for word in avoided if re.search(rf"(?<![가-힣]){re.escape(word)}", text)]
    assert wrong == []


def test_no_korean_term_serves_two_english_ones():
    terms = [korean for _, korean, _ in glossary()]
    assert len(terms) == len(set(terms))


def test_the_data_card_names_every_file_and_counts_right():
    card = (ROOT / "data" / "README.md").read_text("utf-8")
    for path in (ROOT / "data").glob("*.json"):
        assert f"`{path.name}`" in card
    catalog = json.loads((ROOT / "data" / "catalog.json").read_text("utf-8"))
    devices = json.loads((ROOT / "data" / "devices.json").read_text("utf-8"))["devices"]
    assert f"{len(catalog['models'])} models, {len(catalog['tasks'])} tasks" in card
    assert f"{len(devices)} devices" in card
    benchmarks = json.loads((ROOT / "data" / "benchmarks.json").read_text("utf-8"))
    assert f"{len(benchmarks['figures'])} figures, {len(benchmarks['circulated'])} in circulation" in card
