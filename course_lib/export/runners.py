"""A common interface to models that run outside of PyTorch, so that they can be compared.

A runner keeps its model loaded until `close` or the end of a `with` block, applies the chat template, decodes
greedily and measures times in seconds.
"""
from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from .. import loading

Prompt = str | list[dict[str, str]] | list[int]


@dataclass(frozen=True)
class Answer:
    """The answer of a model to a prompt, with its speed.

    Attributes:
        tokens: token ids, without the one that ended the answer.
        prompt_tokens: length of the prompt, chat template included.
        first_token: seconds until the first token, which include reading the prompt.
        tokens_per_second: rate after the first token; 0.0 if there is only one.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    first_token: float
    tokens_per_second: float


class Runner(ABC):
    """A loaded model outside of PyTorch."""

    @abstractmethod
    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """Generate the greedy answer.

        Args:
            prompt: the user's message, a list of messages [{"role": "user", "content": "…"}, …], or token
                ids, which are used unchanged.
            stop: stop at the end of the model's turn; False always generates max_new_tokens, for timings.

        Raises:
            ValueError: an empty prompt, a prompt too long for the context, or max_new_tokens below 1.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory; the model cannot be used afterwards."""

    def chat(self, prompt: Prompt, *, max_new_tokens: int = 64) -> str:
        """The text of the greedy answer."""
        return self.generate(prompt, max_new_tokens=max_new_tokens).text

    def tokens(self, prompt: Prompt, *, max_new_tokens: int = 64) -> list[int]:
        """The token ids of the greedy answer."""
        return self.generate(prompt, max_new_tokens=max_new_tokens).tokens

    def timed(self, prompt: str, new_tokens: int) -> list[float]:
        """Times in seconds at which the call began (0.0) and each new token was ready, for `cl.benchmark`.

        Tokens after the first are spaced evenly, since runtimes report only their average rate.
        """
        answer = self.generate(prompt, max_new_tokens=new_tokens, stop=False)
        step = 1 / answer.tokens_per_second if answer.tokens_per_second else 0.0
        return [0.0, *(answer.first_token + index * step for index in range(len(answer.tokens)))]

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_prompt(prompt: Prompt, max_new_tokens: int) -> tuple[list[dict[str, str]] | None, list[int] | None]:
    """Return (messages, None) or (None, token ids); invalid arguments raise a ValueError."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if not isinstance(prompt, str) and prompt and all(isinstance(token, int) for token in prompt):
        return None, list(prompt)
    return loading.read_messages(prompt), None


def check_room(prompt_tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise a ValueError unless prompt and answer fit into the context."""
    if prompt_tokens + max_new_tokens > context:
        raise ValueError(f"the prompt has {prompt_tokens} tokens, and with max_new_tokens={max_new_tokens} "
                         f"it exceeds the context of {context}; shorten it, or load the model with a larger "
                         "context")


def timed_answer(
    stream: Iterator[int], decode: Callable[[list[int]], str], prompt_tokens: int, *, max_new_tokens: int,
    ends: Collection[int],
) -> Answer:
    """Collect and time up to `max_new_tokens` tokens, or those before the first of `ends`.

    The stream must read the prompt when the first token is requested, so that first_token includes it.
    """
    tokens: list[int] = []
    times: list[float] = []
    started = time.perf_counter()
    for token in islice(stream, max_new_tokens):
        tokens.append(token)
        times.append(time.perf_counter() - started)
        if token in ends:
            break
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    if tokens[-1] in ends:
        tokens.pop()
    return Answer(decode(tokens).strip(), tokens, prompt_tokens, times[0], rate)


def agreement(answers: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Share of equal tokens, up to and including each answer's first difference from its reference.

    Both sides decode freely from the same prompts. After the first difference they continue different
    texts, so later tokens are not compared. An answer that ends early counts as one difference.

    Raises:
        ValueError: the numbers of answers and references differ, or a reference has no token.
    """
    if len(answers) != len(references) or not all(references):
        raise ValueError(f"there are {len(answers)} answers and {len(references)} references; give one "
                         "answer for each reference, and no reference without a token")
    equal = 0
    differences = 0
    for answer, reference in zip(answers, references, strict=True):
        pairs = zip(answer, reference, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        equal += same
        differences += same < len(reference)
    return equal / (equal + differences)
