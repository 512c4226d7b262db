"""The words of a code cell: found in any layout, chosen for people, exchanged for Korean."""
from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tools import literals
from tools.literals import faults, fields, for_people, korean_source, missing, stale, words, words_in_fields

CELLS = {  # source → its words as (kind, text)
    "x = 1": [],
    "x = 'a' \"b\"  # why": [("string", "'a'"), ("string", '"b"'), ("comment", "# why")],
    "f(b'x', r'\\d', u'y')": [("bytes", "b'x'"), ("string", "r'\\d'"), ("string", "u'y'")],
    'print(f"{d[\'a\']:>{w}} {n!r}", rf"{x}")':
        [("f-string", 'f"{d[\'a\']:>{w}} {n!r}"'), ("f-string", 'rf"{x}"')],
    'f"""one {x}\n  two {y:\n.2f}"""  # end':
        [("f-string", 'f"""one {x}\n  two {y:\n.2f}"""'), ("comment", "# end")],
    'f"{f\'{a} in\'} out"': [("f-string", 'f"{f\'{a} in\'} out"')],
    'f"{{not a field}} {x=}"': [("f-string", 'f"{{not a field}} {x=}"')],
    "가 = '한글'; f'{가} 개'  # 설명":
        [("string", "'한글'"), ("f-string", "f'{가} 개'"), ("comment", "# 설명")],
    "%pip install 'x'  # no\ny = 'z'": [("string", "'z'")],
    "%%time\n# why\n!ls 'x'\nout = !ls\n'z'": [("comment", "# why"), ("string", "'z'")],
    "if a:\n    %matplotlib inline\n    'z'": [("string", "'z'")],
    "x = '%s'\\\n% 'y'": [("string", "'%s'"), ("string", "'y'")],
    "'''\n%time is no magic here\n'''": [("string", "'''\n%time is no magic here\n'''")],
    "%%bash\necho 'x'  # why": [],
    "x = (": [],
}


@pytest.mark.parametrize("source", CELLS)
def test_words_and_their_places(source):
    found = words(source)
    assert [(word.kind, word.text) for word in found] == CELLS[source]
    assert all(source[word.start:word.end] == word.text for word in found)
    assert korean_source(source, {}) == source


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_words_are_the_same_in_every_python(version):
    """The module needs the standard library only, so any Python that is here can say what it sees."""
    command = ["pyenv", "prefix", version]
    try:
        prefix = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"there is no Python {version} here")
    code = ("import sys, importlib.util as u;"
            f"spec = u.spec_from_file_location('literals', {literals.__file__!r});"
            "m = sys.modules['literals'] = u.module_from_spec(spec); spec.loader.exec_module(m);"
            f"print(ascii({{s: [(w.kind, w.text) for w in m.words(s)] for s in {list(CELLS)!a}}}))")
    command = [Path(prefix) / "bin" / "python", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == CELLS


@pytest.mark.parametrize("source, people", [
    ('load("smollm2-135m"); x["loss"]; y = {"kl_nats": 1}', []),
    ('z = "memory (GB)"', ['"memory (GB)"']),
    ("def f():\n    '''What it does.'''", ["'''What it does.'''"]),
    ('f"{x:.2f}"; f"{x:.2f} s"; f"{a}, {b}\\n"', ['f"{x:.2f} s"']),
    ('print("loss", x["loss"], read("path"), sep="\\n")', ['"loss"']),
    ('print("yes" if kind == "base" else "no")', ['"yes"', '"no"']),
    ('print("가나다", " and ".join(["a", "b"]), "{} of".format("c"))',
     ['" and "', '"a"', '"b"', '"{} of"', '"c"']),
    ('한글 = 1; print("loss")', ['"loss"']),
    ('x = b"some bytes here"; y = "한국어 data"; z = "--- 1 2"', []),
    ("a = 1  # why\nb = 2  # why\nc = 3  # 이유\n# ---", ["# why"]),
])
def test_words_for_people(source, people):
    assert for_people(source) == people
    assert missing(source, {people[0]: None} if people else {}) == people[1:]


def test_words_that_hide_in_a_field():
    cell = 'f"{\'fits\' if d[\'a\'] == \'b\' else \'no\'} {\', \'.join(x)} {y or None}"'
    assert words_in_fields(cell) == ["fits", "no"]


@pytest.mark.parametrize("english, table, korean", [
    ('print(f"{a:.2f} after {b} steps")  # why',
     {'f"{a:.2f} after {b} steps"': 'f"{b}스텝 뒤 {a:.2f}"', "# why": "# 이유"},
     'print(f"{b}스텝 뒤 {a:.2f}")  # 이유'),
    ("x['a b'] = y['a b']", {"'a b'": '"가 나"'}, 'x["가 나"] = y["가 나"]'),
    ('%pip install "a b"\nprint("a b", "data")', {'"a b"': '"가 나"', '"data"': None},
     '%pip install "a b"\nprint("가 나", "data")'),
    ('print(f"{d[\'k\']} of "\n      f"{n}")',
     {'f"{d[\'k\']} of "': 'f"{n}개 중 "', 'f"{n}"': 'f"{d[\'k\']}개"'},
     'print(f"{n}개 중 "\n      f"{d[\'k\']}개")'),
    ('f"""{x}\nof {y!r:>{w}}"""', {'f"""{x}\nof {y!r:>{w}}"""': 'f"""{y!r:>{w}}\n중 {x}"""'},
     'f"""{y!r:>{w}}\n중 {x}"""'),
    ("'''Some words.'''", {"'''Some words.'''": "'''여러 줄의\n%time 말'''"}, "'''여러 줄의\n%time 말'''"),
])
def test_korean_takes_the_place_of_english(english, table, korean):
    assert faults(english, table) == [] == missing(english, table) == stale(english, table)
    assert korean_source(english, table) == korean


@pytest.mark.parametrize("english, korean, fault", [
    ('"a b"', '"c d"', "has no Hangul"), ("# why", "# warum", "has no Hangul"),
    ('"a b"', "", "must be one string"),
    ('"a b"', "가", "must be one string with its quotes"), ('"a b"', '"가" "나"', "must be one string"),
    ('"a b"', 'f"가"', "must be one string"), ('f"a {x}"', '"가 {x}"', "must be one f-string"),
    ('"a b"', '"가"  # 나', "one"),
    ('"a b"', 'b"a"', "must be one string"), ('b"a b"', '"가"', "bytes are not for people"),
    ("# why", "이유", "with its #"),
    ("# why", "# 이유\n# 둘", "must be one comment"), ('"a b"', 7, "must be text or null, not 7"),
    ('"a b"', '"가', "one string"),
    ('f"a {x:.2f}"', 'f"가 {x:.1f}"', "lost: {x:.2f}; added: {x:.1f}"),
    ('f"a {x}"', 'f"가 {x!r}"', "added: {x!r}"),
    ('f"a {x}"', 'f"가"', "lost: {x}; added: none"), ('f"a {x}"', 'f"가 {x} {x}"', "lost: none; added: {x}"),
    ('f"a {x:{w}}"', 'f"가 {x:{v}}"', "added: {x:{v}}"), ('f"a {x}"', 'f"가 {y}"', "lost: {x}; added: {y}"),
    ('f"a {x}"', 'f"가 {x"', "must be one f-string"),
])
def test_what_cannot_stand_in_a_cell(english, korean, fault):
    cell = f"y = 1  {english}" if english.startswith("#") else f"y = {english}"
    [sentence] = faults(cell, {english: korean})
    assert sentence.startswith(f"the Korean of {english} ") and fault in sentence


def test_stale_entries_and_settled_ones():
    assert stale('print("a b")', {'"a b"': None, '"c d"': '"다 라"', "# e": None}) == ['"c d"', "# e"]
    assert faults('print(b"x", "a b")', {'"a b"': None, 'b"x"': None, '"c d"': "nonsense"}) == []


def test_fields_of_other_words():
    assert not any(fields(word) for word in ('"{x}"', "b'{x}'", "# {x}", 'f"{{x}}"'))
