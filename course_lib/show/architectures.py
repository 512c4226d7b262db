"""Pictures of lesson 03: where parameters sit, the growth of the cache, shared heads, soft-capping, masks and gates."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import catalog
from ..memory import kv_cache_bytes
from ..runtime import text
from .canvas import COLOURS, subplots

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure


def parameter_shares(table: pd.DataFrame) -> Figure:
    """Stacked bars of each part's share of the parameters: a model a row of `table`, a part a column, counts inside.

    Labels are the columns' names, so a lesson's table and its picture say the same.
    """
    figure, (axes,) = subplots(9, 0.42 * len(table) + 1.4)
    shares, left = table.div(table.sum(axis=1), axis=0), 0
    for colour, part in zip(COLOURS, shares.columns, strict=False):
        bars = axes.barh(range(len(table)), shares[part], left=left, color=colour, label=part)
        labels = [f"{share:.0%}" if share > 0.03 else "" for share in shares[part]]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=8)
        left = left + shares[part].to_numpy()
    names = [f"{name} · {total / 1e9:.2f}B" for name, total in table.sum(axis=1).items()]
    axes.set_yticks(range(len(table)), names)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(text("show.parameter_shares"))
    axes.legend(frameon=False, ncols=len(table.columns), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def cache_lines(model_ids: Sequence[str], longest: int = 8192) -> Figure:
    """GB of keys and values in bf16 against the tokens in the context, a line a model, as far as its context reaches."""
    figure, (axes,) = subplots(8, 3.8)
    for colour, model_id in zip(COLOURS, model_ids, strict=False):
        card, config = catalog.get(model_id), catalog.config(model_id)
        tokens = range(0, min(longest, card.context) + 1, 64)
        sizes = [kv_cache_bytes(config, context) / 1e9 for context in tokens]
        axes.plot(tokens, sizes, color=colour)
        axes.annotate(card.name, (tokens[-1], sizes[-1]), xytext=(5, -3), textcoords="offset points",
                      color=colour, fontsize=9, annotation_clip=False)
    axes.set_xlim(0, longest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(text("show.context_tokens"))
    axes.set_ylabel(text("show.cache_gb"))
    return figure


def head_groups(num_heads: int, kv_counts: Sequence[int]) -> Figure:
    """Query heads above, the key/value heads that they share below: a panel for each number of key/value heads."""
    figure, axes = subplots(3.4 * len(kv_counts), 2.2, columns=len(kv_counts))
    for axis, count in zip(axes, kv_counts, strict=True):
        group = num_heads // count
        for head in range(num_heads):
            shared = head // group
            middle = group * shared + (group - 1) / 2
            axis.plot([head, middle], [1, 0], color="#999999", linewidth=1, zorder=1)
            axis.scatter([head], [1], s=150, marker="s", color=COLOURS[0], zorder=2)
            axis.scatter([middle], [0], s=150, marker="s", color=COLOURS[1], zorder=2)
        axis.set_xlim(-0.8, num_heads - 0.2)
        axis.set_ylim(-0.5, 1.5)
        axis.set_yticks([0, 1], [text("show.key_value_heads"), text("show.query_heads")] if axis is axes[0] else ["", ""])
        axis.tick_params(left=False)
        axis.set_xticks([])
        axis.spines[["left", "bottom"]].set_visible(False)
        kind = "MHA" if count == num_heads else "MQA" if count == 1 else "GQA"
        axis.set_title(text("show.head_groups", kind=kind, heads=num_heads, shared=count), fontsize=10)
    return figure


def soft_cap_curves(caps: Sequence[float], largest: float = 150.0) -> Figure:
    """Scores before and after soft-capping, a curve for each cap."""
    import torch

    from ..architectures import soft_cap

    figure, (axes,) = subplots(6, 3.4)
    scores = torch.linspace(-largest, largest, 301)
    axes.plot(scores, scores, color="#999999", linestyle="--", linewidth=1, label=text("show.no_cap"))
    for colour, cap in zip(COLOURS, caps, strict=False):
        axes.plot(scores, soft_cap(scores, cap), color=colour, label=text("show.cap", cap=f"{cap:g}"))
    axes.set_ylim(-1.4 * max(caps), 1.4 * max(caps))
    axes.set_xlabel(text("show.score_before"))
    axes.set_ylabel(text("show.score_after"))
    axes.legend(frameon=False)
    return figure


def maps(panels: Mapping[str, torch.Tensor], rows: Sequence[str] = (), columns: Sequence[str] = (), *,
         across: str | None = None, down: str | None = None) -> Figure:
    """Matrices as pictures, dark where large: masks, attention weights, gates.

    Args:
        panels: title → matrix of values from 0 to 1 (or booleans); all of one shape.
        rows, columns: labels of the ticks.
        across, down: what the columns and rows are; keys and queries by default.
    """
    height, width = next(iter(panels.values())).shape
    cell = min(0.24, 3 / width)
    figure, axes = subplots(max(len(panels) * (cell * width + 0.9), 4), max(cell * height + 1.3, 2.2), columns=len(panels))
    for axis, (title, matrix) in zip(axes, panels.items(), strict=True):
        axis.pcolormesh(matrix.float(), cmap="Blues", vmin=0, vmax=1, edgecolors="#cccccc", linewidth=0.3)
        axis.invert_yaxis()
        axis.set_aspect("equal")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([index + 0.5 for index in range(len(columns))], columns, rotation=90, fontsize=7)
        axis.set_yticks([index + 0.5 for index in range(len(rows))], rows, fontsize=7)
        axis.spines[["right", "top"]].set_visible(True)
        axis.set_xlabel(across or text("show.keys"))
    axes[0].set_ylabel(down or text("show.queries"))
    return figure
