"""The answer in what a model wrote: a number, a letter, a name, or code. Most scoring mistakes are made here.

A model that reasons rightly and writes "$1,234.00", "\\boxed{1234}" or "정답은 1,234원입니다" has answered 1234, and a pattern
that finds none of these counts the format, not the skill. So extraction is lenient about the form and strict about the value:
numbers are compared as exact fractions, names as a whole, after the normalisation that TriviaQA and SQuAD use, extended to
Korean. Where a text names several numbers, an explicit answer ("####", a box, "the answer is") comes first, then the last one.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction

from .filters import sentences

_SUPERSCRIPTS = dict.fromkeys(map(ord, "⁰¹²³⁴⁵⁶⁷⁸⁹"))  # "30 m²" holds one number
_MULTIPLIERS = {"백": 100, "천": 1000, "만": 10**4, "억": 10**8}
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"""
    (?<![A-Za-z0-9_^.])                             # not the 2 of x2, m^2 or 1.2
    (?P<sign>[-−–]|minus\s+|영하\s*|마이너스\s*)?[$₩€£¥]?(?P<late>[-−])?
    (?:(?P<whole>\d+)\s+(?=\d+/\d))?                # 1 1/2
    (?P<value>{_PLAIN})
    (?:\s*/\s*(?P<below>\d+(?![\d.,]*\d*/)))?
    (?P<units>(?:\s?[백천만억](?=[\s\d.,)원명개번권장년]|입니다|$)(?:\s?(?:{_PLAIN})(?=\s?[백천만억원]))?)+)?
    (?P<below_zero>\s+degrees?(?:\s+(?:Celsius|Fahrenheit))?\s+below\s+zero)?
    """, re.X)
_MARKER = re.compile(r"(?P<en>\banswer\b[*_\s]*(?:is|:|=))|"
                     r"(?P<ko>(?<![가-힣])(?:최종\s*)?(?:정답|해답|답)[*_\s]*(?:은|는|:|=))", re.I)
_PARTICLES = ("은", "는", "이", "가", "을", "를", "의", "에", "도", "와", "과", "로", "으로", "에서", "이라고", "라고")
_COPULAS = ("입니다", "이었습니다", "였습니다", "이에요", "예요", "이다", "다", "임")


# --- numbers -----------------------------------------------------------------------------------------------------

def number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, or None.

    What follows the last "####" counts first (GSM8K, Cobbe et al. 2021, arXiv 2110.14168), then the last `\\boxed{}` (MATH,
    Hendrycks et al. 2021, arXiv 2103.03874), then a sentence with "the answer is", "Answer:", "정답은" or "답:", and if there
    is none of these the last number of the text. Thousands commas, currencies, units, percent signs (25 % is 25), fractions,
    "영하" and "3만 5천" are read.
    """
    text = _plain(text)
    explicit = [_statement(text.rpartition("####")[2])] if "####" in text else []
    explicit += list(_boxes(text))[-1:] + list(_marked(text))[::-1]
    for part in (*explicit, text):
        found = list(_numbers(part))
        if found:
            return found[-1]
    return None


def _plain(text: str) -> str:
    """Without LaTeX's and typography's ways of writing a number."""
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).replace("\u2044", "/")
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\{,\}|\\,(?=\d)|(?<=\d)\\!", lambda match: "," if match.group() == "{,}" else "", text)
    return re.sub(r"\\(?=[$%])", "", text)


def _statement(text: str) -> str:
    """Up to the end of the sentence or line; unlike for `filters.sentences`, "42." is a sentence, and no head of a list."""
    return re.split(r"[.!?。](?=\s|$)|\n", text.lstrip(), maxsplit=1)[0]


def _boxes(text: str) -> Iterator[str]:
    r"""The contents of each \boxed{…}, with braces inside."""
    for start in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, place = 1, start.end()
        while place < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            place += 1
        yield text[start.end():place - 1 if not depth else place]


def _marked(text: str) -> Iterator[str]:
    """What each "the answer is" or "정답은" announces: in English up to the first number, in Korean the whole sentence."""
    for marker in _MARKER.finditer(text):
        first = _statement(text[marker.end():].lstrip(" *:=_\n"))
        if marker["en"] and "=" not in first:  # "The answer is 42 apples in 3 boxes."
            number_there = _NUMBER.search(first)
            first = first[:number_there.end()] if number_there else first
        yield first


def _numbers(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(text):
        value = Fraction(match["value"].replace(",", ""))
        if match["below"] and int(match["below"]):
            value = Fraction(match["whole"] or 0) + value / int(match["below"])
        if match["units"]:
            value = _with_units(value, match["units"])
        yield -value if match["sign"] or match["late"] or match["below_zero"] else value


def _with_units(first: Fraction, units: str) -> Fraction:
    """3, "만 5천" -> 35000."""
    total, current = Fraction(0), first
    for part in re.findall(rf"[백천만억]|{_PLAIN}", units):
        if part in _MULTIPLIERS:
            total, current = total + current * _MULTIPLIERS[part], Fraction(0)
        else:
            current = Fraction(part.replace(",", ""))
    return total + current


# --- letters -----------------------------------------------------------------------------------------------------

def choice(text: str, letters: str = "ABCD") -> int | None:
    """The choice that a text names, counted from 0, or None: "B", "(b)", "B. Paris", "The answer is B", "정답은 2번입니다".

    An explicit answer comes first, then a letter at the start, then a letter in brackets or before a bracket or full stop if
    there is only one. A sentence that begins with the article "A" names no choice.
    """
    circled = {chr(0x2460 + place): letter for place, letter in enumerate(letters)}
    text = "".join(circled.get(sign, sign) for sign in text).strip()
    kinds = f"[{letters}]"
    one = rf"[(\[*\s]*(?:(?P<letter>{kinds})(?![A-Za-z'])|(?P<digit>[1-{len(letters)}])\s*번)"
    places = list(_boxes(text))[-1:] + [text[marker.end():] for marker in _MARKER.finditer(text)][::-1]
    for place in places:
        found = re.match(one, re.sub(r"^\\text\s*\{", "", place.strip(" :*=_\n")), re.I)
        if found and not re.match(r"[a-z]\s+[a-z]", found.string[found.end() - 1:]):  # "The answer is a number"
            return _index(found, letters)
    found = re.match(rf"[(\[*\s]*(?P<letter>{kinds})(?:[)\].:*,]|\s*$|\s*\n|(?=[가-힣]))", text, re.I) or re.match(
        r"\s*(?P<letter>$^)?(?P<digit>[1-9])\s*번", text)
    named = {match.group(1) for match in re.finditer(rf"(?<![A-Za-z])\(?({kinds})\)", text)}
    if found and not (len(named) > 1 and found["letter"] and found["letter"].upper() in named):  # "(A) or (B)"
        return _index(found, letters)
    return letters.index(named.pop()) if len(named) == 1 else None


def _index(found: re.Match, letters: str) -> int | None:
    if found["letter"]:
        return letters.index(found["letter"].upper())
    return int(found["digit"]) - 1 if int(found["digit"]) <= len(letters) else None


# --- names -------------------------------------------------------------------------------------------------------

def normalise_answer(text: str) -> str:
    """The form in which short answers are compared: no case, accents, punctuation or English articles; Korean without spaces.

    As in TriviaQA (Joshi et al. 2017, arXiv 1705.03551) and SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250), whose scripts
    keep accents and know no Korean.
    """
    letters = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    text = unicodedata.normalize("NFC", "".join(sign for sign in letters if unicodedata.category(sign) != "Mn"))
    words = [word for word in re.sub(r"[^\w\s]|_", " ", text).split() if word not in ("a", "an", "the")]
    return ("" if re.search("[가-힣]", text) else " ").join(words)


def same_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text gives one of the accepted answers and nothing else: "Oslo", "The answer is Oslo.", "정답은 오슬로입니다".

    Only the first line counts, up to the end of its first sentence.
    """
    accepted = {normalise_answer(answer) for answer in answers}
    return not accepted.isdisjoint(_forms(normalise_answer(_short(text))))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in the first line as whole words: lenient, and deceived by "not Paris".

    As the accuracy of Mallen et al. 2023 (arXiv 2212.10511), but whole words only: "Oslo" is not in "Osloer".
    """
    line = (text.strip().splitlines() or [""])[0]
    spoken = re.sub(r"[^\w\s]|_", " ", unicodedata.normalize("NFKC", line)).split()
    accepted = {normalise_answer(answer) for answer in answers} - {""}
    runs = (spoken[start:end] for start in range(len(spoken)) for end in range(start + 1, min(start + 6, len(spoken)) + 1))
    return any(not accepted.isdisjoint(_forms(normalise_answer(" ".join(run)))) for run in runs)


def _short(text: str) -> str:
    """The first sentence of the first line, without what announces the answer."""
    line = (text.strip().splitlines() or [""])[0]
    marker = _MARKER.search(line)
    return (sentences(line[marker.end():] if marker else line) or [""])[0]


def _forms(word: str) -> set[str]:
    """A normalised answer with and without Korean endings. All forms count: 수은 (mercury) ends like a particle."""
    forms = {word}
    if re.search("[가-힣]$", word):
        for endings in (_COPULAS, _PARTICLES):
            forms |= {form.removesuffix(ending) for form in forms for ending in endings}
    return forms - {""}


# --- code --------------------------------------------------------------------------------------------------------

def code(prompt: str, completion: str, entry_point: str) -> str:
    """The program in a model's answer to the head of a function: prompt and body, or the function from a code block.

    Without a code block the body ends at the first line that stands at the margin, as HumanEval's stop sequences have it
    (Chen et al. 2021, arXiv 2107.03374). The prompt's own lines before the function (imports, helpers) stay.
    """
    block = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", completion, re.S)
    if block and re.search(rf"^def {re.escape(entry_point)}\b", block[1], re.M):
        return prompt.partition(f"def {entry_point}")[0] + block[1]
    body = block[1] if block else completion
    if re.match(rf"\s*def {re.escape(entry_point)}\b", body):  # the whole function, bare
        head, _, rest = body.lstrip().partition("\n")
        return prompt.partition(f"def {entry_point}")[0] + head + "\n" + _indented(rest)
    return prompt + _indented(body)


def _indented(text: str) -> str:
    """Lines up to the first one at the margin."""
    lines = []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace() and (lines or not text.startswith(line)):
            break
        lines.append(line)
    return "\n".join(lines) + "\n"
