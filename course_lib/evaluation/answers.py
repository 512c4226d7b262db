"""Extract the answer from what a model wrote: a number, a letter, a name or code.

A model may write a correct 1234 as "$1,234.00", "\\boxed{1234}" or "정답은 1,234원입니다". A pattern that
misses these measures the format, not the skill. So the form may vary, but the value must be exact: numbers
are compared as fractions, names as a whole, normalised as in TriviaQA and SQuAD and for Korean.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction

from ..data.filters import sentences

_SUPERSCRIPTS = dict.fromkeys(map(ord, "⁰¹²³⁴⁵⁶⁷⁸⁹"))  # "30 m²" holds one number
_MULTIPLIERS = {"백": 100, "천": 1000, "만": 10**4, "억": 10**8}
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"""
    (?<![A-Za-z0-9_^.])                             # not the 2 of x2, m^2 or 1.2
    (?P<sign>[-−–]|minus\s+|영하\s*|마이너스\s*)?[$₩€£¥]?(?P<late>[-−])?
    (?:(?P<whole>\d+)\s+(?=\d+/\d))?                # 1 1/2
    (?P<value>{_PLAIN})
    (?:\s*/\s*(?P<below>\d+(?![\d.,]*\d*/)))?
    (?P<units>(?:\s?[백천만억](?=[\s\d.,)원명개번권장년]|입니다|$)
                (?:\s?(?:{_PLAIN})(?=\s?[백천만억원]))?)+)?
    (?P<below_zero>\s+degrees?(?:\s+(?:Celsius|Fahrenheit))?\s+below\s+zero)?
    """, re.X)
_MARKER = re.compile(r"(?P<en>\banswer\b[*_\s]*(?:is|:|=))|"
                     r"(?P<ko>(?<![가-힣])(?:최종\s*)?(?:정답|해답|답)[*_\s]*(?:은|는|:|=))", re.I)
_PARTICLES = (*"은는이가을를의에도와과로", "으로", "에서", "이라고", "라고")
_COPULAS = ("입니다", "이었습니다", "였습니다", "이에요", "예요", "이다", "다", "임")


# --- numbers --------------------------------------------------------------------------------------

def number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, or None.

    It is the last number in the first of these passages that holds one: the line after the last "####"
    (GSM8K, arXiv 2110.14168), the last `\\boxed{}` (MATH, arXiv 2103.03874), the last sentence with "the
    answer is", "Answer:", "정답은" or "답:", and the whole text. Thousands commas, currencies, units, percent
    signs (25 % is 25), fractions, "영하" (minus) and "3만 5천" (35,000) are read.
    """
    text = _plain(text)
    explicit = [_statement(text.rpartition("####")[2])] if "####" in text else []
    explicit += list(_boxes(text))[-1:] + list(_marked(text))[::-1]
    for passage in (*explicit, text):
        numbers = list(_numbers(passage))
        if numbers:
            return numbers[-1]
    return None


def _plain(text: str) -> str:
    """Replace LaTeX and typographic notation of numbers with plain characters."""
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).replace("\u2044", "/")
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\{,\}|\\,(?=\d)|(?<=\d)\\!", lambda match: "," if match.group() == "{,}" else "", text)
    return re.sub(r"\\(?=[$%])", "", text)


def _statement(text: str) -> str:
    """The text up to the end of its first sentence or line; "42." is a sentence, not a list item."""
    return re.split(r"[.!?。](?=\s|$)|\n", text.lstrip(), maxsplit=1)[0]


def _boxes(text: str) -> Iterator[str]:
    r"""The contents of each \boxed{…}, including nested braces."""
    for start in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth = 1
        end = start.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield text[start.end():end if depth else end - 1]


def _marked(text: str) -> Iterator[str]:
    """What follows each "the answer is" up to the first number; after "정답은" the whole sentence."""
    for marker in _MARKER.finditer(text):
        statement = _statement(text[marker.end():].lstrip(" *:=_\n"))
        if marker["en"] and "=" not in statement:  # "The answer is 42 apples in 3 boxes."
            match = _NUMBER.search(statement)
            statement = statement[:match.end()] if match else statement
        yield statement


def _numbers(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(text):
        value = Fraction(match["value"].replace(",", ""))
        if match["below"] and int(match["below"]):
            value = Fraction(match["whole"] or 0) + value / int(match["below"])
        if match["units"]:
            value = _with_units(value, match["units"])
        yield -value if match["sign"] or match["late"] or match["below_zero"] else value


def _with_units(first: Fraction, units: str) -> Fraction:
    """The value of a number with Korean units: 3, "만 5천" → 35000."""
    total = Fraction(0)
    current = first
    for word in re.findall(rf"[백천만억]|{_PLAIN}", units):
        if word in _MULTIPLIERS:
            total += current * _MULTIPLIERS[word]
            current = Fraction(0)
        else:
            current = Fraction(word.replace(",", ""))
    return total + current


# --- letters --------------------------------------------------------------------------------------

def choice(text: str, letters: str = "ABCD") -> int | None:
    """The choice that a text names, counted from 0, or None.

    It reads "B", "(b)", "Answer: B" and "정답은 2번입니다". An explicit answer comes first, then a letter at
    the start, then the only letter before a closing bracket. "A" as an article names no choice.
    """
    circled = {chr(0x2460 + index): letter for index, letter in enumerate(letters)}
    text = "".join(circled.get(sign, sign) for sign in text).strip()
    letter = f"(?P<letter>[{letters}])"
    named_first = rf"[(\[*\s]*(?:{letter}(?![A-Za-z'])|(?P<digit>[1-{len(letters)}])\s*번)"
    marked = [text[marker.end():] for marker in _MARKER.finditer(text)]
    for passage in list(_boxes(text))[-1:] + marked[::-1]:
        match = re.match(named_first, re.sub(r"^\\text\s*\{", "", passage.strip(" :*=_\n")), re.I)
        # "The answer is a number" names no choice
        if match and not re.match(r"[a-z]\s+[a-z]", match.string[match.end() - 1:]):
            return _index(match, letters)
    match = (re.match(rf"[(\[*\s]*{letter}(?:[)\].:*,]|\s*$|\s*\n|(?=[가-힣]))", text, re.I)
             or re.match(r"\s*(?P<letter>$^)?(?P<digit>[1-9])\s*번", text))
    bracketed = set(re.findall(rf"(?<![A-Za-z])\(?([{letters}])\)", text))
    one_of_several = match and len(bracketed) > 1 and (match["letter"] or "").upper() in bracketed
    if match and not one_of_several:  # "(A) or (B)"
        return _index(match, letters)
    return letters.index(bracketed.pop()) if len(bracketed) == 1 else None


def _index(match: re.Match, letters: str) -> int | None:
    if match["letter"]:
        return letters.index(match["letter"].upper())
    return int(match["digit"]) - 1 if int(match["digit"]) <= len(letters) else None


# --- names ----------------------------------------------------------------------------------------

def normalise_answer(text: str) -> str:
    """A short answer without case, accents, punctuation, articles or Korean spaces, for comparison.

    After the scripts of TriviaQA (arXiv 1705.03551) and SQuAD (arXiv 1606.05250), which keep accents.
    """
    letters = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    letters = "".join(sign for sign in letters if unicodedata.category(sign) != "Mn")
    text = unicodedata.normalize("NFC", letters)
    words = [word for word in re.sub(r"[^\w\s]|_", " ", text).split() if word not in ("a", "an", "the")]
    return ("" if re.search("[가-힣]", text) else " ").join(words)


def same_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the first sentence of the first line ("Answer: Oslo.") is only an accepted answer."""
    accepted = {normalise_answer(answer) for answer in answers}
    return not accepted.isdisjoint(_forms(normalise_answer(_short(text))))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the first line contains an accepted answer as whole words; "not Paris" counts as well.

    Like the accuracy of Mallen et al. 2023 (arXiv 2212.10511), but "Oslo" is not found in "Osloer".
    """
    line = (text.strip().splitlines() or [""])[0]
    spoken = re.sub(r"[^\w\s]|_", " ", unicodedata.normalize("NFKC", line)).split()
    accepted = {normalise_answer(answer) for answer in answers} - {""}
    phrases = (" ".join(spoken[start:end]) for start in range(len(spoken))
               for end in range(start + 1, min(start + 6, len(spoken)) + 1))
    return any(not accepted.isdisjoint(_forms(normalise_answer(phrase))) for phrase in phrases)


def _short(text: str) -> str:
    """The first sentence of the first line, without words such as "the answer is"."""
    line = (text.strip().splitlines() or [""])[0]
    marker = _MARKER.search(line)
    return (sentences(line[marker.end():] if marker else line) or [""])[0]


def _forms(word: str) -> set[str]:
    """A normalised answer with and without Korean endings: 수은 (mercury) only seems to have one."""
    forms = {word}
    if re.search("[가-힣]$", word):
        for endings in (_COPULAS, _PARTICLES):
            forms |= {form.removesuffix(ending) for form in forms for ending in endings}
    return forms - {""}


# --- code -----------------------------------------------------------------------------------------

def code(prompt: str, completion: str, entry_point: str) -> str:
    """The program in a model's answer to the head of a function.

    It is a code block's function after the prompt's imports, or the prompt with the body that the model
    wrote. Without a code block the body ends at the first unindented line, like HumanEval's stop sequences
    (arXiv 2107.03374).
    """
    head = rf"def {re.escape(entry_point)}\b"
    before = prompt.partition(f"def {entry_point}")[0]
    block = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", completion, re.S)
    if block and re.search(f"^{head}", block[1], re.M):
        return before + block[1]
    body = block[1] if block else completion
    if re.match(rf"\s*{head}", body):  # the whole function without a code block
        first, _, rest = body.lstrip().partition("\n")
        return f"{before}{first}\n{_indented(rest)}"
    return prompt + _indented(body)


def _indented(text: str) -> str:
    """The lines up to the first unindented one."""
    lines = []
    for line in text.splitlines():
        if line.strip() and not line[0].isspace() and (lines or not text.startswith(line)):
            break
        lines.append(line)
    return "\n".join(lines) + "\n"
