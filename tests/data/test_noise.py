"""Seeded damage: reproducible, in two languages, and of the kind it is called."""
import random
import re

import pytest

from course_lib.data import filters, noise

TEXT = {
    "en": "A tokenizer splits a text into tokens. It doesn't see letters. "
          "A token is about 3.5 characters of English long.",
    "ko": "토크나이저는 텍스트를 토큰으로 나눕니다. 글자를 하나씩 보지 않습니다. "
          "영어 토큰 하나는 약 3.5글자입니다.",
}
every_language = pytest.mark.parametrize("lang", TEXT)


def damaged(kind, lang, seed=0):
    return noise.add_noise(TEXT[lang], kind, lang, random.Random(seed))


@every_language
@pytest.mark.parametrize("kind", noise.NOISE_KINDS)
def test_the_same_seed_gives_the_same_damage(kind, lang):
    texts = [damaged(kind, lang, seed) for seed in range(10)]
    assert texts == [damaged(kind, lang, seed) for seed in range(10)]
    assert len(set(texts)) > 1 and TEXT[lang] not in texts


@every_language
def test_boilerplate_lies_around_the_whole_text(lang):
    lines = damaged("boilerplate", lang).split("\n")
    assert lines[4] == TEXT[lang] and len(set(lines)) == len(lines) == 9
    if lang == "ko":
        assert all(re.search("[가-힣]", line) for line in lines)


@every_language
def test_repetition_says_every_sentence_and_some_of_them_often(lang):
    parts = filters.sentences(damaged("repetition", lang))
    counts = {part: parts.count(part) for part in filters.sentences(TEXT[lang])}
    assert sum(counts.values()) == len(parts)
    assert sorted(count > 1 for count in counts.values()) == [False, True, True]
    assert max(counts.values()) <= 5 and min(counts.values()) == 1


def test_mojibake_is_utf8_read_as_windows_1252():
    """Python's own codec, where it has a character, says the same; and the damage can be undone."""
    kinds = {damaged("encoding", "ko", seed) for seed in range(20)}
    mojibake = [text for text in kinds if not re.search("[가-힣]", text)]
    assert mojibake
    for text in mojibake:
        raw = b"".join(bytes([ord(char)]) if ord(char) < 256 else char.encode("cp1252") for char in text)
        assert raw.decode("utf-8").replace("\u00a0", " ") == TEXT["ko"]


def test_lost_bytes_leave_holes():
    """A byte lost from a Korean syllable makes it undecodable; in English a letter is gone."""
    assert any("\ufffd" in damaged("encoding", "ko", seed) for seed in range(5))
    lost = [text for text in (damaged("encoding", "en", seed) for seed in range(20)) if text.isascii()]
    assert lost and all(0.75 < len(text) / len(TEXT["en"]) < 0.99 for text in lost)


def test_english_mojibake_hits_spaces_and_quotes():
    assert any("Â\u00a0" in text and "doesnâ€™t" in text
               for text in (damaged("encoding", "en", seed) for seed in range(20)))


@every_language
def test_spam_takes_words_of_the_text_and_its_length(lang):
    spam = damaged("spam", lang)
    words = re.findall(r"[a-z]{4,}" if lang == "en" else "[가-힣]{2,}", TEXT[lang])
    assert any(spam.count(word) > 2 for word in words)
    assert len(TEXT[lang]) <= len(spam) < len(TEXT[lang]) + 60


@every_language
def test_shuffling_keeps_the_words(lang):
    assert sorted(damaged("shuffled", lang).split()) == sorted(TEXT[lang].split())


@pytest.mark.parametrize("kind", noise.NOISE_KINDS)
def test_one_odd_character_is_survived(kind):
    assert isinstance(noise.add_noise("?", kind, "ko", random.Random(1)), str)


@pytest.mark.parametrize("arguments, words", [
    (("a text", "typos", "en"),
     "kind is 'typos'; it must be one of boilerplate, repetition, encoding, spam, shuffled"),
    (("a text", "spam", "fr"), "lang is 'fr'; it must be one of en, ko"),
    ((" \n", "spam", "en"), "text is empty")])
def test_what_is_wrong_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        noise.add_noise(*arguments, random.Random(0))
