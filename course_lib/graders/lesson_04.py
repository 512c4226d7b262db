"""Graders of lesson 04: a length for two languages, pairs of near-duplicates, a curriculum in stages."""
from __future__ import annotations

import math
import re

from .grading import Hint, call, grader, numbers, shown


@grader("04.1")
def _length_by_script(answer: object) -> Hint:
    """Hangul syllables where they outnumber the Latin letters, else words."""
    for text in ("Small models need good data.", "작은 모델에는 좋은 데이터가 필요합니다.",
                 "KV 캐시는 GPU 메모리를 차지합니다.", "The word 데이터 means data.",
                 "모델 3개, 토큰 1,024개입니다!", "  two\n\nwords ", "API는 무엇입니까?"):
        syllables, letters, words = len(re.findall("[가-힣]", text)), len(re.findall("[A-Za-z]", text)), len(text.split())
        hint = numbers(answer, [((text,), syllables if syllables > letters else words)], "check.04.1")
        if hint and hint[0] == "check.04.1":  # describe the text: an English hint quotes no Korean
            return "check.04.1", {"syllables": syllables, "letters": letters, "words": words, "result": hint[1]["result"]}
        if hint:
            return hint
    return None


def _similarity(one: str, other: str) -> float:
    first, second = ({text.lower()[start:start + 5] for start in range(max(1, len(text) - 4))} for text in (one, other))
    return len(first & second) / len(first | second)


@grader("04.2")
def _duplicate_pairs(answer: object) -> Hint:
    fox = "The quick brown fox jumps over the lazy dog."
    cases = [([fox, "An entirely different sentence.", fox.upper()], 1.0), ([fox, fox[:-9], "No."], 0.5),
             (["yes", "no", "Yes"], 0.9), (["abcdef", "abcdeg", "zzzzz"], 1 / 3),  # the threshold is reached exactly
             (["ha ha ha ha ha ha ha ha ha", "ha ha ha ha and then some more"], 0.5),  # pieces that come often count once
             ([fox, fox + " And then it sleeps all day long.", "Another sentence.", "Another sentence!"], 0.6)]
    for texts, threshold in cases:
        pairs = {(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts))
                 if _similarity(texts[i], texts[j]) >= threshold - 1e-12}
        result, hint = call(answer, list(texts), threshold)
        if hint:
            return hint
        if not _is_pairs(result, len(texts)):
            return "check.04.2.form", {"result": shown((result,))}
        found, arguments = {tuple(pair) for pair in result}, shown((texts, round(threshold, 3)))
        if pairs - found:
            return "check.04.2.missing", {"arguments": arguments, "result": shown((result,))}
        if found - pairs:
            return "check.04.2.extra", {"arguments": arguments, "result": shown((result,))}
    return None


def _is_pairs(result: object, count: int) -> bool:
    """Whether this is a list of pairs of rows, the smaller first."""
    if not isinstance(result, (list, set)):
        return False
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(row) is int for row in pair)
               and 0 <= pair[0] < pair[1] < count for pair in result)


@grader("04.3")
def _staged_weights(answer: object) -> Hint:
    """Stage s of so many uses the easiest s / stages of the samples, all with the same weight."""
    cases = [([3.0, 1.0, 2.0, 4.0], 0, 8, 2), ([3.0, 1.0, 2.0, 4.0], 3, 8, 2), ([3.0, 1.0, 2.0, 4.0], 4, 8, 2),
             ([0.5, 2.5, 1.5, 9.0, 4.0, 3.0], 2, 6, 3), ([0.5, 2.5, 1.5, 9.0, 4.0, 3.0], 5, 6, 3), ([7.0, 5.0], 1, 4, 1)]
    for difficulty, step, total_steps, stages in cases:
        arguments = (difficulty, step, total_steps, stages)
        result, hint = call(answer, list(difficulty), step, total_steps, stages)
        if hint:
            return hint
        weights = _row_of_numbers(result)
        if weights is None or len(weights) != len(difficulty):
            return "check.04.3.shape", {"arguments": shown(arguments), "n": len(difficulty)}
        share = (step * stages // total_steps + 1) / stages
        size = round(share * len(difficulty))
        used, right = ({row for row, weight in enumerate(weights) if weight != 0},
                       set(sorted(range(len(difficulty)), key=difficulty.__getitem__)[:size]))
        if used != right:
            key = "check.04.3.places" if len(used) == size else "check.04.3.open"
            return key, {"arguments": shown(arguments), "result": len(used)}
        if any(abs(weights[row] - 1 / size) > 1e-5 for row in right):
            return "check.04.3.values", {"arguments": shown(arguments), "sum": f"{sum(weights):.3f}"}
    return None


def _row_of_numbers(result: object) -> list[float] | None:
    """A list, tuple, tensor or array of numbers as a list of floats; None for anything else."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, (list, tuple)) or any(isinstance(value, bool) or not isinstance(value, (int, float))
                                                    or not math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values]
