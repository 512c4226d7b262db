"""Charts of lessons 02 and 03: next tokens, tokenizers, parameters, the KV cache, soft-capping."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ...models import cards, catalog
from ...models.memory import kv_cache_bytes
from ...runtime import text
from ..canvas import COLOURS, GREY, legend_above, name_rows, note, subplots, token_text

if TYPE_CHECKING:
    import pandas as pd
    import torch


def next_tokens(
    tokenizer, logits: torch.Tensor, temperatures: Sequence[float] = (0.5, 1.0, 2.0), top: int = 10,
) -> Figure:
    """Bars of the `top` most probable next tokens, one panel for each temperature; `logits`: (V,)."""
    figure, panels = subplots(10, 3.4, columns=len(temperatures))
    best = logits.topk(top).indices
    labels = [token_text(tokenizer, token) for token in best.tolist()]
    shares = [(logits.float() / temperature).softmax(-1)[best] for temperature in temperatures]
    widest = 1.25 * max(float(share.max()) for share in shares)  # the same scale in all panels
    for axes, temperature, probabilities in zip(panels, temperatures, shares, strict=True):
        bars = axes.barh(range(top), probabilities.tolist(), color=COLOURS[0])
        axes.bar_label(bars, fmt="{:.1%}", padding=2, fontsize=8)
        name_rows(axes, labels)
        title = text("pictures.temperature_title", temperature=f"{temperature:g}",
                     sum=f"{float(probabilities.sum()):.0%}")
        axes.set(xlim=(0, widest), xlabel=text("pictures.probability"), title=title)
    return figure


def tokens_per_character(table: pd.DataFrame) -> Figure:
    """Bars of tokens per character: a group for each language (row), a bar for each tokenizer (column)."""
    figure, (axes,) = subplots(8, 3.6)
    table.plot.bar(ax=axes, rot=0, color=list(COLOURS[:table.shape[1]]))
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set(xlabel="", ylabel=text("pictures.tokens_per_character"), title=text("pictures.tokens_title"))
    axes.legend(frameon=False)
    return figure


def parameter_shares(table: pd.DataFrame) -> Figure:
    """Stacked bars of parameter shares; `table`: counts, a row for each model, a column per component."""
    figure, (axes,) = subplots(9, 0.42 * len(table) + 1.4)
    totals = table.sum(axis=1)
    left = 0
    for colour, (name, counts) in zip(COLOURS, table.items(), strict=False):
        shares = counts / totals
        bars = axes.barh(range(len(table)), shares, left=left, color=colour, label=name)
        labels = [f"{share:.0%}" if share > 0.03 else "" for share in shares]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=8)
        left = left + shares.to_numpy()
    name_rows(axes, [f"{name} · {total / 1e9:.2f}B" for name, total in totals.items()])
    axes.spines["bottom"].set_visible(False)
    axes.set(xticks=[], xlabel=text("pictures.parameter_shares"))
    legend_above(axes, len(table.columns))
    return figure


def cache_lines(model_ids: Sequence[str], longest: int = 8192) -> Figure:
    """Size of the KV cache in bf16 (GB) against the tokens in the context, one line for each model."""
    figure, (axes,) = subplots(8, 3.8)
    for colour, model_id in zip(COLOURS, model_ids, strict=False):
        card = cards.get_card(model_id)
        config = catalog.config(model_id)
        tokens = range(0, min(longest, card.context) + 1, 64)
        sizes = [kv_cache_bytes(config, context) / 1e9 for context in tokens]
        axes.plot(tokens, sizes, color=colour)
        note(axes, card.name, (tokens[-1], sizes[-1]), (5, -3), color=colour, annotation_clip=False)
    axes.set(xlim=(0, longest), xlabel=text("pictures.context_tokens"), ylabel=text("pictures.cache_gb"))
    axes.set_ylim(bottom=0)
    return figure


def soft_cap_curves(caps: Sequence[float], largest: float = 150.0) -> Figure:
    """Attention scores after soft-capping against the scores before it, one curve for each cap."""
    import torch

    from ...models.architectures import soft_cap

    figure, (axes,) = subplots(6, 3.4)
    scores = torch.linspace(-largest, largest, 301)
    axes.plot(scores, scores, color=GREY, linestyle="--", linewidth=1, label=text("pictures.no_cap"))
    for colour, cap in zip(COLOURS, caps, strict=False):
        axes.plot(scores, soft_cap(scores, cap), color=colour, label=text("pictures.cap", cap=f"{cap:g}"))
    edge = 1.4 * max(caps)
    axes.set(ylim=(-edge, edge), xlabel=text("pictures.score_before"), ylabel=text("pictures.score_after"))
    axes.legend(frameon=False)
    return figure
