"""Seeded noise: damages clean texts as web crawls do, so that the cost of bad data can be measured.

The kinds imitate errors that are common in crawls: page text around the article (boilerplate), sentences
repeated by a broken template, bytes lost or read in the wrong encoding, machine-written keyword spam, and
words in random order. A filter can be tested, because the clean text is known. Lesson 04 uses it.
"""
from __future__ import annotations

import random
import re

from ..runtime import LANGUAGES, check_choice
from .filters import sentences

_BEFORE = {
    "en": ("Home | Products | News | Contact | Log in",
           "We value your privacy. Accept all cookies | Settings",
           "Subscribe to our newsletter and get 10% off!", "You are here: Home > Articles > Page 3",
           "Menu Search Cart (0)"),
    "ko": ("홈 | 제품 | 뉴스 | 고객센터 | 로그인", "쿠키를 사용합니다. 모두 허용 | 설정",
           "뉴스레터를 구독하고 10% 할인을 받으세요!", "현재 위치: 홈 > 게시판 > 3페이지",
           "메뉴 검색 장바구니(0)"),
}
_AFTER = {
    "en": ("Share | Tweet | Print | E-mail", "Related: 10 tricks you won't believe",
           "0 comments. Log in to reply.", "All rights reserved. Terms | Privacy | Imprint",
           "« Previous   1 2 3 4 5   Next »"),
    "ko": ("공유 | 인쇄 | 스크랩 | 신고", "관련 글: 절대 놓치면 안 될 10가지",
           "댓글 0개. 로그인 후 작성할 수 있습니다.", "무단 전재 및 재배포 금지. 이용약관 | 개인정보처리방침",
           "« 이전   1 2 3 4 5   다음 »"),
}
_SPAM = {
    "en": ("Buy cheap {word} online!", "Best {word} price, free shipping.",
           "{word} {other} {word} discount 90% off.", "Click here for {word} now!!!",
           "Top {other} {word} reviews, order today.", "Win free {other}, limited offer."),
    "ko": ("{word} 최저가 구매!", "{word} 무료 배송, 지금 신청.", "{word} {other} {word} 90% 할인 이벤트.",
           "{word} 여기를 클릭하세요!!!", "{other} {word} 추천 순위 후기.",
           "{other} 무료 증정, 선착순 마감."),
}


def add_noise(text: str, kind: str, lang: str, rng: random.Random) -> str:
    """Damage a text; the same `rng` state gives the same damage on every machine.

    Args:
        kind: "boilerplate" (page text before and after), "repetition" (half of the sentences, each three to
            five times), "encoding" (UTF-8 read as Windows-1252, or a tenth of the bytes lost), "spam" (the
            text replaced by as much spam with its keywords) or "shuffled" (its words in random order).

    Raises:
        ValueError: unknown kind or language, or an empty text.
    """
    check_choice("kind", kind, NOISE_KINDS)
    check_choice("lang", lang, LANGUAGES)
    if not text.strip():
        raise ValueError("text is empty; there is nothing to damage")
    return _DAMAGE[kind](text, lang, rng)


def _boilerplate(text: str, lang: str, rng: random.Random) -> str:
    return "\n".join([*rng.sample(_BEFORE[lang], 4), text, *rng.sample(_AFTER[lang], 4)])


def _repetition(text: str, lang: str, rng: random.Random) -> str:
    said = sentences(text)
    repeated = set(rng.sample(range(len(said)), (len(said) + 1) // 2))
    return " ".join(sentence for index, sentence in enumerate(said)
                    for _ in range(rng.randint(3, 5) if index in repeated else 1))


def _encoding(text: str, lang: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return bytes(byte for byte in text.encode() if rng.random() >= 0.1).decode(errors="replace")
    # plain ASCII survives a wrong encoding, so English first gets curly quotes and no-break spaces
    text = re.sub(" ", lambda _: rng.choice(" \u00a0"), text).replace("'", "’").replace('"', "”")
    # Windows-1252 leaves five bytes undefined; browsers then show the control character of that number
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


def _spam(text: str, lang: str, rng: random.Random) -> str:
    words = sorted(set(re.findall(r"\w{4,}" if lang == "en" else r"[가-힣]{2,}", text))) or [text.split()[0]]
    word = rng.choice(words)
    other = rng.choice(words)
    spam = ""
    while len(spam) < len(text):
        spam = f"{spam} {rng.choice(_SPAM[lang]).format(word=word, other=other)}".strip()
    return spam


def _shuffled(text: str, lang: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


_DAMAGE = {"boilerplate": _boilerplate, "repetition": _repetition, "encoding": _encoding, "spam": _spam,
           "shuffled": _shuffled}
NOISE_KINDS = tuple(_DAMAGE)
