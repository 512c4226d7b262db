"""Pictures of lesson 07: levels among weights, outliers among activations, size against perplexity."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, explorer, subplots

if TYPE_CHECKING:
    import ipywidgets
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame


def level_picture(weights: torch.Tensor, kind: str = "nf4", bits: int = 4, block_size: int = 64) -> Figure:
    """Where the levels lie among the weights, each divided by its block's largest, and the error of rounding to them.

    Args:
        weights: any shape.
        kind: "int" for evenly spaced levels, "nf4" for NF4's, which always have 4 bits.
        bits, block_size: as of `rounding.blockwise_absmax`.
    """
    from ..rounding import absmax_levels, blockwise_absmax, nf4_levels

    levels = nf4_levels() if kind == "nf4" else absmax_levels(bits)
    blocks = blockwise_absmax(weights, block_size=block_size, levels=levels)
    weights = weights.float().cpu()
    rounded = blocks.dequantize().cpu()
    largest = blocks.scales.cpu().clamp(min=1e-12).repeat_interleave(block_size)[:weights.numel()]
    error = float((weights - rounded).norm() / weights.norm())
    figure, (axes,) = subplots(9, 3.2)
    axes.hist((weights.flatten() / largest).numpy(), bins=201, range=(-1, 1), color="#c9d6e6")
    for level in levels.tolist():
        axes.axvline(level, color=COLOURS[1], linewidth=1)
    axes.set_yticks([])
    axes.set_xlim(-1.03, 1.03)
    axes.set_xlabel(text("show.quantization.scaled"))
    name = "NF4" if kind == "nf4" else text("show.quantization.even", bits=bits)
    axes.set_title(text("show.quantization.levels", name=name, block=block_size, error=f"{100 * error:.1f}"))
    return figure


def level_explorer(weights: torch.Tensor) -> ipywidgets.Widget:
    """The widget of lesson 07: `level_picture` for a kind of level, a number of bits and a block size."""
    import ipywidgets

    style = {"description_width": "9em"}
    return explorer(
        lambda kind, bits, block_size: level_picture(weights, kind, bits, block_size),
        kind=ipywidgets.ToggleButtons(options=[("NF4", "nf4"), (text("show.quantization.spaced"), "int")], style=style,
                                      description=text("show.quantization.kind")),
        bits=ipywidgets.IntSlider(value=4, min=2, max=8, description=text("show.quantization.bits"), style=style,
                                  continuous_update=False),
        block_size=ipywidgets.SelectionSlider(options=[16, 32, 64, 128, 256, 1024, 4096], value=64, style=style,
                                              description=text("show.quantization.block"), continuous_update=False))


def outlier_columns(largest: Mapping[str, torch.Tensor], threshold: float = 6.0) -> Figure:
    """The largest |x| in each input column of some layers, ordered, against the threshold of LLM.int8().

    Args:
        largest: name of the layer → (D_in,).
    """
    figure, (axes,) = subplots(9, 3.4)
    for colour, (name, values) in zip(COLOURS, largest.items(), strict=False):
        ordered = values.float().cpu().sort(descending=True).values
        axes.plot([100 * index / len(ordered) for index in range(len(ordered))], ordered.clamp(min=1e-3).numpy(), color=colour,
                  label=name)
    axes.axhline(threshold, color="#555555", linewidth=0.8, linestyle="--")
    axes.text(100, threshold, f"{threshold:g}", ha="right", va="bottom", fontsize=9, color="#555555")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(text("show.quantization.columns"))
    axes.set_ylabel(text("show.quantization.largest"))
    axes.legend(frameon=False)
    return figure


def size_against_perplexity(table: DataFrame) -> Figure:
    """Each method as a dot: the file's size in MB and the perplexity, with the tokens a second beside it.

    Args:
        table: a row for each method, with the columns of `comparison.COLUMNS`.
    """
    figure, (axes,) = subplots(9, 4.2)
    width, height = (table[column].max() - table[column].min() for column in ("file_mb", "perplexity"))
    for method, row in table.iterrows():
        axes.plot(row.file_mb, row.perplexity, "o", color=COLOURS[0 if method == "bf16" else 1], zorder=2)
        label = text("show.quantization.dot", method=method, rate=f"{row.tokens_per_second:.0f}")
        right = table[(table.file_mb > row.file_mb) & (table.file_mb < row.file_mb + 0.3 * width)]
        crowded = ((right.perplexity - row.perplexity).abs() < 0.05 * height).any()  # the label would meet another dot
        axes.annotate(label, (row.file_mb, row.perplexity), textcoords="offset points", xytext=(7, -13 if crowded else 3),
                      fontsize=9)
    axes.axhline(table.perplexity["bf16"], color="#999999", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xlabel(text("show.quantization.file"))
    axes.set_ylabel(text("show.quantization.perplexity"))
    axes.set_xlim(0.9 * table.file_mb.min(), 1.15 * table.file_mb.max())
    axes.set_ylim(table.perplexity.min() - 0.12 * height, table.perplexity.max() + 0.06 * height)
    return figure
