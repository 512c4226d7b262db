"""Quality filters and duplicates: which texts are worth a training step, and why the others are not.

The filters go from cheap to dear, as crawl pipelines do (Penedo et al. 2024, FineWeb, arXiv 2406.17557, section 3): length,
repetition and script cost microseconds a text, perplexity a forward pass, a classifier needs examples. Each sees something
that the others miss, and none sees whether a text is true. What counts as a word or as the end of a sentence differs by
language: English is measured in words, Korean in Hangul syllables, because a Korean word carries its particles.
"""
from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .runtime import LANGUAGES, check_choice

if TYPE_CHECKING:
    from datasets import Dataset
    from sklearn.pipeline import Pipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_LENGTH = {"en": 30, "ko": 80}
MAX_REPETITION = 0.2
MIN_SHARE = {"en": 0.9, "ko": 0.7}
_SCRIPT = {"en": re.compile("[A-Za-z]"), "ko": re.compile("[가-힣ㄱ-ㆎ\u1100-\u11ff]")}

# an end of sentence stands before a space or the end of the line; after a Korean ending also before the next syllable
_END = re.compile(r"""[.!?…。]+["'”’)\]」』]*(?=\s|$)|(?<=[다요죠까])[.!?](?=[가-힣])""")
_ABBREVIATIONS = {"e.g", "i.e", "etc", "vs", "cf", "dr", "mr", "mrs", "ms", "prof", "fig", "eq", "al", "approx"}


@dataclass(frozen=True)
class FilterReport:
    """What `quality_filter` did.

    Attributes:
        kept: the rows that passed every stage, in their order.
        dropped: the others, with a column `reason`: the stage that dropped the row.
        funnel: (stage, rows left after it), first ("input", all rows).
    """

    kept: Dataset
    dropped: Dataset
    funnel: list[tuple[str, int]]


def sentences(text: str) -> list[str]:
    """The sentences of an English or Korean text, without empty ones.

    A full stop inside a number ("3.14"), after an abbreviation ("e.g."), after an initial ("J. Kim") or after the number
    that opens a line ("1. First") ends no sentence. Korean endings ("…다.", "…요?") do, also without a space after them.
    Built by hand in lesson 04.
    """
    found = []
    for line in text.split("\n"):
        start = 0
        for end in _END.finditer(line):
            if not _is_abbreviation(line[start:end.start()], end.group(), line[end.end():]):
                found.append(line[start:end.end()])
                start = end.end()
        found.append(line[start:])
    return [part for part in map(str.strip, found) if part]


def _is_abbreviation(before: str, mark: str, after: str) -> bool:
    last = re.search(r"[\w.]*$", before).group()
    if mark != ".":
        return False
    if last.lower() == "etc":  # it may well close a sentence
        return not after.lstrip()[:1].isupper()
    opens_the_line = last.isdigit() and not before[:-len(last)].strip()
    return last.lower() in _ABBREVIATIONS or re.fullmatch("[A-Z]", last) is not None or opens_the_line


def normalise(text: str) -> str:
    """The form in which texts are compared: Unicode NFKC, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _ngrams(text: str, size: int) -> list[str]:
    """The overlapping character n-grams; a shorter text is its own."""
    return [text[start:start + size] for start in range(max(1, len(text) - size + 1))]


def length(text: str, lang: str) -> int:
    """Words of an English text, Hangul syllables of a Korean one."""
    check_choice("lang", lang, LANGUAGES)
    return len(text.split()) if lang == "en" else len(re.findall("[가-힣]", unicodedata.normalize("NFC", text)))


def repetition(text: str) -> float:
    """Share of a text that repeats itself, from 0 to below 1: of its sentences or of its runs of ten characters, the larger.

    After the repetition filters of Rae et al. 2021 (Gopher, arXiv 2112.11446, appendix A), with characters in place of words.
    Built by hand in lesson 04.
    """
    parts, runs = [normalise(part) for part in sentences(text)], _ngrams(normalise(text), 10)
    return max(1 - len(set(some)) / len(some) for some in (parts or [""], runs))


def language_share(text: str, lang: str) -> float:
    """Share of the letters that belong to the language's script, from 0 to 1: A to Z, or Hangul.

    Undecodable bytes (U+FFFD) count as foreign letters. A script is no language: French or Indonesian pass as English, and
    so do English words in random order.
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
    """Send the rows through the filters, the cheap ones first; each stage sees what the one before it left.

    Args:
        column: the column that holds the text.
        min_length: words (en) or Hangul syllables (ko); by default 30 and 80. 0 lets every length pass.
        max_repetition: largest `repetition`. 1 lets everything pass.
        language: ask that 90 % (en) or 70 % (ko, which quotes English terms) of the letters are of the right script.
        max_perplexity: largest perplexity under `model` (then needed, with its `tokenizer`). None leaves the stage out.
        classifier: from `train_quality_classifier`; keeps what is more likely good than bad. None leaves the stage out.
        num_proc: processes for the first three stages.

    Raises:
        ValueError: unknown language, a missing column, or a perplexity limit without a model.
    """
    check_choice("lang", lang, LANGUAGES)
    check_choice("column", column, dataset.column_names)
    if max_perplexity is not None and (model is None or tokenizer is None):
        raise ValueError("max_perplexity needs a model and its tokenizer; pass both, or leave max_perplexity out")
    texts = [text or "" for text in dataset[column]]
    measured = dataset.select_columns(column).map(
        _measure, batched=True, num_proc=num_proc, fn_kwargs={"column": column, "lang": lang}, remove_columns=[column],
        load_from_cache_file=False).to_dict()
    shortest = MIN_LENGTH[lang] if min_length is None else min_length
    stages: list[tuple[str, Callable[[list[int]], list[bool]]]] = [
        ("length", lambda rows: [measured["length"][row] >= shortest for row in rows]),
        ("repetition", lambda rows: [measured["repetition"][row] <= max_repetition for row in rows])]
    if language:
        stages.append(("language", lambda rows: [measured["share"][row] >= MIN_SHARE[lang] for row in rows]))
    if max_perplexity is not None:
        stages.append(("perplexity", lambda rows: [
            value <= max_perplexity for value in perplexities(model, tokenizer, [texts[row] for row in rows])]))
    if classifier is not None:
        stages.append(("classifier", lambda rows: [
            good >= 0.5 for good in classifier.predict_proba([texts[row] for row in rows])[:, 1]]))
    return _funnel(dataset, stages)


def _measure(batch: dict[str, list], column: str, lang: str) -> dict[str, list]:
    texts = [text or "" for text in batch[column]]
    return {"length": [length(text, lang) for text in texts], "repetition": [repetition(text) for text in texts],
            "share": [language_share(text, lang) for text in texts]}


def _funnel(dataset: Dataset, stages: list[tuple[str, Callable[[list[int]], list[bool]]]]) -> FilterReport:
    from datasets import Value

    left, reasons, funnel = list(range(len(dataset))), {}, [("input", len(dataset))]
    for stage, passes in stages:
        flags = passes(left) if left else []
        reasons |= {row: stage for row, passed in zip(left, flags, strict=True) if not passed}
        left = [row for row in left if row not in reasons]
        funnel.append((stage, len(left)))
    gone = sorted(reasons)
    dropped = dataset.select(gone).add_column("reason", [reasons[row] for row in gone], feature=Value("string"))
    return FilterReport(dataset.select(left), dropped, funnel)


def perplexities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 512,
    batch_tokens: int = 512,
) -> list[float]:
    """exp(mean negative log-likelihood of a token, given those before it) of each text under the model.

    Only the first `max_length` tokens of a text count. A text of fewer than two tokens predicts nothing: infinity.
    Texts of like length share a forward pass of at most `batch_tokens` tokens, so that the logits stay small; a text
    that is longer has one for itself.
    """
    import torch
    from torch.nn.functional import cross_entropy

    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if len(texts) else []
    result = [math.inf] * len(ids)
    left = sorted((row for row in range(len(ids)) if len(ids[row]) > 1), key=lambda row: len(ids[row]))
    while left:
        count = max(1, batch_tokens // len(ids[left[-1]]))
        rows, left = left[-count:], left[:-count]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, padding_side="right", return_tensors="pt")
        batch = batch.to(model.device)
        with torch.inference_mode():
            logits = model(**batch, use_cache=False).logits
            for row, scores, tokens in zip(rows, logits, batch["input_ids"], strict=True):
                size = len(ids[row])  # the padding behind it is left out of the mean
                result[row] = cross_entropy(scores[:size - 1].float(), tokens[1:size]).exp().item()
    return result


def train_quality_classifier(good: Sequence[str], bad: Sequence[str]) -> Pipeline:
    """A classifier of texts: TF-IDF of runs of two to four characters, then logistic regression (scikit-learn).

    Characters work for both languages without a tokenizer. `classifier.predict_proba(texts)[:, 1]` is the probability of
    "good". It learns what its examples differ in: judge it on kinds of damage that it has not seen.

    Raises:
        ValueError: one side has no examples.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if not len(good) or not len(bad):
        raise ValueError(f"good has {len(good)} texts and bad has {len(bad)}; a classifier needs examples of both")
    classifier = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
                               LogisticRegression(C=10, max_iter=1000))
    return classifier.fit([*good, *bad], [1] * len(good) + [0] * len(bad))


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.7, ngram: int = 5, num_perm: int = 128) -> list[list[int]]:
    """Groups of rows that say nearly the same, each group and the list of groups in the order of the input.

    Two texts are near-duplicates if the sets of their character n-grams have a Jaccard similarity |A ∩ B| / |A ∪ B| of at
    least `threshold`; groups are chained (A like B, B like C). MinHash (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900)
    with locality-sensitive hashing finds candidates without comparing all pairs, and the true similarity decides.
    Whoever keeps the first row of each group keeps one of each. The signature part is built by hand in lesson 04.

    Args:
        threshold: from above 0 to 1; 1 finds texts with equal n-gram sets.
        num_perm: hash functions of a signature; the estimate's standard error is at most 1 / (2 √num_perm).

    Raises:
        ValueError: a threshold outside of (0, 1].
    """
    from datasketch import MinHash, MinHashLSH

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
    forms = [normalise(text) for text in texts]
    first: dict[bytes, int] = {}
    group = [first.setdefault(hashlib.blake2b(form.encode()).digest(), row) for row, form in enumerate(forms)]
    # a missed pair is lost, a false candidate is only looked at: weigh false negatives nine times
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=num_perm, weights=(0.1, 0.9))
    for row in first.values():
        shingles = set(_ngrams(forms[row], ngram))
        signature = MinHash(num_perm=num_perm, scheme="affine64")  # 32 bits, the default, miss ten times as many pairs
        signature.update_batch([shingle.encode() for shingle in shingles])
        for other in sorted(index.query(signature)):
            others = set(_ngrams(forms[other], ngram))
            if len(shingles & others) >= threshold * len(shingles | others):
                group[_root(group, row)] = _root(group, other)
        index.insert(row, signature)
    members: dict[int, list[int]] = {}
    for row in range(len(group)):
        members.setdefault(_root(group, row), []).append(row)
    return [rows for rows in members.values() if len(rows) > 1]


def _root(group: list[int], row: int) -> int:
    """The row that stands for the group of `row`: the one that points to itself."""
    while group[row] != row:
        row = group[row]
    return row
