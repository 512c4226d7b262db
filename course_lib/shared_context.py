"""The harness's model, computing the context of a question once for all its choices.

For a question with four choices lm-evaluation-harness runs the context through the model four times, and turns every position
into logits over the whole vocabulary, of which it needs those of the choice. Here the context runs once and leaves its KV
cache; there the choices go on side by side, and only their positions get logits. The sums are the harness's own, but for
rounding.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, choice) as text, the tokens of each
Score = tuple[float, bool]  # the log-likelihood of a choice, and whether greedy decoding would write it


class SharedContextLM(HFLM):
    """`HFLM` for causal models whose cache can be repeated; what shares no context goes the harness's own way."""

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None,
    ) -> list[Score]:
        """A score of each request, in their order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, choice) in enumerate(requests):
            if len(context) + len(choice) <= self.max_length:
                groups.setdefault(tuple(context), []).append(place)
        lengths = {context: (max(len(requests[place][2]) for place in places), len(context))
                   for context, places in groups.items() if len(places) > 1}
        shared = sorted(lengths, key=lengths.get)  # alike in a batch, which then needs little padding
        found: dict[int, Score] = {}
        for start in range(0, len(shared), self.batch_size):
            batch = shared[start:start + self.batch_size]
            choices = [[requests[place][2] for place in groups[context]] for context in batch]
            places = [place for context in batch for place in groups[context]]
            found.update(zip(places, self._score(batch, choices), strict=True))
        rest = [place for place in range(len(requests)) if place not in found]
        scores = super()._loglikelihood_tokens([requests[place] for place in rest], disable_tqdm, override_bs) if rest else []
        found.update(zip(rest, scores, strict=True))
        return [found[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _score(self, contexts: list[tuple[int, ...]], choices: list[list[list[int]]]) -> list[Score]:
        """Scores of all choices, each a list of tokens, behind the context of their own."""
        # contexts are padded on the left, so that all end at one position; choices on the right, where nothing looks back
        ids, seen = self._padded(contexts, "left")
        start = self.model(ids, attention_mask=seen, position_ids=self._positions(seen), use_cache=True, logits_to_keep=1)
        tokens, real = self._padded([choice for some in choices for choice in some], "right")
        row = torch.arange(len(contexts)).repeat_interleave(torch.tensor([len(some) for some in choices])).to(self.device)
        logits, cache = start.logits[row], start.past_key_values
        if tokens.shape[1] > 1:
            cache.batch_select_indices(row)
            mask = torch.cat([seen[row], real[:, :-1]], dim=1)
            places = self._positions(mask)[:, ids.shape[1]:]
            more = self.model(tokens[:, :-1], attention_mask=mask, position_ids=places, past_key_values=cache).logits
            logits = torch.cat([logits, more], dim=1)
        likelihoods = logits.log_softmax(-1, dtype=self.softmax_dtype).gather(-1, tokens[..., None])[..., 0]
        greedy = (logits.argmax(-1) == tokens) | ~real
        return list(zip(likelihoods.masked_fill(~real, 0).sum(-1).tolist(), greedy.all(-1).tolist(), strict=True))

    def _padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of different lengths as one tensor, padded on a side, and where it holds tokens of theirs."""
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1, padding_side=side)
        return ids.clamp(min=0).to(self.device), (ids >= 0).to(self.device)

    @staticmethod
    def _positions(seen: torch.Tensor) -> torch.Tensor:
        """A token's place among those of its row that are no padding."""
        return (seen.cumsum(-1) - 1).clamp(min=0)
