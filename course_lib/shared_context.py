"""The harness's model, computing the context of a question once for all its choices.

For a question with four choices lm-evaluation-harness runs the context through the model four times, and turns every position
into logits over the whole vocabulary, of which it needs those of the choice. Here the context runs once and leaves its KV
cache (lesson 03); in it the choices go on side by side, and only their positions get logits. The sums are the harness's own,
but for rounding.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, choice) as text, the tokens of each


class SharedContextLM(HFLM):
    """`HFLM` for causal models whose cache can be repeated; what shares no context goes the harness's own way."""

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the choice, whether greedy decoding would write it) of each request, in their order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        for context, places in groups.items():
            choices = [requests[place][2] for place in places]
            if len(places) > 1 and len(context) + max(map(len, choices)) <= self.max_length:
                found.update(zip(places, self._score(context, choices), strict=True))
        rest = [place for place in range(len(requests)) if place not in found]
        scores = super()._loglikelihood_tokens([requests[place] for place in rest], disable_tqdm, override_bs) if rest else []
        found.update(zip(rest, scores, strict=True))
        return [found[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _score(self, context: Sequence[int], choices: list[list[int]]) -> list[tuple[float, bool]]:
        """Scores of choices, each a list of tokens, behind the same context."""
        start = self.model(torch.tensor([context], device=self.device), use_cache=True, logits_to_keep=1)
        longest = max(map(len, choices))
        # padding on the right: no token looks ahead, so it changes nothing before it
        tokens = torch.tensor([choice + [0] * (longest - len(choice)) for choice in choices], device=self.device)
        logits = start.logits.expand(len(choices), -1, -1)
        if longest > 1:
            start.past_key_values.batch_repeat_interleave(len(choices))
            more = self.model(tokens[:, :-1], past_key_values=start.past_key_values).logits
            logits = torch.cat([logits, more], dim=1)
        likelihoods = logits.log_softmax(-1, dtype=self.softmax_dtype).gather(-1, tokens[..., None])[..., 0]
        greedy = logits.argmax(-1) == tokens
        return [(float(row[:len(choice)].sum()), bool(hit[:len(choice)].all()))
                for row, hit, choice in zip(likelihoods, greedy, choices, strict=True)]
