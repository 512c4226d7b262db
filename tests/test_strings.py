"""strings.json: each string is used, each key of the code is there, the languages have the same fields."""
import ast
import json
import re
import string
from pathlib import Path

import pytest

import course_lib
from course_lib import runtime

ROOT = Path(__file__).resolve().parents[1]
STRINGS = json.loads((Path(course_lib.__file__).parent / "strings.json").read_text("utf-8"))
KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
FILES = [*ROOT.glob("*.py"), *(path for room in ("course_lib", "tools", "bench", "demos") for path in
                               (ROOT / room).rglob("*.py"))]
OTHER_FORM = re.compile(r"[은는이가을를과와]\([은는이가을를과와]\)|\([으이]\)[로라]")


def asked_for():
    """(file, key) of every key in the code; a part that is filled in later stands as *."""
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
                yield path, "".join(parts)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "numeric":
                yield path, f"check.{node.args[0].value}"  # what the decorator of graders/cases.py hints at


def matches(key):
    """What a key in the code can be: each * is one name between dots."""
    return re.compile(re.escape(key).replace(r"\*", "[a-z0-9_]+"))


ASKED = {(path, key) for path, key in asked_for()
         if KEY.fullmatch(key.replace("*", "x")) and key != "check.*"}


def unused():
    """The keys that no code asks for."""
    literal = {key for _, key in ASKED if "*" not in key}
    patterns = [matches(key) for _, key in ASKED if "*" in key and key.partition(".")[0] in NAMESPACES]
    return [key for key in STRINGS if key not in literal and not any(p.fullmatch(key) for p in patterns)]


NAMESPACES = {key.partition(".")[0] for key in STRINGS}


def test_every_string_is_used():
    assert unused() == []


def test_every_key_that_code_asks_for_is_there():
    names = {"check", "pictures", "selection", "published", "catalog", "setup", "progress"}
    data = {path.name for path in (ROOT / "data").iterdir()}
    for path, key in ASKED:
        if key.partition(".")[0] in names and key not in data and not key.endswith((".py", ".json")):
            assert any(map(matches(key).fullmatch, STRINGS)), f"{path.name} asks for {key}"


def test_the_keys_are_sorted():
    assert list(STRINGS) == sorted(STRINGS)


@pytest.mark.parametrize("namespace", sorted(NAMESPACES))
def test_both_languages_say_the_same(namespace):
    for key, languages in STRINGS.items():
        if key.partition(".")[0] != namespace:
            continue
        assert set(languages) == set(runtime.LANGUAGES) and all(languages.values()), key
        fields = [{field for _, field, _, _ in string.Formatter().parse(words) if field is not None}
                  for words in languages.values()]
        assert fields[0] == fields[1], key


def test_particles_are_chosen_and_not_given_twice():
    """Korean strings write "{name}(을/를)", of which `runtime.text` shows one; "{name}을(를)" shows both."""
    assert [key for key, languages in STRINGS.items() if OTHER_FORM.search(languages["ko"])] == []
