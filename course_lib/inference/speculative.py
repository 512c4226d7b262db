"""Speculative decoding: a small model drafts k tokens, the large one checks them in one pass.

A decode step reads every weight for one token. Checking k + 1 positions also reads them once, so correct
guesses are almost free. With the target's distribution p and the draft's q, a drafted token x is kept with
probability min(1, p(x) / q(x)). The first rejected token is replaced by a draw from max(0, p - q),
normalised; if all k are kept, the target adds one. So the text has exactly the target's distribution.

Unlike `generate(assistant_model=...)` of transformers, k (the paper's γ) is fixed and each step is recorded.
A pass over k + 1 tokens rounds differently from k + 1 passes, so where two logits almost tie, greedy text may
differ from `generate`'s (transformers issue 39421): sometimes in bf16, rarely in fp32.

Sources: Leviathan et al. 2023, arXiv 2211.17192 (sections 2.3 and 3, proof in appendix A.1); Chen et al.
2023, arXiv 2302.01318. Built by hand in lesson 09.
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
        drafted, accepted: token ids that the draft proposed, and how many from the first on were kept.
        next_token: the target's token after the kept ones; None if a kept token ended the text.
    """

    drafted: tuple[int, ...]
    accepted: int
    next_token: int | None


@dataclass(frozen=True)
class SpeculativeStats:
    """Counts over the steps of a generation; `seconds` covers both prefills and all steps."""

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
    def alpha(self) -> float:
        """The paper's α: the share of judged tokens that were kept; judging stops at a rejection."""
        rejected = sum(step.accepted < len(step.drafted) for step in self.steps)
        return self.accepted / max(self.accepted + rejected, 1)

    @property
    def tokens_per_pass(self) -> float:
        return self.new_tokens / self.target_passes


def expected_tokens_per_pass(acceptance: float, k: int) -> float:
    """Mean number of tokens per pass of the target: (1 - α^(k+1)) / (1 - α), from 1 to k + 1.

    α is `acceptance`, 0 to 1 (`SpeculativeStats.alpha`). The formula assumes that each drafted token is kept
    with probability α independently of the others. Source: arXiv 2211.17192, section 3.1, equation 1.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance is {acceptance}; it must be from 0 to 1")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    return sum(acceptance**drafted for drafted in range(k + 1))  # as a sum: no division by 0 at α = 1


def expected_speedup(acceptance: float, k: int, cost_ratio: float) -> float:
    """Speed relative to the target alone: (1 - α^(k+1)) / ((1 - α) (k c + 1)).

    c is `cost_ratio`, the time of a draft pass over that of a target pass. The formula assumes that a pass
    over k + 1 tokens takes as long as over one, which holds while memory is the limit (`roofline`), and less
    so on a CPU. Source: arXiv 2211.17192, section 3.3, theorem 3.8.
    """
    if cost_ratio < 0:
        raise ValueError(f"cost_ratio is {cost_ratio}; the draft's time over the target's must be 0 or more")
    return expected_tokens_per_pass(acceptance, k) / (k * cost_ratio + 1)


def verify(
    draft_tokens: Sequence[int] | torch.Tensor, q: torch.Tensor, p: torch.Tensor,
    generator: torch.Generator | None = None,
) -> tuple[int, int]:
    """Number of drafted tokens that are kept, and the token that follows them.

    Built by hand in lesson 09. Source: arXiv 2211.17192, algorithm 1.

    Args:
        draft_tokens, q: k token ids, and the draft's probabilities (k, V) from which they were drawn.
        p: the target's probabilities at the same positions and one further, (k + 1, V).
        generator: source of the random draws, on any device; by default torch's global one.

    Raises:
        ValueError: the shapes do not fit.
    """
    device = p.device if generator is None else generator.device
    p = p.to(device)
    q = q.to(device)
    tokens = torch.as_tensor(draft_tokens, dtype=torch.long).to(device)
    k = len(tokens)
    if p.dim() != 2 or p.shape[0] != k + 1 or q.shape != (k, p.shape[1]):
        raise ValueError(f"{k} draft_tokens, q {tuple(q.shape)} and p {tuple(p.shape)} don't fit; "
                         "for k tokens q must be (k, V) and p (k + 1, V)")
    position = torch.arange(k, device=device)
    # u < p / q without the division: a token of probability 0 under both must not be kept
    kept = torch.rand(k, generator=generator, device=device) * q[position, tokens] < p[position, tokens]
    accepted = int(kept.long().cumprod(0).sum())
    if accepted == k:
        return k, _draw(p[k], generator)
    rest = (p[accepted] - q[accepted]).clamp(min=0)
    # if q > p at one token, p > q at another, unless rounding has removed a difference close to 0
    return accepted, _draw(rest if rest.any() else p[accepted], generator)


def _draw(weights: torch.Tensor, generator: torch.Generator | None) -> int:
    """Draw a token id in proportion to `weights` (V,), which need not sum to 1."""
    weights = weights if generator is None else weights.to(generator.device)
    return int(torch.multinomial(weights, 1, generator=generator))


def _probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities (n, V) of logits, in fp32; at temperature 0 the largest gets all (section 2.2)."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits.float() / temperature).softmax(-1)


class _Reader:
    """A model with its KV cache, which reads only tokens that it has not read yet."""

    def __init__(self, model: PreTrainedModel, width: int) -> None:
        from transformers import DynamicCache

        self.model = model
        self.width = width
        self.length = 0
        self.cache = DynamicCache(config=model.config)
        self.cache.activate_past_recording()  # lets a sliding window keep what a rejection needs again

    def logits(self, ids: list[int], last: int = 1) -> torch.Tensor:
        """Logits (last, V) after each of the `last` last tokens of `ids`."""
        unread = torch.tensor([ids[self.length:]], device=self.model.device)
        output = self.model(input_ids=unread, past_key_values=self.cache, use_cache=True, logits_to_keep=last)
        self.length = len(ids)
        return output.logits[0, -last:, :self.width]

    def forget(self, length: int) -> None:
        """Drop the keys and values after the first `length` tokens."""
        if self.length > length:
            self.cache.crop(length - self.length)  # negative: how many to drop from the end
            self.length = length


def speculative_generate(
    target: PreTrainedModel, draft: PreTrainedModel, input_ids: torch.Tensor, *, k: int = 4,
    temperature: float = 0.0, max_new_tokens: int = 64, generator: torch.Generator | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
) -> tuple[torch.Tensor, SpeculativeStats]:
    """Continue a prompt as `target` would, in fewer passes, with guesses of `draft`.

    Returns the token ids (1, T + new), prompt included, and the recorded steps. At temperature 0 the ids are
    those of `target.generate(do_sample=False)`, if the target's generation config sets no repetition penalty
    or the like. Above 0 they are sampled at that temperature, without top-k and top-p. Built by hand in
    lesson 09.

    Args:
        k: tokens that the draft proposes before each pass of the target.
        eos_token_id: tokens that end the text; by default those of the target's generation config. () is
            none.
        tokenizers: the target's and the draft's. If they are equal, the models' vocabulary sizes may differ
            by padding rows (Qwen2.5 0.5B and 7B), which are ignored.

    Raises:
        ValueError: a number out of range, an empty prompt, more than one prompt, or different vocabularies.
    """
    _check_request(input_ids, k, temperature, max_new_tokens)
    width = _shared_vocabulary(target, draft, tokenizers)
    if eos_token_id is None:
        eos_token_id = target.generation_config.eos_token_id
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    if temperature == 0:
        generator = torch.Generator(target.device)  # its draws decide nothing; spares the global one
    start = time.perf_counter()
    readers = _Reader(target, width), _Reader(draft, width)
    ids = input_ids[0].tolist()
    stop = len(ids) + max_new_tokens
    steps = []
    with torch.inference_mode():
        while len(ids) < stop and not (steps and ids[-1] in ends):
            count = min(k, stop - len(ids) - 1)  # the target adds one token
            step = _step(*readers, ids, count, temperature, generator, ends)
            steps.append(step)
            ids += [*step.drafted[:step.accepted], *([] if step.next_token is None else [step.next_token])]
            for reader in readers:
                reader.forget(len(ids) - 1)  # neither model has read the last token
    stats = SpeculativeStats(tuple(steps), time.perf_counter() - start)
    return torch.tensor([ids], device=input_ids.device), stats


def _step(
    target: _Reader, draft: _Reader, ids: list[int], count: int, temperature: float,
    generator: torch.Generator | None, ends: set[int],
) -> SpeculativeStep:
    """Draft `count` tokens after `ids`, fewer if the text ends, and let the target judge them."""
    drafted = []
    rows = []
    while len(drafted) < count and not (drafted and drafted[-1] in ends):
        rows.append(_probabilities(draft.logits(ids + drafted), temperature))
        drafted.append(_draw(rows[-1][0], generator))
    p = _probabilities(target.logits(ids + drafted, len(drafted) + 1), temperature)
    q = torch.cat(rows).to(p.device) if rows else p[:0]
    accepted, token = verify(drafted, q, p, generator)
    ended = accepted > 0 and drafted[accepted - 1] in ends
    return SpeculativeStep(tuple(drafted), accepted, None if ended else token)


def _check_request(input_ids: torch.Tensor, k: int, temperature: float, max_new_tokens: int) -> None:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (1, T): "
                         "one prompt at a time, for each would keep another number of tokens")
    if input_ids.shape[1] == 0:
        raise ValueError("input_ids is empty, (1, 0); the prompt must hold at least one token")
    for name, value in (("k", k), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or above, and finite")


def _shared_vocabulary(target: PreTrainedModel, draft: PreTrainedModel, tokenizers: tuple | None) -> int:
    """Number of logits that stand for the same tokens in both models."""
    sizes = [model.config.get_text_config().vocab_size for model in (target, draft)]
    if tokenizers is not None:
        vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
        if vocabularies[0] != vocabularies[1]:
            of_target, of_draft = map(len, vocabularies)
            raise ValueError(f"tokenizers differ: the target's {of_target:,} tokens are not the draft's "
                             f"{of_draft:,}; take a draft of the target's family, or one distilled from it "
                             "(make_student)")
    elif sizes[0] != sizes[1]:
        raise ValueError(f"target predicts {sizes[0]:,} tokens and draft {sizes[1]:,}; they must share a "
                         "vocabulary. Take a draft of the target's family; if only rows of padding differ, "
                         "hand over both tokenizers")
    return min(sizes)
