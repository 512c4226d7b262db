"""Synthetic texts from a teacher model: prompts by topic, answers checked and saved one by one.

The phi models made this method popular (Gunasekar et al. 2023, arXiv 2306.11644). A teacher is any object
with `generate(messages) -> str`: a model in this process, or a server with OpenAI's chat interface (vLLM,
llama.cpp, Ollama, …). Some answers refuse, repeat themselves or stop in mid-sentence, so each is checked, and
a rejected one is requested again. Check whether a model's licence lets you train on its answers.
"""
from __future__ import annotations

import itertools
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading import chat
from ..runtime import LANGUAGES, check_choice, progress
from .filters import MAX_REPETITION, MIN_LENGTH, MIN_SHARE, language_share, length, normalise, repetition
from .records import read_appended

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
_META = re.compile(
    r"\bas an? (ai|artificial|large language|language model)|\bi (cannot|can't|am unable)\b|"
    r"^(i'm|i am) sorry|^(sure|certainly|of course)[!,.]|^here('s| is| are)\b|AI (언어 )?모델로서|"
    r"인공지능으로서|^죄송|답변(을 드릴|할) 수 없|^(네|물론)(입니다)?[,!.]|^알겠습니다", re.IGNORECASE)
_FINISHED = re.compile(r"""[.!?。]["'”’)\]」』]*$""")


class LocalTeacher:
    """A model in this process that samples; a seed gives the same answers in the same order."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 0.7,
        max_new_tokens: int = 256, seed: int = 0,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._seed = seed
        self._options = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_new_tokens}

    def generate(self, messages: list[dict[str, str]]) -> str:
        """The answer to messages [{"role": "user", "content": "…"}, …]."""
        import torch

        self._seed += 1
        device = self._model.device
        # the caller's random state stays unchanged
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed)
            return chat(self._model, self._tokenizer, messages, **self._options)


class ServerTeacher:
    """A model behind OpenAI's chat interface (POST …/chat/completions).

    The API key is sent to this server only, never to the target of a redirect, and appears in no error.

    Args:
        base_url: up to and including the version, such as "http://localhost:8000/v1".
        api_key: by default the environment variable TEACHER_API_KEY; may be empty if the server needs none.
        timeout: seconds until an answer must begin.
        retries: further tries if the server is busy (429), fails (5xx) or does not answer.
        wait: seconds before the first retry, doubled each time; Retry-After takes precedence, up to a minute.
    """

    def __init__(
        self, base_url: str, model: str, api_key: str | None = None, *, temperature: float = 0.7,
        max_tokens: int = 512, timeout: float = 120, retries: int = 3, wait: float = 1,
    ) -> None:
        if not re.match(r"https?://[^/@]+(/|$)", base_url):
            raise ValueError("base_url must look like 'https://host/v1', without a password in it")
        self._key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # the error must not show the key
            raise ValueError("api_key holds characters that no key has, such as a space or a line break")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._options = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._timeout = timeout
        self._retries = retries
        self._wait = wait

    def generate(self, messages: list[dict[str, str]]) -> str:
        """The answer to messages [{"role": "user", "content": "…"}, …].

        Raises:
            PermissionError: the server rejects the key (401, 403).
            LookupError: there is no such model or address (404).
            ConnectionError: the server is unreachable, busy or failing, even after the retries.
            RuntimeError: the server's answer is another error or no chat completion.
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
                problem = f"answers {error.code}: {self._redact(error.read(300))}"
                if error.code != 429 and error.code < 500:
                    kinds = {401: PermissionError, 403: PermissionError, 404: LookupError}
                    raise kinds.get(error.code, RuntimeError)(f"{self._url} {problem}") from None
                asked = error.headers.get("Retry-After", "")
                pause = min(60, int(asked)) if asked.isdigit() else pause
            except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
                problem = f"does not answer: {self._redact(str(error).encode())}"
            if attempt < self._retries:
                time.sleep(pause)
        raise ConnectionError(f"{self._url} {problem} (after {self._retries + 1} tries)")

    def _content(self, answer: bytes) -> str:
        try:
            return json.loads(answer)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError):
            problem = f"answers no chat completion: {self._redact(answer[:300])}"
            raise RuntimeError(f"{self._url} {problem}") from None

    def _redact(self, answer: bytes) -> str:
        text = answer.decode(errors="replace")
        return text.replace(self._key, "***") if self._key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because urllib would send the API key to their target."""

    def redirect_request(self, *args: object) -> None:
        return None


def explanation_prompt(topic: str, index: int, lang: str) -> list[dict[str, str]]:
    """Messages that ask for an explanation of the topic; `index` selects one of four wordings."""
    check_choice("lang", lang, LANGUAGES)
    return [{"role": "user", "content": _ASK[lang][index % len(_ASK[lang])].format(topic=topic)}]


def valid_explanation(text: str, lang: str) -> str | None:
    """None for a usable text, or the reason to reject it.

    "length", "repetition", "language": the default limits of `cl.data.quality_filter`. "meta": a refusal, or
    a text about the model itself. "unfinished": the last sentence has no end.
    """
    text = text.strip()
    problems = {"length": length(text, lang) < MIN_LENGTH[lang],
                "repetition": repetition(text) > MAX_REPETITION,
                "language": language_share(text, lang) < MIN_SHARE[lang],
                "meta": _META.search(text) is not None,
                "unfinished": _FINISHED.search(text) is None}
    return next((name for name, is_there in problems.items() if is_there), None)


def synthesize(
    teacher: LocalTeacher | ServerTeacher, topics: Sequence[str], *, samples_per_topic: int, path: str | Path,
    lang: str, validate: Callable[[str, str], str | None] = valid_explanation,
    prompt: Callable[[str, int, str], list[dict[str, str]]] = explanation_prompt, max_attempts: int = 4,
) -> Dataset:
    """Ask a teacher until each topic has exactly `samples_per_topic` accepted answers.

    The columns are topic, text and attempts (answers that the sample took). Each accepted answer is appended
    to the JSON Lines file `path` at once; the same call again asks only for missing samples.

    Args:
        teacher: any object with `generate(messages) -> str`.
        validate: (text, lang) → None, or the reason to reject. A repeated answer is rejected as "duplicate".
        prompt: (topic, index of the sample, lang) → messages.
        max_attempts: answers per sample; if all are rejected, the run continues with the next topic.

    Raises:
        ValueError: no topics, a topic twice, a number below 1, or a file that is damaged in the middle.
        RuntimeError: some topics stayed short; the message says why. `path` keeps the accepted answers.
    """
    from datasets import Dataset

    check_choice("lang", lang, LANGUAGES)
    if isinstance(topics, str) or not topics or len(set(topics)) < len(topics):
        raise ValueError(f"topics is {topics!r}; it must be a list of at least one topic, each once")
    if samples_per_topic < 1 or max_attempts < 1:
        raise ValueError(f"samples_per_topic is {samples_per_topic} and max_attempts {max_attempts}; "
                         "both must be at least 1")
    path = Path(path)
    accepted: dict[str, list[dict]] = defaultdict(list)
    for sample in read_appended(path, ("topic", "text", "attempts", "lang")):
        if sample.pop("lang") == lang:
            accepted[sample["topic"]].append(sample)
    known = {normalise(sample["text"]) for samples in accepted.values() for sample in samples}
    short: list[str] = []
    reasons: Counter[str] = Counter()
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for topic, index in progress(list(itertools.product(topics, range(samples_per_topic)))):
            if index < len(accepted[topic]) or topic in short:
                continue
            messages = prompt(topic, index, lang)
            for attempts in range(1, max_attempts + 1):
                text = teacher.generate(messages).strip()
                reason = validate(text, lang) or ("duplicate" if normalise(text) in known else None)
                if reason is None:
                    known.add(normalise(text))
                    accepted[topic].append({"topic": topic, "text": text, "attempts": attempts})
                    file.write(json.dumps({"lang": lang, **accepted[topic][-1]}, ensure_ascii=False) + "\n")
                    file.flush()
                    break
                reasons[reason] += 1
            else:
                short.append(topic)
    if short:
        missing = ", ".join(f"{topic} ({len(accepted[topic])} of {samples_per_topic})" for topic in short)
        why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        raise RuntimeError(f"too few samples after {max_attempts} attempts each: {missing}; rejected for "
                           f"{why}; what was accepted is in {path}, and the same call goes on from there")
    return Dataset.from_list([sample for topic in topics for sample in accepted[topic][:samples_per_topic]])
