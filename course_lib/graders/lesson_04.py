"""Graders of lesson 04: text length in two scripts, pairs of near-duplicates, a staged curriculum."""
from __future__ import annotations

import math
import re

from .cases import as_numbers, judged
from .grading import Hint, grader, numbers, shown

TEXTS = ("Small models need good data.", "작은 모델에는 좋은 데이터가 필요합니다.",
         "KV 캐시는 GPU 메모리를 차지합니다.", "The word 데이터 means data.",
         "모델 3개, 토큰 1,024개입니다!", "  two\n\nwords ", "API는 무엇입니까?")
FOX = "The quick brown fox jumps over the lazy dog."


@grader("04.1")
def _length_by_script(answer: object) -> Hint:
    """Expect the number of Hangul syllables if they outnumber the Latin letters, else of words."""
    for text in TEXTS:
        syllables = len(re.findall("[가-힣]", text))
        letters = len(re.findall("[A-Za-z]", text))
        words = len(text.split())
        hint = numbers(answer, [((text,), syllables if syllables > letters else words)], "check.04.1")
        if hint and hint[0] == "check.04.1":  # describe the text instead of quoting Korean
            fields = {"syllables": syllables, "letters": letters, "words": words, "result": hint[1]["result"]}
            return "check.04.1", fields
        if hint:
            return hint
    return None


@judged("04.2", [
    ([FOX, "An entirely different sentence.", FOX.upper()], 1.0),
    ([FOX, FOX[:-9], "No."], 0.5),
    (["yes", "no", "Yes"], 0.9),
    (["abcdef", "abcdeg", "zzzzz"], 1 / 3),  # the similarity equals the threshold
    (["ha ha ha ha ha ha ha ha ha", "ha ha ha ha and then some more"], 0.5),  # repeats count once
    ([FOX, FOX + " And then it sleeps all day long.", "Another sentence.", "Another sentence!"], 0.6)])
def _duplicate_pairs(result, texts, threshold):
    if not _is_pairs(result, len(texts)):
        return "check.04.2.form", {"result": shown((result,))}
    pairs = {(i, j) for j in range(len(texts)) for i in range(j)
             if _similarity(texts[i], texts[j]) >= threshold - 1e-12}
    found = {tuple(pair) for pair in result}
    if found == pairs:
        return None
    fields = {"arguments": shown((texts, round(threshold, 3))), "result": shown((result,))}
    return ("check.04.2.missing" if pairs - found else "check.04.2.extra"), fields


def _similarity(text: str, other: str) -> float:
    first, second = ({words.lower()[start:start + 5] for start in range(max(1, len(words) - 4))}
                     for words in (text, other))
    return len(first & second) / len(first | second)


def _is_pairs(result: object, count: int) -> bool:
    """Tell whether `result` is a list or set of index pairs (i, j) with i < j < count."""
    if not isinstance(result, (list, set)):
        return False
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(row) is int for row in pair)
               and 0 <= pair[0] < pair[1] < count for pair in result)


@judged("04.3", [
    ([3.0, 1.0, 2.0, 4.0], 0, 8, 2), ([3.0, 1.0, 2.0, 4.0], 3, 8, 2), ([3.0, 1.0, 2.0, 4.0], 4, 8, 2),
    ([0.5, 2.5, 1.5, 9.0, 4.0, 3.0], 2, 6, 3), ([0.5, 2.5, 1.5, 9.0, 4.0, 3.0], 5, 6, 3),
    ([7.0, 5.0], 1, 4, 1)])
def _staged_weights(result, difficulty, step, total_steps, stages):
    """Expect equal weights for the easiest s / stages of the samples in stage s."""
    weights = as_numbers(result, len(difficulty))
    if weights is None or not all(map(math.isfinite, weights)):
        return "check.04.3.shape", {"n": len(difficulty)}
    share = (step * stages // total_steps + 1) / stages
    size = round(share * len(difficulty))
    right = set(sorted(range(len(difficulty)), key=difficulty.__getitem__)[:size])
    used = {row for row, weight in enumerate(weights) if weight != 0}
    if used != right:
        return ("check.04.3.places" if len(used) == size else "check.04.3.open"), {"result": len(used)}
    if any(abs(weights[row] - 1 / size) > 1e-5 for row in right):
        return "check.04.3.values", {"sum": f"{sum(weights):.3f}"}
    return None
