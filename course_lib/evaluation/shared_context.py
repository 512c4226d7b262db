"""The harness's model, with a question's context computed once for all its choices.

For each choice, lm-evaluation-harness runs the context again and computes logits over the whole vocabulary at
every position. Here the context runs once and leaves its KV cache, the choices continue from it in one batch,
and only their positions get logits. The sums are the same up to rounding.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, choice) as text, the tokens of each
Score = tuple[float, bool]  # the log-likelihood of a choice, and whether greedy decoding would write it


class SharedContextLM(HFLM):
    """`HFLM` for models whose KV cache can be repeated; requests that share no context use `HFLM`'s code."""

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None,
    ) -> list[Score]:
        """The score of each request, in order."""
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, choice) in enumerate(requests):
            if len(context) + len(choice) <= self.max_length:
                by_context.setdefault(tuple(context), []).append(index)
        groups = [group for group in by_context.values() if len(group) > 1]

        def lengths(group: list[int]) -> tuple[int, int]:
            return max(len(requests[index][2]) for index in group), len(requests[group[0]][1])

        groups.sort(key=lengths)  # similar lengths in a batch need less padding
        scores: dict[int, Score] = {}
        for start in range(0, len(groups), self.batch_size):
            batch = groups[start:start + self.batch_size]
            contexts = [requests[group[0]][1] for group in batch]
            choices = [[requests[index][2] for index in group] for group in batch]
            scores.update(zip(chain(*batch), self._score(contexts, choices), strict=True))
        rest = [index for index in range(len(requests)) if index not in scores]
        if rest:
            others = [requests[index] for index in rest]
            others = super()._loglikelihood_tokens(others, disable_tqdm, override_bs)
            scores.update(zip(rest, others, strict=True))
        return [scores[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _score(self, contexts: list[list[int]], choices: list[list[list[int]]]) -> list[Score]:
        """Scores of all choices, each a list of tokens, after their contexts."""
        # contexts are padded on the left, so that all end at one position, choices on the right
        ids, is_context = self._padded(contexts, "left")
        prefill = self.model(ids, attention_mask=is_context, position_ids=self._positions(is_context),
                             use_cache=True, logits_to_keep=1)
        tokens, is_choice = self._padded(list(chain(*choices)), "right")
        counts = torch.tensor([len(group) for group in choices])
        row = torch.arange(len(contexts)).repeat_interleave(counts).to(self.device)  # each choice's context
        logits = prefill.logits[row]
        if tokens.shape[1] > 1:
            cache = prefill.past_key_values
            cache.batch_select_indices(row)
            mask = torch.cat([is_context[row], is_choice[:, :-1]], dim=1)
            positions = self._positions(mask)[:, ids.shape[1]:]
            later = self.model(tokens[:, :-1], attention_mask=mask, position_ids=positions,
                               past_key_values=cache)
            logits = torch.cat([logits, later.logits], dim=1)
        likelihoods = logits.log_softmax(-1, dtype=self.softmax_dtype).gather(-1, tokens[..., None])[..., 0]
        sums = likelihoods.masked_fill(~is_choice, 0).sum(-1)
        greedy = (logits.argmax(-1) == tokens) | ~is_choice
        return list(zip(sums.tolist(), greedy.all(-1).tolist(), strict=True))

    def _padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of different lengths as one tensor, padded on `side`, and a mask of their tokens."""
        ids = pad_sequence([torch.tensor(row) for row in rows], True, padding_value=-1, padding_side=side)
        return ids.clamp(min=0).to(self.device), (ids >= 0).to(self.device)

    @staticmethod
    def _positions(is_token: torch.Tensor) -> torch.Tensor:
        """The position of each token in its row, not counting padding."""
        return (is_token.cumsum(-1) - 1).clamp(min=0)
