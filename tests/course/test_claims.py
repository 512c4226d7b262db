"""data/claims.json: each common statement leads to the cell that corrects it, in both languages."""
from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from course_lib.runtime import LANGUAGES
from tests.course.reading import LESSONS, NOTEBOOKS, notebook

DATA = Path(__file__).resolve().parents[2] / "data"
TEXT = (DATA / "claims.json").read_text("utf-8")
CLAIMS = json.loads(TEXT)["claims"]
FIELDS = ["verdict", "lesson", "cell", "says", "right"]
VERDICTS = {"wrong", "outdated", "harmful", "contested", "simplification"}
every_claim = pytest.mark.parametrize("number", CLAIMS)


def test_the_file_is_tidy():
    # an object would hide an id that comes twice
    whole = json.loads(TEXT, object_pairs_hook=lambda pairs: [*pairs])
    ids = [number for number, _ in dict(whole)["claims"]]
    assert ids == sorted(set(ids))
    assert TEXT == json.dumps(json.loads(TEXT), ensure_ascii=False, indent=1) + "\n"
    assert not re.search("[가-힣]", TEXT)


@every_claim
def test_an_entry_is_whole(number):
    entry = CLAIMS[number]
    assert re.fullmatch(r"[ABC]\d{3}", number) and list(entry) == FIELDS
    assert entry["verdict"] in VERDICTS and entry["lesson"] in LESSONS
    for field in ("says", "right"):
        assert re.fullmatch(r"\S.{10,}[^.\s]\.", entry[field]), "one sentence, please"
        assert ". " not in entry[field], "one sentence, please"
    assert entry["says"] != entry["right"]


@every_claim
def test_an_entry_leads_to_a_cell(number):
    lesson, cell = CLAIMS[number]["lesson"], CLAIMS[number]["cell"]
    there = [lang for lang in LANGUAGES if (NOTEBOOKS / lang / f"{lesson}.ipynb").is_file()]
    if cell is None:
        assert there == [], f"{lesson} exists: name the cell that corrects {number}"
        return
    assert there == list(LANGUAGES), f"{lesson} does not exist yet"
    for lang in LANGUAGES:
        found = {one.id: one.source for one in notebook(f"{lang}/{lesson}.ipynb").cells}
        assert found.get(cell, "").strip(), f"{lang}/{lesson} has no text or code in a cell {cell!r}"


def test_the_data_card_counts_right():
    card = (DATA / "README.md").read_text("utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| `claims.json` |"))
    assert f"| {len(CLAIMS)} claims:" in row
    for verdict, count in Counter(entry["verdict"] for entry in CLAIMS.values()).items():
        assert f"{count} {verdict}" in row
