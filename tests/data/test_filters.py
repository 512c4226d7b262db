"""Filters and duplicates: sentence ends in two languages, each stage, the funnel, planted duplicates."""
import random
import unicodedata

import pytest
from datasets import Dataset

from course_lib.data import filters, noise

GOOD = {
    "en": "A cache keeps the keys and values of every token that the model has read, so that a new token "
          "needs one pass only. It costs memory, e.g. 22.5 KiB a token, and that grows with the context. "
          "Long chats therefore fill it.",
    "ko": "캐시는 모델이 읽은 모든 토큰의 키와 값을 보관하므로 새 토큰은 한 번만 계산하면 됩니다. "
          "대신 메모리가 듭니다. 토큰 하나에 22.5KiB가 들고 문맥이 길어질수록 늘어납니다. "
          "그래서 긴 대화에서는 캐시가 가중치보다 커질 수 있습니다. 이를 줄이는 방법도 여러 가지가 있습니다.",
}


# --- sentences, length, repetition, script -----------------------------------------------------------------

@pytest.mark.parametrize("text, expected", [
    ("Pi is 3.14. It is irrational.", ["Pi is 3.14.", "It is irrational."]),
    ("Use a small model, e.g. a 135M one, i.e. SmolLM2. Why?",
     ["Use a small model, e.g. a 135M one, i.e. SmolLM2.", "Why?"]),
    ("Dr. Kim met J. Lee. They spoke.", ["Dr. Kim met J. Lee.", "They spoke."]),
    ("Dogs, cats, etc. live here. Birds, etc. Then more.",
     ["Dogs, cats, etc. live here.", "Birds, etc.", "Then more."]),
    ('He said "Stop." She did (at once).', ['He said "Stop."', "She did (at once)."]),
    ("1. First point\n2. Second point", ["1. First point", "2. Second point"]),
    ("The answer is 3. Then stop!", ["The answer is 3.", "Then stop!"]),
    ("Wait... what?! Yes.", ["Wait...", "what?!", "Yes."]),
    ("파이는 3.14입니다. 무리수입니까? 네, 그렇지요.",
     ["파이는 3.14입니다.", "무리수입니까?", "네, 그렇지요."]),
    ("띄어쓰기가 없습니다.그래도 나뉩니다.", ["띄어쓰기가 없습니다.", "그래도 나뉩니다."]),
    ("제1장.서론은 나뉘지 않는다.", ["제1장.서론은 나뉘지 않는다."]),
    ("no full stop", ["no full stop"]), ("", []), ("\n \n", [])])
def test_sentences(text, expected):
    assert filters.sentences(text) == expected


def test_sentences_lose_nothing():
    for text in GOOD.values():
        assert "".join(filters.sentences(text)).replace(" ", "") == text.replace(" ", "")


def test_length_is_words_or_syllables():
    assert filters.length("Two words, right?", "en") == 3
    assert filters.length("두 단어: KV 캐시 3개", "ko") == 6
    assert filters.length(unicodedata.normalize("NFD", "두 단어"), "ko") == 3


def test_repetition_counts_sentences_and_runs():
    assert filters.repetition("One thing. One  THING. Another one.") == pytest.approx(1 / 3)
    assert filters.repetition("abcdefghij" * 10) == pytest.approx(1 - 10 / 91)
    assert filters.repetition("") == filters.repetition("?") == 0
    assert all(filters.repetition(text) < 0.05 for text in GOOD.values())


def test_decimals_and_an_empty_tail_are_no_repeated_sentences():
    """Splitting at every full stop finds "3." and "g." twice, and an empty string after the last stop."""
    text = "It rose by 3.1 points. It fell by 3.2 points, e.g. here. One more, e.g. there."
    assert len(filters.sentences(text)) == 3
    assert filters.repetition(text) < 0.1


def test_language_is_the_share_of_letters():
    assert filters.language_share("abc 가나다 123!", "en") == 0.5
    assert filters.language_share("abc 가나다 123!", "ko") == 0.5
    assert filters.language_share("ab\ufffd\ufffd", "en") == 0.5
    assert filters.language_share("12 34", "en") == 0
    assert filters.language_share(unicodedata.normalize("NFD", "한글"), "ko") == 1
    # as documented: a script is no language
    assert filters.language_share("Das ist kein Englisch", "en") == 1


# --- the funnel --------------------------------------------------------------------------------------------

def rows(lang, *more):
    return Dataset.from_dict({"text": [GOOD[lang], *more],
                              "id": [f"row{row}" for row in range(len(more) + 1)]})


@pytest.mark.parametrize("lang, num_proc", [("en", None), ("ko", None), ("en", 2)])
def test_each_stage_finds_its_damage(lang, num_proc):
    other = "ko" if lang == "en" else "en"
    dataset = rows(lang, "Too short.", GOOD[lang] * 3, GOOD[lang] + GOOD[other], None)
    report = filters.quality_filter(dataset, lang=lang, num_proc=num_proc)
    assert report.kept["id"] == ["row0"]
    assert dict(zip(report.dropped["id"], report.dropped["reason"], strict=True)) == {
        "row1": "length", "row2": "repetition", "row3": "language", "row4": "length"}
    assert report.funnel == [("input", 5), ("length", 3), ("repetition", 2), ("language", 1)]
    assert report.kept.column_names == dataset.column_names


def test_kept_and_dropped_make_up_the_input_in_order():
    dataset = rows("en", "short", GOOD["en"] + " Indeed.", "tiny")
    report = filters.quality_filter(dataset, lang="en")
    assert report.kept["id"] == ["row0", "row2"] and report.dropped["id"] == ["row1", "row3"]


def test_limits_can_be_opened():
    dataset = rows("en", "short", GOOD["en"] * 3, GOOD["ko"])
    report = filters.quality_filter(dataset, lang="en", min_length=0, max_repetition=1, language=False)
    assert len(report.kept) == 4 and report.dropped["reason"] == []
    assert report.funnel == [("input", 4), ("length", 4), ("repetition", 4)]


def test_an_empty_dataset_passes():
    report = filters.quality_filter(rows("en").select([]), lang="en")
    assert len(report.kept) == len(report.dropped) == 0 and report.funnel[-1] == ("language", 0)


def test_another_column():
    dataset = rows("en").rename_column("text", "answer")
    assert len(filters.quality_filter(dataset, lang="en", column="answer").kept) == 1


@pytest.mark.parametrize("arguments, words", [
    ({"lang": "de"}, "lang is 'de'"),
    ({"lang": "en", "column": "body"}, "column is 'body'; it must be one of text, id"),
    ({"lang": "en", "max_perplexity": 50.0}, "max_perplexity needs a model and its tokenizer")])
def test_what_is_wrong_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        filters.quality_filter(rows("en"), **arguments)


# --- perplexity --------------------------------------------------------------------------------------------

def test_the_perplexity_stage_keeps_what_the_model_expects(real):
    """Words in random order pass the cheap filters; the real model is surprised."""
    shuffled = noise.add_noise(GOOD["en"], "shuffled", "en", random.Random(0))
    report = filters.quality_filter(rows("en", shuffled), lang="en", max_perplexity=100, model=real[0],
                                    tokenizer=real[1])
    assert report.kept["id"] == ["row0"] and report.dropped["reason"] == ["perplexity"]
    assert report.funnel[-2:] == [("language", 2), ("perplexity", 1)]


# --- the classifier ----------------------------------------------------------------------------------------

def sentences_about(words, lang):
    shape = {"en": "The {} of this model depends on its {} and on the data.",
             "ko": "이 모델의 {}은 {}와 데이터에 따라 달라집니다."}[lang]
    return [shape.format(one, other) for one in words for other in words if one != other]


@pytest.mark.parametrize("lang, words", [("en", ["size", "speed", "memory", "quality", "cost"]),
                                         ("ko", ["크기", "속도", "메모리", "품질", "비용"])])
def test_the_classifier_tells_spam_from_text_it_has_not_seen(lang, words):
    good = sentences_about(words, lang)
    bad = [noise.add_noise(text, "spam", lang, random.Random(text)) for text in good]
    classifier = filters.train_quality_classifier(good[::2], bad[::2])
    half = len(good) // 2
    dataset = Dataset.from_dict({"text": good[1::2] + bad[1::2], "is_bad": [False] * half + [True] * half})
    report = filters.quality_filter(dataset, lang=lang, min_length=0, max_repetition=1, classifier=classifier)
    assert not any(report.kept["is_bad"]) and all(report.dropped["is_bad"])
    assert set(report.dropped["reason"]) == {"classifier"}


def test_the_classifier_needs_both_sides():
    with pytest.raises(ValueError, match="good has 1 texts and bad has 0"):
        filters.train_quality_classifier(["a"], [])


# --- duplicates --------------------------------------------------------------------------------------------

def jaccard(one, other, size=5):
    """Counted apart from the package, on the normalised texts."""
    sets = [{text[start:start + size] for start in range(len(text) - size + 1)}
            for text in (one.lower(), other.lower())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def words(seed, count=60):
    rng = random.Random(seed)
    return ["".join(rng.choice("abcdefghij") for _ in range(5)) for _ in range(count)]


def test_planted_duplicates_are_found_and_nothing_else():
    texts = [" ".join(words(seed)) for seed in range(40)]
    for row in (3, 17):
        changed = words(row)
        changed[20] = "zzzzz"
        texts.append(" ".join(changed))  # rows 40 and 41
    texts.append(texts[5].upper() + " \n")  # row 42
    assert filters.near_duplicates(texts) == [[3, 40], [5, 42], [17, 41]]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_the_true_similarity_decides(threshold):
    """Ever more words replaced: exactly the pairs above the threshold, by a count that knows no hashing."""
    base = words(0, 100)
    for changes in range(0, 40, 3):
        other = ["zz" + word[2:] if place < changes else word for place, word in enumerate(base)]
        pair = [" ".join(base), " ".join(other)]
        found = filters.near_duplicates(pair, threshold=threshold) == [[0, 1]]
        if abs(jaccard(*pair) - threshold) > 0.1:  # nearer, hashing may miss a pair
            assert found == (jaccard(*pair) > threshold)
        elif found:
            assert jaccard(*pair) >= threshold


def test_groups_chain_and_keep_the_order():
    base = words(1, 40)
    second = list(base)
    third = list(base)
    second[5] = "yyyyy"
    third[5] = "yyyyy"
    for changed in (20, 25, 30):
        third[changed] = "zzzzz"
    texts = [" ".join(third), "something else altogether", " ".join(base), " ".join(second)]
    assert jaccard(texts[0], texts[2]) < 0.8 < min(jaccard(texts[0], texts[3]), jaccard(texts[2], texts[3]))
    assert filters.near_duplicates(texts, threshold=0.8) == [[0, 2, 3]]


def test_korean_duplicates_in_either_unicode_form():
    texts = [GOOD["ko"], unicodedata.normalize("NFD", GOOD["ko"]), GOOD["ko"].replace("새 토큰", "다음 토큰"),
             "다른 문장"]
    assert filters.near_duplicates(texts) == [[0, 1, 2]]


def test_short_and_empty_texts():
    assert filters.near_duplicates([]) == filters.near_duplicates(["one"]) == []
    assert filters.near_duplicates(["abc", "abd", "ABC", "", " "]) == [[0, 2], [3, 4]]
    assert filters.near_duplicates(["same", "same"], threshold=1) == [[0, 1]]


@pytest.mark.parametrize("threshold", [0, 1.2, -1])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        filters.near_duplicates(["a"], threshold=threshold)
