"""The words of a code cell: find them, choose those to translate, and replace them by Korean.

A word is a string literal or a comment, identified by the exact text of its token with quotes and prefix.
A table maps words to Korean, or to None if they stay the same (a prompt, a key, data).
"""
from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

HANGUL = re.compile("[가-힣]")
LATIN = re.compile("[A-Za-z]")
BETWEEN_WORDS = re.compile(r"\S\s+\S")
MAGIC = re.compile(r"^([ \t]*)(?:[\w, ]+=[ \t]*)?[%!].*$", re.M)
PYTHON_BELOW = ("capture", "prun", "time", "timeit")  # cell magics that are followed by Python


@dataclass(frozen=True)
class Word:
    """A word of a cell: "string", "f-string", "bytes" or "comment", with its text and offsets."""

    kind: str
    text: str
    start: int
    end: int


# --- finding words ------------------------------------------------------------------------------------------

def plain(source: str) -> str:
    """Return the cell as valid Python: lines of IPython magics become `pass`."""
    magic = re.match(r"%%(\w+)", source)
    if magic and magic.group(1) not in PYTHON_BELOW:
        return ""
    try:
        ast.parse(source)
        return source
    except SyntaxError:  # only now: a line of valid Python may begin with the operator %
        return MAGIC.sub(r"\1pass", source)


def words(source: str) -> list[Word]:
    """Return the words of a cell in order, none if it is not Python; adjacent literals are separate words."""
    readable = plain(source)
    try:
        ast.parse(readable)
    except SyntaxError:
        return []
    lines = _line_starts(source)
    return [Word(kind, source[lines[start[0] - 1] + start[1]:lines[end[0] - 1] + end[1]],
                 lines[start[0] - 1] + start[1], lines[end[0] - 1] + end[1])
            for kind, start, end in _word_tokens(readable)]


def _line_starts(source: str) -> list[int]:
    return [0, *accumulate(len(line) + 1 for line in source.split("\n"))]


def _word_tokens(readable: str) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Yield (kind, start, end) of each word; joins the pieces of f-strings of Python 3.12 and later."""
    fstring_start = getattr(tokenize, "FSTRING_START", None)
    fstring_end = getattr(tokenize, "FSTRING_END", None)
    opened = []  # starts of the f-strings around a token; a literal in a field is no word of its own
    for token in tokenize.generate_tokens(io.StringIO(readable).readline):
        if token.type == fstring_start:
            opened.append(token.start)
        elif token.type == fstring_end:
            start = opened.pop()
            if not opened:
                yield "f-string", start, token.end
        elif not opened and token.type == tokenize.STRING:
            prefix = re.match("[a-zA-Z]*", token.string).group().lower()
            kind = "f-string" if "f" in prefix else "bytes" if "b" in prefix else "string"
            yield kind, token.start, token.end
        elif not opened and token.type == tokenize.COMMENT:
            yield "comment", token.start, token.end


# --- judging words ------------------------------------------------------------------------------------------

def for_people(source: str) -> list[str]:
    """Return the words of a cell that need a translation, each once.

    These are comments, literals of several words, f-strings with letters outside their fields, and literals
    that `print` shows. Words with Hangul or without Latin letters are left out.
    """
    ranges = [(_offset(source, node.lineno, node.col_offset),
               _offset(source, node.end_lineno, node.end_col_offset)) for node in _printed(plain(source))]
    wanted = {}
    for word in words(source):
        if word.kind == "bytes" or HANGUL.search(word.text) or not LATIN.search(_outside_fields(word)):
            continue
        if word.kind != "string" or BETWEEN_WORDS.search(_outside_fields(word)) or any(
                start <= word.start and word.end <= end for start, end in ranges):
            wanted[word.text] = True
    return list(wanted)


def _offset(source: str, line: int, column: int) -> int:
    """Convert a position of `ast` (line from 1, column in bytes) to an offset in characters."""
    return _line_starts(source)[line - 1] + len(source.split("\n")[line - 1].encode()[:column].decode())


def _printed(readable: str) -> list[ast.expr]:
    try:
        tree = ast.parse(readable)
    except SyntaxError:
        return []
    calls = [node for node in ast.walk(tree)
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]
    return [literal for call in calls for part in [*call.args, *(keyword.value for keyword in call.keywords)]
            for literal in _shown(part)]


def _shown(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the literals that an expression shows, without those in indices, comparisons or arguments."""
    if isinstance(node, (ast.Constant, ast.JoinedStr)):
        yield node
    elif isinstance(node, ast.IfExp):
        yield from _shown(node.body)
        yield from _shown(node.orelse)
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):  # " · ".join(…), "…".format(…)
            yield from _shown(node.func.value)
            for argument in node.args if node.func.attr in ("join", "format") else []:
                yield from _shown(argument)
    elif not isinstance(node, (ast.Subscript, ast.Compare, ast.comprehension, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _shown(child)


def _outside_fields(word: Word) -> str:
    """Return the visible text of a word: of an f-string, the text outside its fields."""
    if word.kind == "comment":
        return word.text
    node = ast.parse(word.text, mode="eval").body
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value for part in node.values if isinstance(part, ast.Constant))
    return node.value


def fields(literal: str) -> Counter[str]:
    """Count the fields of an f-string, with conversion and format; empty for any other word."""
    return Counter(map(_field, _fields_of(literal)))


def _fields_of(literal: str) -> list[ast.FormattedValue]:
    if literal.startswith("#"):
        return []
    node = ast.parse(literal, mode="eval").body
    return [part for part in getattr(node, "values", []) if isinstance(part, ast.FormattedValue)]


def _field(node: ast.FormattedValue) -> str:
    conversion = f"!{chr(node.conversion)}" if node.conversion != -1 else ""
    parts = node.format_spec.values if node.format_spec else []
    layout = "".join(part.value if isinstance(part, ast.Constant) else _field(part) for part in parts)
    return "{" + ast.unparse(node.value) + conversion + (f":{layout}" if parts else "") + "}"


def words_in_fields(source: str) -> list[str]:
    """Return the literals that f-string fields show; no table can translate them."""
    parts = [part for word in words(source) for part in _fields_of(word.text)]
    shown = [getattr(node, "value", None) for part in parts for node in _shown(part.value)]
    texts = [text for text in shown if isinstance(text, str)]
    return [text for text in texts if LATIN.search(text) and not HANGUL.search(text)]


# --- Korean -------------------------------------------------------------------------------------------------

def korean_source(source: str, table: dict[str, str | None]) -> str:
    """Replace the words of an English cell by their Korean; words without an entry stay English."""
    pieces = []
    position = 0
    for word in words(source):
        pieces += [source[position:word.start], table.get(word.text) or word.text]
        position = word.end
    return "".join([*pieces, source[position:]])


def missing(source: str, table: dict[str, str | None]) -> list[str]:
    """Return the words to translate that have no entry in the table."""
    return [text for text in for_people(source) if text not in table]


def stale(source: str, table: dict[str, str | None]) -> list[str]:
    """Return the entries of the table whose English is no longer in the cell."""
    present = {word.text for word in words(source)}
    return [text for text in table if text not in present]


def faults(source: str, table: dict[str, str | None]) -> list[str]:
    """Return a sentence for each entry that cannot be put into the cell; empty if all can."""
    english = words(source)
    kinds = {word.text: word.kind for word in english}
    wrong = {text: why for text, kind in kinds.items() if (why := _fault(kind, table.get(text)))}
    if wrong:
        return [f"the Korean of {text} {why}" for text, why in wrong.items()]
    before = sum((fields(word.text) for word in english), Counter())
    after = sum((fields(table.get(word.text) or word.text) for word in english), Counter())
    if before != after:
        moved = [text for text in kinds if fields(table.get(text) or text) != fields(text)]
        lost = ", ".join((before - after).elements()) or "none"
        added = ", ".join((after - before).elements()) or "none"
        return [f"the Korean of {text} has other fields (of the cell's fields lost: {lost}; added: {added})"
                for text in moved]
    if [word.kind for word in words(korean_source(source, table))] != [word.kind for word in english]:
        return ["with the Korean of its table the cell would be other code"]
    return []


def _fault(kind: str, korean: object) -> str | None:
    """Return what is wrong with the Korean of one word, as the end of a sentence, or None."""
    if korean is None:
        return None
    if kind == "bytes":
        return "must be null: bytes are not for people"
    if not isinstance(korean, str):
        return f"must be text or null, not {korean!r}"
    parts = words(korean)
    if len(parts) != 1 or parts[0].kind != kind or parts[0].text != korean:
        return f"must be one {kind} with its {'#' if kind == 'comment' else 'quotes'}, not: {korean}"
    if not HANGUL.search(korean):
        return f"has no Hangul (null says that it is the same in Korean): {korean}"
    return None
