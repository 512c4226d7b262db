"""Speculative decoding: a small model drafts k tokens, the large one checks all of them in a single pass.

Decoding reads every weight for one token, and checking k + 1 positions reads them once too, so tokens that are guessed
right come almost for free. Nothing is lost: a drafted token x is kept with probability min(1, p(x) / q(x)), the first
one that is not kept is drawn anew from max(0, p - q), normalised, and after k kept tokens the target's own distribution
gives one more. What comes out is distributed as the target alone would draw it, whatever the draft; at temperature 0
both distributions are one-hot and the same rule gives the target's greedy text. p is the target's distribution, q the
draft's (the paper's p and q), k its γ.

`transformers` has the same in `generate(assistant_model=...)`, where the draft's own generation config says how many
tokens it drafts and how sure of them it must be to go on. Here their number is fixed, each step is recorded, and
`verify` is the rule by itself. One sequence at a time.

A pass over k + 1 tokens rounds differently from k + 1 passes over one, so where the two largest logits are closer than
that, the greedy text may part from `generate`'s (transformers issue 39421): now and then in bf16, hardly ever in fp32.

Sources: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192 (sections
2.3 and 3, proof in appendix A.1); Chen et al. 2023, arXiv 2302.01318. Built by hand in lesson 09.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpeculativeStep:
    """One pass of the target.

    Attributes:
        drafted: token ids that the draft proposed, at most k.
        accepted: how many of them, from the first on, were kept.
        next_token: what the target put behind them: in place of the rejected one, or one more after all were kept; None
            where a kept token ended the text.
    """

    drafted: tuple[int, ...]
    accepted: int
    next_token: int | None


@dataclass(frozen=True)
class SpeculativeStats:
    """How a generation went, counted from its steps; `seconds` are those of the whole, both prefills included."""

    steps: tuple[SpeculativeStep, ...]
    seconds: float

    @property
    def target_passes(self) -> int:
        return len(self.steps)

    @property
    def drafted(self) -> int:
        return sum(len(step.drafted) for step in self.steps)

    @property
    def accepted(self) -> int:
        return sum(step.accepted for step in self.steps)

    @property
    def new_tokens(self) -> int:
        return self.accepted + sum(step.next_token is not None for step in self.steps)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were kept, those behind a rejected one included; 0 where none was drafted."""
        return self.accepted / max(self.drafted, 1)

    @property
    def alpha(self) -> float:
        """Share of the judged tokens that were kept: the paper's α, which the two formulas below take.

        What was drafted behind a rejected token was never judged, so α is at least `acceptance`.
        """
        rejected = sum(step.accepted < len(step.drafted) for step in self.steps)
        return self.accepted / max(self.accepted + rejected, 1)

    @property
    def tokens_per_pass(self) -> float:
        return self.new_tokens / self.target_passes

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds


def expected_tokens_per_pass(acceptance: float, k: int) -> float:
    """Tokens that a pass of the target yields on average: (1 - α^(k+1)) / (1 - α), from 1 to k + 1.

    Source: arXiv 2211.17192, section 3.1, equation 1, under its assumption that every token is kept with the same
    probability α, independently of the others. Real text comes in easy and hard stretches.

    Args:
        acceptance: α, the probability that a judged token is kept (`SpeculativeStats.alpha`), 0 to 1.
        k: drafted tokens, at least 1.
    """
    _check_theory(acceptance, k)
    return sum(acceptance**drafted for drafted in range(k + 1))  # the geometric series: no division by 0 at α = 1


def expected_speedup(acceptance: float, k: int, cost_ratio: float) -> float:
    """How many times as fast as the target alone: (1 - α^(k+1)) / ((1 - α) (k c + 1)).

    Source: arXiv 2211.17192, section 3.3, theorem 3.8, which takes a pass over k + 1 tokens to be as long as one over a
    single token. That is so while memory is the limit (`roofline`), and less so on a CPU.

    Args:
        acceptance, k: as in `expected_tokens_per_pass`.
        cost_ratio: c, time of a pass of the draft over that of the target, 0 or more.
    """
    if cost_ratio < 0:
        raise ValueError(f"cost_ratio is {cost_ratio}; it must be 0 or more (time of the draft over time of the target)")
    return expected_tokens_per_pass(acceptance, k) / (k * cost_ratio + 1)


def _check_theory(acceptance: float, k: int) -> None:
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance is {acceptance}; it must be from 0 to 1")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")


def verify(
    draft_tokens: Sequence[int] | torch.Tensor, q: torch.Tensor, p: torch.Tensor, generator: torch.Generator | None = None,
) -> tuple[int, int]:
    """How many drafted tokens are kept, and the token that follows them. Built by hand in lesson 09.

    Source: arXiv 2211.17192, algorithm 1.

    Args:
        draft_tokens: k token ids, the i-th drawn from q[i].
        q: the draft's probabilities, (k, V).
        p: the target's probabilities at the same positions and one further, (k + 1, V).
        generator: for the draws; torch's global one by default. Another device than that of p is fine.

    Raises:
        ValueError: shapes that do not fit.
    """
    where = p.device if generator is None else generator.device
    tokens, q, p = torch.as_tensor(draft_tokens, dtype=torch.long).to(where), q.to(where), p.to(where)
    k = len(tokens)
    if p.dim() != 2 or p.shape[0] != k + 1 or q.shape != (k, p.shape[1]):
        raise ValueError(f"{k} draft_tokens, q {tuple(q.shape)} and p {tuple(p.shape)} don't fit; for k tokens q must be "
                         "(k, V) and p (k + 1, V)")
    position = torch.arange(k, device=where)
    # u < p / q without the division: a token of probability 0 under both must not be kept
    kept = torch.rand(k, generator=generator, device=where) * q[position, tokens] < p[position, tokens]
    accepted = int(kept.long().cumprod(0).sum())
    if accepted == k:
        return k, _draw(p[k], generator)
    rest = (p[accepted] - q[accepted]).clamp(min=0)
    # where q > p at one token, p > q at another, unless rounding has swallowed a difference close to 0
    return accepted, _draw(rest if rest.any() else p[accepted], generator)


def _draw(weights: torch.Tensor, generator: torch.Generator | None) -> int:
    """A token id drawn in proportion to `weights` (V,), which need not sum to 1."""
    where = weights.device if generator is None else generator.device
    return int(torch.multinomial(weights.to(where), 1, generator=generator))


def _probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n, V) logits → probabilities in fp32; at temperature 0 all of it on the largest logit (section 2.2)."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits.float() / temperature).softmax(-1)


class _Reader:
    """A model with its KV cache, which reads only those tokens of a sequence that it has not read yet."""

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        from transformers import DynamicCache

        self.model, self.width, self.length = model, width, 0
        self.cache = DynamicCache(config=model.config)
        self.cache.activate_past_recording()  # a sliding window may only drop what no rejection can bring back

    def logits(self, ids: list[int], last: int = 1) -> torch.Tensor:
        """Logits (last, V) after each of the `last` last tokens of `ids`."""
        unread = torch.tensor([ids[self.length:]], device=self.model.device)
        output = self.model(input_ids=unread, past_key_values=self.cache, use_cache=True, logits_to_keep=last)
        self.length = len(ids)
        return output.logits[0, -last:, :self.width]

    def forget(self, length: int) -> None:
        """Keep the keys and values of the first `length` tokens at most."""
        if self.length > length:
            self.cache.crop(length - self.length)  # a negative number: so many from the end
            self.length = length


def speculative_generate(
    target: PreTrainedModel, draft: PreTrainedModel, input_ids: torch.Tensor, *, k: int = 4, temperature: float = 0.0,
    max_new_tokens: int = 64, generator: torch.Generator | None = None, eos_token_id: int | Sequence[int] | None = None,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
) -> tuple[torch.Tensor, SpeculativeStats]:
    """Continue a prompt as `target` would, with fewer passes of it, by what `draft` guesses. Built by hand in lesson 09.

    At temperature 0 the result is `target.generate(do_sample=False)`'s, where the target's generation config asks for
    no repetition penalty or the like. Above, it is a draw from the target at that temperature, without top-k and top-p.

    Args:
        target, draft: causal language models over one vocabulary, on whatever devices.
        input_ids: the prompt, (1, T).
        k: tokens that the draft proposes before each pass of the target.
        temperature: of both models; 0 is greedy.
        max_new_tokens: exactly so many, unless the text ends before.
        generator: for sampling; torch's global one by default. The same seed gives the same draw.
        eos_token_id: tokens that end the text; by default those of the target's generation config, () for none.
        tokenizers: the target's and the draft's, to compare their vocabularies. Models of one family may differ in rows
            of padding behind the vocabulary (Qwen2.5 0.5B and 7B); with equal tokenizers those rows are left out.

    Returns:
        Token ids (1, T + new), the prompt included, and how the steps went.

    Raises:
        ValueError: k, temperature or max_new_tokens out of range, no prompt or several, or vocabularies that differ.
    """
    _check_request(input_ids, k, temperature, max_new_tokens)
    width = _shared_vocabulary(target, draft, tokenizers)
    if eos_token_id is None:
        eos_token_id = target.generation_config.eos_token_id
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    if temperature == 0:
        generator = torch.Generator(target.device)  # nothing hangs on these draws; they leave the global one alone
    start = time.perf_counter()
    ids, steps = _decode(_Reader(target, width), _Reader(draft, width), input_ids[0].tolist(), k, temperature, max_new_tokens,
                         generator, ends)
    stats = SpeculativeStats(tuple(steps), time.perf_counter() - start)
    return torch.tensor([ids], device=input_ids.device), stats


@torch.inference_mode()
def _decode(
    target: _Reader, draft: _Reader, ids: list[int], k: int, temperature: float, max_new_tokens: int,
    generator: torch.Generator | None, ends: set[int],
) -> tuple[list[int], list[SpeculativeStep]]:
    """The whole sequence, and its steps."""
    steps, stop = [], len(ids) + max_new_tokens
    while len(ids) < stop and not (steps and ids[-1] in ends):
        # one place is for the target's own token
        drafted, q = _propose(draft, ids, min(k, stop - len(ids) - 1), temperature, generator, ends)
        p = _probabilities(target.logits(ids + drafted, len(drafted) + 1), temperature)
        accepted, token = verify(drafted, q.to(p.device), p, generator)
        ended = accepted > 0 and drafted[accepted - 1] in ends
        steps.append(SpeculativeStep(tuple(drafted), accepted, None if ended else token))
        ids = ids + drafted[:accepted] + ([] if ended else [token])
        for reader in (target, draft):
            reader.forget(len(ids) - 1)  # the last token has been read by nobody
    return ids, steps


def _propose(
    reader: _Reader, ids: list[int], count: int, temperature: float, generator: torch.Generator | None, ends: set[int],
) -> tuple[list[int], torch.Tensor]:
    """At most `count` tokens drawn one after another, fewer where the text ends, and their distributions (k, V)."""
    drafted, rows = [], []
    while len(drafted) < count and not (drafted and drafted[-1] in ends):
        rows.append(_probabilities(reader.logits(ids + drafted), temperature))
        drafted.append(_draw(rows[-1][0], generator))
    return drafted, torch.cat(rows) if rows else torch.empty(0, reader.width)


def _check_request(input_ids: torch.Tensor, k: int, temperature: float, max_new_tokens: int) -> None:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (1, T): one prompt at a time, for each "
                         "would keep another number of tokens")
    if input_ids.shape[1] == 0:
        raise ValueError("input_ids is empty, (1, 0); the prompt must hold at least one token")
    for name, value in (("k", k), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or above, and finite")


def _shared_vocabulary(target: PreTrainedModel, draft: PreTrainedModel, tokenizers: tuple | None) -> int:
    """How many logits of both models speak of the same tokens."""
    sizes = [model.config.get_text_config().vocab_size for model in (target, draft)]
    if tokenizers is not None:
        theirs, ours = (tokenizer.get_vocab() for tokenizer in tokenizers)
        if theirs != ours:
            raise ValueError(f"tokenizers differ: the target's {len(theirs):,} tokens are not the draft's {len(ours):,}; take "
                             "a draft of the target's family, or one distilled from it (make_student)")
    elif sizes[0] != sizes[1]:
        raise ValueError(f"target predicts {sizes[0]:,} tokens and draft {sizes[1]:,}; they must share a vocabulary. Take a "
                         "draft of the target's family; if only rows of padding differ, hand over both tokenizers")
    return min(sizes)
