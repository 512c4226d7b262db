"""Texts from a teacher: prompts by topic, answers checked, each accepted one written at once.

The phi models made this route popular (Gunasekar et al. 2023, arXiv 2306.11644). A teacher is anything with
`generate(messages) -> str`: a model in this process, or any server with OpenAI's chat interface (vLLM, llama.cpp, Ollama,
…). Answers fail: they refuse, repeat, stop in mid-sentence, so each is checked, a failed one is asked for anew, and an
interrupted run goes on where it stopped. Look up whether a model's licence lets you train on its answers.
"""
from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .filters import MAX_REPETITION, MIN_LENGTH, MIN_SHARE, language_share, length, normalise, repetition
from .loading import chat
from .records import read_appended
from .runtime import LANGUAGES, check_choice

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY_VARIABLE = "TEACHER_API_KEY"
_ASK = {
    "en": ("Explain {topic} to a beginner in one paragraph of about 80 words.",
           "Write a textbook paragraph of about 80 words on {topic}, with one concrete example.",
           "Why does {topic} matter? Answer in one paragraph of about 80 words.",
           "Write about 80 words on a common misunderstanding about {topic}, and set it right."),
    "ko": ("{topic}: 이 주제를 초보자에게 설명하는 200자 정도의 한 문단을 써 주세요.",
           "{topic}: 이 주제에 대해 구체적인 예가 하나 들어간 200자 정도의 교과서 문단을 써 주세요.",
           "{topic}: 이것이 왜 중요한지 200자 정도의 한 문단으로 설명해 주세요.",
           "{topic}: 이 주제에 대한 흔한 오해 하나와 올바른 설명을 200자 정도로 써 주세요."),
}
_META = re.compile(r"\bas an? (ai|artificial|large language|language model)|^(i'm|i am) sorry|\bi (cannot|can't|am unable)\b|"
                   r"^(sure|certainly|of course)[!,.]|^here('s| is| are)\b|AI (언어 )?모델로서|인공지능으로서|^죄송|"
                   r"답변(을 드릴|할) 수 없|^(네|물론)(입니다)?[,!.]|^알겠습니다", re.IGNORECASE)
_FINISHED = re.compile(r"""[.!?。]["'”’)\]」』]*$""")


class Teacher(Protocol):
    """Anything that answers messages [{"role": "user", "content": "…"}, …] with a text."""

    def generate(self, messages: list[dict[str, str]]) -> str: ...


class LocalTeacher:
    """A model in this process; it samples, and the same seed gives the same answers in the same order."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 0.7,
                 max_new_tokens: int = 256, seed: int = 0) -> None:
        self._model, self._tokenizer, self._seed = model, tokenizer, seed
        self._options = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_new_tokens}

    def generate(self, messages: list[dict[str, str]]) -> str:
        import torch

        self._seed += 1
        device = self._model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's own draws stay as they were
            torch.manual_seed(self._seed)
            return chat(self._model, self._tokenizer, messages, **self._options)


class ServerTeacher:
    """A model behind OpenAI's chat interface (POST …/chat/completions).

    The key goes to this server and nowhere else: never into an error, never along a redirect.

    Args:
        base_url: up to and including the version, such as "http://localhost:8000/v1".
        api_key: by default the environment variable TEACHER_API_KEY; none is fine for a server that asks for none.
        timeout: seconds until an answer must begin.
        retries: further tries if the server is busy (429), fails (5xx) or does not answer.
        wait: seconds before the first of them, doubled each time; a server's Retry-After counts instead, up to a minute.
    """

    def __init__(self, base_url: str, model: str, api_key: str | None = None, *, temperature: float = 0.7,
                 max_tokens: int = 512, timeout: float = 120, retries: int = 3, wait: float = 1) -> None:
        if not re.match(r"https?://[^/@]+(/|$)", base_url):
            raise ValueError("base_url must look like 'https://host/v1', without a password in it")
        self._key = (api_key or os.environ.get(KEY_VARIABLE) or "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ValueError("api_key holds characters that no key has, such as a space or a line break")  # not which key
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._options = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._timeout, self._retries, self._wait = timeout, retries, wait
        self._opener = urllib.request.build_opener(_NoRedirect)

    def generate(self, messages: list[dict[str, str]]) -> str:
        """The answer.

        Raises:
            PermissionError: the server rejects the key (401, 403).
            LookupError: no such model or address (404).
            ConnectionError: the server is out of reach, busy or failing, also after the retries.
            RuntimeError: it answers something else.
        """
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps({**self._options, "messages": messages}).encode()
        for attempt in range(self._retries + 1):
            pause = self._wait * 2**attempt
            try:
                request = urllib.request.Request(self._url, body, headers)
                with self._opener.open(request, timeout=self._timeout) as response:
                    return self._content(response.read())
            except urllib.error.HTTPError as error:
                problem = f"answers {error.code}: {self._redact(error.read(300).decode(errors='replace'))}"
                if error.code != 429 and error.code < 500:
                    kind = {401: PermissionError, 403: PermissionError, 404: LookupError}.get(error.code, RuntimeError)
                    raise kind(f"{self._url} {problem}") from None
                asked = error.headers.get("Retry-After", "")
                pause = min(60, int(asked)) if asked.isdigit() else pause
            except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
                problem = f"does not answer: {self._redact(str(error))}"
            if attempt < self._retries:
                time.sleep(pause)
        raise ConnectionError(f"{self._url} {problem} (after {self._retries + 1} tries)")

    def _content(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            shown = self._redact(data[:300].decode(errors="replace"))
            raise RuntimeError(f"{self._url} answers no chat completion: {shown}") from None
        return content or ""

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to wherever a redirect points."""

    def redirect_request(self, *args: object) -> None:
        return None


def explanation_prompt(topic: str, index: int, lang: str) -> list[dict[str, str]]:
    """Messages that ask for an explanation of the topic; four wordings take turns, so that the samples differ."""
    check_choice("lang", lang, LANGUAGES)
    return [{"role": "user", "content": _ASK[lang][index % len(_ASK[lang])].format(topic=topic)}]


def valid_explanation(text: str, lang: str) -> str | None:
    """None, or why the text is no usable explanation: "length", "repetition", "language", "meta" or "unfinished".

    "meta": it refuses, or talks about itself instead of the topic; "unfinished": it does not end with a sentence.
    Limits of the first three as in `filters.quality_filter`: words count in English, syllables in Korean.
    """
    text = text.strip()
    problems = {"length": length(text, lang) < MIN_LENGTH[lang], "repetition": repetition(text) > MAX_REPETITION,
                "language": language_share(text, lang) < MIN_SHARE[lang], "meta": _META.search(text) is not None,
                "unfinished": _FINISHED.search(text) is None}
    return next((name for name, found in problems.items() if found), None)


def synthesize(
    teacher: Teacher, topics: Sequence[str], *, samples_per_topic: int, path: str | Path, lang: str,
    validate: Callable[[str, str], str | None] = valid_explanation,
    prompt: Callable[[str, int, str], list[dict[str, str]]] = explanation_prompt, max_attempts: int = 4,
) -> Dataset:
    """Exactly `samples_per_topic` accepted answers for each topic: columns topic, text and attempts (how many it took).

    Each accepted answer is appended to the JSON Lines file `path` at once. What the file already holds counts, so a second
    call with the same arguments asks for what is missing, and for nothing when all is there.

    Args:
        validate: (text, lang) → None, or the reason to reject. An answer equal to an earlier one is rejected as "duplicate".
        prompt: (topic, index of the sample, lang) → messages.
        max_attempts: answers asked for until one sample passes; then the run goes on with the next topic.

    Raises:
        ValueError: no topics, a topic twice, a number below 1, or a file that is damaged in the middle.
        RuntimeError: some topics stayed short after `max_attempts`; says which, and why answers failed. What was accepted is
            in the file.
    """
    from datasets import Dataset
    from tqdm import tqdm

    _check(topics, samples_per_topic, max_attempts, lang)
    path = Path(path)
    done = [sample for sample in read_appended(path, ("topic", "text", "attempts", "lang")) if sample.pop("lang") == lang]
    seen = {normalise(sample["text"]) for sample in done}

    def problem(text: str) -> str | None:
        return validate(text, lang) or ("duplicate" if normalise(text) in seen else None)

    result, short, reasons = [], [], Counter()
    progress = tqdm(total=len(topics) * samples_per_topic, disable=None)
    with path.open("a", encoding="utf-8", newline="\n") as file, progress:
        for topic in topics:
            samples = [sample for sample in done if sample["topic"] == topic][:samples_per_topic]
            progress.update(len(samples))
            while len(samples) < samples_per_topic:
                answer = _accepted(teacher, prompt(topic, len(samples), lang), problem, max_attempts, reasons)
                if answer is None:
                    short.append(f"{topic} ({len(samples)} of {samples_per_topic})")
                    break
                seen.add(normalise(answer["text"]))
                samples.append({"topic": topic, **answer})
                file.write(json.dumps({"lang": lang, **samples[-1]}, ensure_ascii=False) + "\n")
                file.flush()
                progress.update()
            result += samples
    if short:
        raise RuntimeError(f"too few samples after {max_attempts} attempts each: {', '.join(short)}; rejected for "
                           f"{', '.join(f'{reason} ({count})' for reason, count in reasons.most_common())}. "
                           f"Accepted samples are in {path}; the same call goes on from there")
    return Dataset.from_list(result)


def _check(topics: Sequence[str], samples_per_topic: int, max_attempts: int, lang: str) -> None:
    check_choice("lang", lang, LANGUAGES)
    if isinstance(topics, str) or not topics or len(set(topics)) < len(topics):
        raise ValueError(f"topics is {topics!r}; it must be a list of at least one topic, each once")
    if samples_per_topic < 1 or max_attempts < 1:
        raise ValueError(f"samples_per_topic is {samples_per_topic} and max_attempts {max_attempts}; both must be at least 1")


def _accepted(
    teacher: Teacher, messages: list[dict[str, str]], problem: Callable[[str], str | None], max_attempts: int,
    reasons: Counter[str],
) -> dict[str, str | int] | None:
    """The first answer without a problem, with the number of attempts; None after too many. Counts the problems."""
    for attempt in range(1, max_attempts + 1):
        text = teacher.generate(messages).strip()
        reason = problem(text)
        if reason is None:
            return {"text": text, "attempts": attempt}
        reasons[reason] += 1
    return None
