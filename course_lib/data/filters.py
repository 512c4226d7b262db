"""Quality filters and near-duplicates: which texts are worth a training step, and why others are not.

The filters run from cheap to expensive, as in web crawl pipelines (Penedo et al. 2024, FineWeb, arXiv
2406.17557, section 3): length, repetition and script take microseconds per text, perplexity takes a forward
pass, and a classifier needs examples. Each detects errors that the others miss; none detects false claims.
Length counts English words, but Korean syllables, because a Korean word includes its particles.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..inference.perplexity import perplexities
from ..runtime import LANGUAGES, check_choice

if TYPE_CHECKING:
    from datasets import Dataset
    from sklearn.pipeline import Pipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_LENGTH = {"en": 30, "ko": 80}
MAX_REPETITION = 0.2
MIN_SHARE = {"en": 0.9, "ko": 0.7}
_SCRIPT = {"en": re.compile("[A-Za-z]"), "ko": re.compile("[가-힣ㄱ-ㆎ\u1100-\u11ff]")}

# a sentence ends before a space or the end of the line; after a Korean ending also before the next syllable
_END = re.compile(r"""[.!?…。]+["'”’)\]」』]*(?=\s|$)|(?<=[다요죠까])[.!?](?=[가-힣])""")
_ABBREVIATIONS = set("e.g i.e etc vs cf dr mr mrs ms prof fig eq al approx".split())


@dataclass(frozen=True)
class FilterReport:
    """The result of `quality_filter`.

    Attributes:
        kept: the rows that passed every stage, in their original order.
        dropped: the other rows; the column `reason` names the stage that dropped the row.
        funnel: (stage, rows left after it); the first entry is ("input", all rows).
    """

    kept: Dataset
    dropped: Dataset
    funnel: list[tuple[str, int]]


def sentences(text: str) -> list[str]:
    """Split an English or Korean text into its sentences, without empty ones.

    A full stop in a number ("3.14"), after an abbreviation ("e.g."), after an initial ("J. Kim") or after the
    number that opens a line ("1. First") does not end a sentence. A Korean ending ("…다.", "…요?") does, with
    or without a space after it. Built by hand in lesson 04.
    """
    pieces = []
    for line in text.split("\n"):
        start = 0
        for end in _END.finditer(line):
            if not _is_abbreviation(line[start:end.start()], end.group(), line[end.end():]):
                pieces.append(line[start:end.end()])
                start = end.end()
        pieces.append(line[start:])
    return [piece for piece in map(str.strip, pieces) if piece]


def _is_abbreviation(before: str, mark: str, after: str) -> bool:
    last = re.search(r"[\w.]*$", before).group()
    if mark != ".":
        return False
    if last.lower() == "etc":  # it may well close a sentence
        return not after.lstrip()[:1].isupper()
    opens_the_line = last.isdigit() and not before[:-len(last)].strip()
    return last.lower() in _ABBREVIATIONS or re.fullmatch("[A-Z]", last) is not None or opens_the_line


def normalise(text: str) -> str:
    """The form in which texts are compared: Unicode NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _ngrams(text: str, size: int) -> list[str]:
    """All overlapping character n-grams; a text shorter than `size` is its only n-gram."""
    return [text[start:start + size] for start in range(max(1, len(text) - size + 1))]


def length(text: str, lang: str) -> int:
    """Length of a text: words in English, Hangul syllables in Korean."""
    check_choice("lang", lang, LANGUAGES)
    if lang == "en":
        return len(text.split())
    return len(re.findall("[가-힣]", unicodedata.normalize("NFC", text)))


def repetition(text: str) -> float:
    """Share of a text that repeats an earlier part of it, from 0 to below 1.

    It is the larger of two shares: repeated sentences, and repeated runs of ten characters. After Rae et al.
    2021 (Gopher, arXiv 2112.11446, appendix A), with characters for words. Built by hand in lesson 04.
    """
    units = [normalise(sentence) for sentence in sentences(text)] or [""]
    runs = _ngrams(normalise(text), 10)
    return max(1 - len(set(units)) / len(units), 1 - len(set(runs)) / len(runs))


def language_share(text: str, lang: str) -> float:
    """Share of the letters in the language's script (A to Z, or Hangul), from 0 to 1.

    Undecodable bytes (U+FFFD) count as foreign letters. The script does not identify the language: French
    text passes as English, and so do English words in random order.
    """
    check_choice("lang", lang, LANGUAGES)
    letters = [letter for letter in text if letter.isalpha() or letter == "\ufffd"]
    return sum(_SCRIPT[lang].match(letter) is not None for letter in letters) / max(1, len(letters))


def quality_filter(
    dataset: Dataset, *, lang: str, column: str = "text", min_length: int | None = None,
    max_repetition: float = MAX_REPETITION, language: bool = True, max_perplexity: float | None = None,
    model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None,
    classifier: Pipeline | None = None, num_proc: int | None = None,
) -> FilterReport:
    """Drop rows of low quality in stages, cheap ones first; each stage checks the rows that are left.

    Args:
        min_length: words (en) or Hangul syllables (ko), by default 30 and 80. 0 accepts every length.
        max_repetition: largest `repetition`. 1 accepts every text.
        language: require 90 % (en) or 70 % (ko, which quotes English terms) of letters in its script.
        max_perplexity: largest perplexity under `model`, with its `tokenizer`. None skips the stage.
        classifier: from `train_quality_classifier`; keeps texts with P(good) ≥ 0.5. None skips the stage.
        num_proc: processes for the first three stages.

    Raises:
        ValueError: unknown language, missing column, or max_perplexity without a model and its tokenizer.
    """
    check_choice("lang", lang, LANGUAGES)
    check_choice("column", column, dataset.column_names)
    if max_perplexity is not None and (model is None or tokenizer is None):
        raise ValueError("max_perplexity needs a model and its tokenizer; pass both, or leave it out")
    shortest = MIN_LENGTH[lang] if min_length is None else min_length
    texts = [text or "" for text in dataset[column]]
    figures = dataset.select_columns(column).map(
        _measure, batched=True, num_proc=num_proc, fn_kwargs={"column": column, "lang": lang},
        remove_columns=[column], load_from_cache_file=False).to_dict()
    # each stage: the rows that are left → for each of them, whether it passes
    stages: dict[str, Callable[[list[int]], list[bool]]] = {
        "length": lambda rows: [figures["length"][row] >= shortest for row in rows],
        "repetition": lambda rows: [figures["repetition"][row] <= max_repetition for row in rows]}
    if language:
        stages["language"] = lambda rows: [figures["share"][row] >= MIN_SHARE[lang] for row in rows]
    if max_perplexity is not None:
        stages["perplexity"] = lambda rows: [
            value <= max_perplexity for value in perplexities(model, tokenizer, [texts[row] for row in rows])]
    if classifier is not None:
        stages["classifier"] = lambda rows: [
            good >= 0.5 for good in classifier.predict_proba([texts[row] for row in rows])[:, 1]]
    return _funnel(dataset, stages)


def _measure(batch: dict[str, list], column: str, lang: str) -> dict[str, list]:
    texts = [text or "" for text in batch[column]]
    return {"length": [length(text, lang) for text in texts],
            "repetition": [repetition(text) for text in texts],
            "share": [language_share(text, lang) for text in texts]}


def _funnel(dataset: Dataset, stages: dict[str, Callable[[list[int]], list[bool]]]) -> FilterReport:
    from datasets import Value

    left = list(range(len(dataset)))
    reasons: dict[int, str] = {}
    funnel = [("input", len(dataset))]
    for stage, passes in stages.items():
        flags = passes(left) if left else []
        reasons |= {row: stage for row, passed in zip(left, flags, strict=True) if not passed}
        left = [row for row in left if row not in reasons]
        funnel.append((stage, len(left)))
    gone = dict(sorted(reasons.items()))
    dropped = dataset.select(gone).add_column("reason", list(gone.values()), feature=Value("string"))
    return FilterReport(dataset.select(left), dropped, funnel)


def train_quality_classifier(good: Sequence[str], bad: Sequence[str]) -> Pipeline:
    """Train a classifier of texts on good and bad examples (scikit-learn).

    It applies logistic regression to the TF-IDF values of runs of two to four characters, which need no
    tokenizer in either language. `classifier.predict_proba(texts)[:, 1]` is the probability of "good". It
    learns what distinguishes its examples, so test it on kinds of damage that it was not trained on.

    Raises:
        ValueError: good or bad is empty.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if not len(good) or not len(bad):
        raise ValueError(f"good has {len(good)} texts and bad has {len(bad)}; give examples of both")
    classifier = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
                               LogisticRegression(C=10, max_iter=1000))
    return classifier.fit([*good, *bad], [1] * len(good) + [0] * len(bad))


def near_duplicates(
    texts: Sequence[str], *, threshold: float = 0.7, ngram: int = 5, num_perm: int = 128,
) -> list[list[int]]:
    """Find groups of near-duplicates; rows and groups are in the order of the input.

    Two texts are near-duplicates if the sets of their character n-grams have a Jaccard similarity |A ∩ B| /
    |A ∪ B| of at least `threshold`. Groups are chained: A like B and B like C gives one group. MinHash
    (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900) with locality-sensitive hashing proposes
    candidates without comparing all pairs, and their exact similarity decides. To remove duplicates, keep the
    first row of each group. The signatures are built by hand in lesson 04.

    Args:
        threshold: above 0 and at most 1; 1 groups texts with equal n-gram sets.
        num_perm: hash functions per signature; the estimate's standard error is at most 1 / (2 √num_perm).

    Raises:
        ValueError: threshold is outside of (0, 1].
    """
    from datasketch import MinHash, MinHashLSH
    from scipy.cluster.hierarchy import DisjointSet

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
    forms = [normalise(text) for text in texts]
    groups = DisjointSet(range(len(forms)))
    first: dict[str, int] = {}  # equal texts need no hashing
    for row, form in enumerate(forms):
        groups.merge(first.setdefault(form, row), row)
    # a missed pair is lost, a false candidate costs one comparison: false negatives weigh nine times as much
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=num_perm, weights=(0.1, 0.9))
    for form, row in first.items():
        grams = set(_ngrams(form, ngram))
        signature = MinHash(num_perm=num_perm, scheme="affine64")
        signature.update_batch([gram.encode() for gram in grams])
        for other in index.query(signature):
            others = set(_ngrams(forms[other], ngram))  # rebuilt: all sets together take much memory
            if len(grams & others) >= threshold * len(grams | others):
                groups.merge(row, other)
        index.insert(row, signature)
    return sorted(sorted(group) for group in groups.subsets() if len(group) > 1)
