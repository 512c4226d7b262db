"""Answers to the exercises of lesson 10."""
import math
import re
from fractions import Fraction

from course_lib.evaluation import answers


def needed(better, worse, *, both=True, z=1.96, whole=math.ceil):
    variance = better - better**2 + (worse - worse**2 if both else 0)
    return whole((z / (better - worse)) ** 2 * variance)


def counted(better, worse):
    """Tries one number after the other, unlike the reference solution."""
    n = 1
    while 1.96 * math.sqrt((better * (1 - better) + worse * (1 - worse)) / n) > better - worse:
        n += 1
    return n


def find(text, *, comma=True, minus=True, point=True, box=True, marked=True, boundary=False, first=False):
    """Cuts the text down to where the answer stands, then takes the last number; parts can be left out."""
    for marker, wanted in (("####", True), ("boxed{", box), ("nswer is", marked), ("정답은", marked),
                           ("답:", marked)):
        if wanted and marker in text:
            text = re.split(r"[}.](?!\d)", text.split(marker)[1])[0]
    if comma:
        text = text.replace(",", "")
    digits = r"\d+(?:\.\d+)?" if point else r"\d+"
    digits = rf"\b{digits}\b" if boundary else digits
    found = re.findall(("-?" if minus else "") + digits, text)
    return float(found[0 if first else -1]) if found else None


def drawn(n, c, k):
    """A product of the chances that each further draw is wrong too."""
    wrong = 1.0
    for index in range(k):
        wrong *= max(0, n - c - index) / (n - index)
    return 1 - wrong


RIGHT = [
    ("10.1", needed),
    ("10.1", counted),
    ("10.2", find),
    ("10.2", answers.number),
    ("10.2", lambda text: None if find(text) is None else Fraction(find(text))),
    ("10.3", drawn),
]
WRONG = [
    ("10.1", lambda better, worse: needed(better, worse, both=False), "check.10.1.one"),
    ("10.1", lambda better, worse: needed(better, worse, whole=float), "check.10.1.whole"),
    ("10.1", lambda better, worse: needed(better, worse, whole=math.floor), "check.10.1.whole"),
    ("10.1", lambda better, worse: needed(better, worse, z=1), "check.10.1"),
    ("10.1", lambda better, worse: 738, "check.10.1"),
    ("10.1", lambda better, worse: str(needed(better, worse)), "check.not_a_number"),
    ("10.2", lambda text: find(text, first=True), "check.10.2.last"),
    ("10.2", lambda text: find(text, comma=False), "check.10.2.comma"),
    ("10.2", lambda text: find(text, minus=False), "check.10.2.minus"),
    ("10.2", lambda text: find(text, point=False), "check.10.2.point"),
    ("10.2", lambda text: find(text, box=False), "check.10.2.box"),
    ("10.2", lambda text: find(text, marked=False), "check.10.2.marked"),
    ("10.2", lambda text: find(text, boundary=True), "check.10.2.korean"),
    ("10.2", lambda text: find(text) or 0, "check.10.2.none"),
    ("10.2", lambda text: find(text) if find(text) is not None else 1 / 0, "check.raised"),
    ("10.2", lambda text: str(find(text)), "check.not_a_number"),
    ("10.2", lambda text: float(re.findall(r"-?[\d,.]*\d[.]?", text)[-1].replace(",", "").rstrip("."))
     if text[-2:] != "6." else 0, "check.10.2.stop"),
    ("10.2", lambda text: 42, "check.10.2.plain"),
    ("10.3", lambda n, c, k: 1 - (1 - c / n) ** k, "check.10.3.biased"),
    ("10.3", lambda n, c, k: c / n, "check.10.3"),
    ("10.3", lambda n, c, k: math.comb(n - c, k) / math.comb(n, k), "check.10.3"),
    ("10.3", lambda n, c, k: drawn(n, c, k) if n - c >= k else 0.0, "check.10.3.sure"),
    ("10.3", lambda n, c, k: None, "check.returned_none"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"ceil|comb\(|findall|n - c"
