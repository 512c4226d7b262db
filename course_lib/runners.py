"""Models that run outside of PyTorch, behind one small interface, so that they can be compared.

A runner keeps its model loaded until `close` (or the end of a `with` block), applies the model's chat template, decodes
greedily, and says how long the prompt and each token took.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from . import loading

Prompt = str | list[dict[str, str]] | list[int]


@dataclass(frozen=True)
class Answer:
    """What a runner made of a prompt.

    Attributes:
        text: the answer without special tokens.
        tokens: its ids, without the one that ended it.
        prompt_tokens: length of the prompt, chat template included.
        first_token: seconds until the first token, reading the prompt included.
        tokens_per_second: of the tokens after the first; 0.0 where there is none.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    first_token: float
    tokens_per_second: float


class Runner(ABC):
    """A loaded model."""

    @abstractmethod
    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """The greedy answer.

        Args:
            prompt: the user's words, messages [{"role": "user", "content": "…"}, …], or token ids that are taken as they are.
            stop: at the end of the model's turn; False goes on until max_new_tokens, for timings.

        Raises:
            ValueError: an empty prompt, one that leaves no room in the context, or max_new_tokens below 1.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory; further calls are errors."""

    def chat(self, prompt: Prompt, *, max_new_tokens: int = 64) -> str:
        """The text of the greedy answer."""
        return self.generate(prompt, max_new_tokens=max_new_tokens).text

    def tokens(self, prompt: Prompt, *, max_new_tokens: int = 64) -> list[int]:
        """The ids of the greedy answer."""
        return self.generate(prompt, max_new_tokens=max_new_tokens).tokens

    def timed(self, prompt: str, new_tokens: int) -> list[float]:
        """Seconds from the start at which the call began and each new token was ready (`decode.Timed`).

        From the time to the first token and the rate after it: runtimes do not tell each token's time.
        """
        answer = self.generate(prompt, max_new_tokens=new_tokens, stop=False)
        return [0.0, *(answer.first_token + index / answer.tokens_per_second for index in range(len(answer.tokens)))]

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_prompt(prompt: Prompt, max_new_tokens: int) -> tuple[list[dict[str, str]] | None, list[int] | None]:
    """(messages, None) or (None, token ids), checked.

    Raises:
        ValueError: an empty prompt, a wrong role, or max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if not isinstance(prompt, str) and prompt and all(isinstance(one, int) for one in prompt):
        return None, list(prompt)
    return loading.read_messages(prompt), None


def check_room(prompt_tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise a ValueError unless prompt and answer fit into the context."""
    if prompt_tokens + max_new_tokens > context:
        raise ValueError(f"the prompt has {prompt_tokens} tokens, and with max_new_tokens={max_new_tokens} it exceeds the "
                         f"context of {context}; shorten it, or load the model with a larger context")


def agreement(answers: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Share of tokens that are equal, position by position, up to and including the first difference of each answer.

    Both sides decode freely from the same prompts. What follows a first difference continues two different texts and is
    not compared: neither a coincidence there counts as equal, nor the rest as wrong. An answer that ends early differs
    where the reference goes on.

    Raises:
        ValueError: the numbers of answers and references differ, or there is no token to compare.
    """
    if len(answers) != len(references) or not all(references):
        raise ValueError(f"there are {len(answers)} answers and {len(references)} references; give one answer for each "
                         "reference, and no reference without a token")
    equal = compared = 0
    for answer, reference in zip(answers, references, strict=True):
        first = next((place for place, token in enumerate(reference) if list(answer[place:place + 1]) != [token]), None)
        equal += len(reference) if first is None else first
        compared += len(reference) if first is None else first + 1
    return equal / compared
