"""Charts of lesson 07: outliers among activations, and file size against perplexity."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ...runtime import text
from ..canvas import COLOURS, GREY, note, subplots

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame


def outlier_columns(largest: Mapping[str, torch.Tensor], threshold: float = 6.0) -> Figure:
    """Largest |x| of each input column of some layers, in descending order, with LLM.int8()'s threshold."""
    figure, (axes,) = subplots(9, 3.4)
    for colour, (name, values) in zip(COLOURS, largest.items(), strict=False):
        ordered = values.float().cpu().sort(descending=True).values.clamp(min=1e-3)
        percent = [100 * index / len(ordered) for index in range(len(ordered))]
        axes.plot(percent, ordered.numpy(), color=colour, label=name)
    axes.axhline(threshold, color="#555555", linewidth=0.8, linestyle="--")
    axes.text(100, threshold, f"{threshold:g}", ha="right", va="bottom", fontsize=9, color="#555555")
    axes.set(yscale="log", xlabel=text("pictures.quantization.columns"),
             ylabel=text("pictures.quantization.largest"))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(frameon=False)
    return figure


def size_against_perplexity(table: DataFrame) -> Figure:
    """Perplexity against file size (MB) for each method; `table` has the columns `cl.compare.COLUMNS`."""
    figure, (axes,) = subplots(9, 4.2)
    width, height = (table[column].max() - table[column].min() for column in ("file_mb", "perplexity"))
    for method, row in table.iterrows():
        axes.plot(row.file_mb, row.perplexity, "o", color=COLOURS[0 if method == "bf16" else 1], zorder=2)
        label = text("pictures.quantization.dot", method=method, rate=f"{row.tokens_per_second:.0f}")
        right = table[(table.file_mb > row.file_mb) & (table.file_mb < row.file_mb + 0.3 * width)]
        # the label would overlap the dot of another method
        crowded = ((right.perplexity - row.perplexity).abs() < 0.05 * height).any()
        note(axes, label, (row.file_mb, row.perplexity), (7, -13 if crowded else 3))
    axes.axhline(table.perplexity["bf16"], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlim=(0.9 * table.file_mb.min(), 1.15 * table.file_mb.max()),
             ylim=(table.perplexity.min() - 0.12 * height, table.perplexity.max() + 0.06 * height),
             xlabel=text("pictures.quantization.file"), ylabel=text("pictures.quantization.perplexity"))
    return figure
