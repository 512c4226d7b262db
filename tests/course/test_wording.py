"""The text of the notebooks is in their language, and the Korean polite throughout."""
from __future__ import annotations

import re

import pytest

from tests.course.reading import EVERY, every_notebook, hangul_and_latin, language, prose, texts


def reads_as(text: str) -> str | None:
    """The language of a text cell, or None where there are too few words to tell."""
    hangul, latin = hangul_and_latin(text)
    if latin > 60 and hangul < 0.3 * latin:
        return "en"
    return "ko" if hangul > 60 and hangul > 0.3 * latin else None


QUOTED = re.compile(r"“[^”]*”|\"[^\"\n]*\"|‘[^’]*’|「[^」]*」")
PLAIN = r"\w*[가-힣](?<!니)다"  # 이다, 한다, 했다, …; 합니다 and 입니다 end in 니다
# a question may end in 까요
# a question may end in 까요
CASUAL = r"\w*(?:해|돼|예|에|아|어|여|려|세|네|군|지|나|봐|와|워|져|게|래|데|거든)요|\w*죠"
CLOSED = re.compile(rf"({PLAIN}|{CASUAL})(?=[.!?…]|[*_]*\s*$)", re.M)


def wrong_endings(text: str) -> list[str]:
    """Words that end a sentence in a style other than 합니다체, outside quotation marks."""
    return [match.group() for match in CLOSED.finditer(QUOTED.sub(" ", prose(text)))]


@pytest.mark.parametrize("text, found", [
    ("모델을 불러옵니다. 크기를 비교하십시오. 어디입니까? 어떻게 될까요?", []),
    ("크기를 비교한다. 되었다.", ["비교한다", "되었다"]),
    ("- 작은 모델이다\n", ["모델이다"]),
    ("**중요합니다.** 이것이 **답이다**", ["답이다"]),
    ("같이 해요. 이렇게 돼요! 해볼게요. 쉽죠?", ["해요", "돼요", "해볼게요", "쉽죠"]),
    ("> \"7B는 14 GB를 차지한다.\" 사실은 더 큽니다.", []),
    ("“작은 모델이면 충분하다.”라고 말합니다. `이다.` 뒤에 옵니다.", []),
    ("온도는 필요할 때만 씁니다(중요. 필요.)", []),
])
def test_wrong_endings(text, found):
    assert wrong_endings(text) == found


def test_reads_as():
    english = "These are plain English words about models. " * 3
    korean = "작은 모델을 직접 불러와 살펴봅니다. " * 6
    assert (reads_as(english), reads_as(korean), reads_as("**MMLU**")) == ("en", "ko", None)
    assert reads_as(korean + "`AutoModelForCausalLM.from_pretrained` [x](https://huggingface.co)") == "ko"


@every_notebook
def test_text_is_in_the_language_of_the_notebook(name):
    assert [cell.id for cell in texts(name) if reads_as(cell.source) not in (language(name), None)] == []


@pytest.mark.parametrize("name", [name for name in EVERY if language(name) == "ko"])
def test_korean_is_polite_throughout(name):
    found = {cell.id: wrong_endings(cell.source) for cell in texts(name)}
    assert {cell_id: words for cell_id, words in found.items() if words} == {}


@pytest.mark.parametrize("name", [name for name in EVERY if language(name) == "ko"])
def test_emphasis_really_ends_in_korean(name):
    """`*한국어(English)*은` is no emphasis: after a bracket the closing star must not touch a letter."""
    broken = {cell.id: re.findall(r"\S*[^\w\s*]\*{1,2}(?=\w)\S*", cell.source) for cell in texts(name)}
    assert {cell_id: words for cell_id, words in broken.items() if words} == {}
