"""Charts of lesson 08: tokens that change with the runtime, memory of a mapped file."""
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from ...runtime import text
from ..canvas import COLOURS, GREY, legend_above, logarithmic, name_rows, subplots


def near_ties(margins: Sequence[float], parted: Mapping[str, Sequence[float]]) -> Figure:
    """Margins by which a model preferred its tokens: all tokens in grey, changed ones in colour.

    `margins`: largest minus second largest logit of each token; `parted`: runtime → those of changed tokens.
    """
    figure, (axes,) = subplots(9, 0.5 * len(parted) + 1.8)
    least = 1e-3  # a logarithmic axis cannot show 0
    axes.scatter([max(margin, least) for margin in margins], [0] * len(margins), s=22, color=GREY, alpha=0.6)
    for row, (colour, values) in enumerate(zip(COLOURS, parted.values(), strict=False), start=1):
        axes.scatter([max(margin, least) for margin in values], [row] * len(values), s=40, color=colour)
    name_rows(axes, [text("pictures.near_ties.all"), *parted])
    logarithmic(axes, "x")
    axes.set(ylim=(len(parted) + 0.6, -0.6), xlabel=text("pictures.near_ties.margin"))
    return figure


def mapping_bars(figures: Mapping[str, pd.DataFrame]) -> Figure:
    """Own and file memory (MB) of a process; `figures`: file → table of `cl.export.memory_map_figures`."""
    rows = pd.concat([table.loc[["mapped", "read"]] for table in figures.values()])
    own = rows.anonymous_mb.fillna(rows.used_mb)  # NaN on macOS and Windows: count all of it
    shared = (rows.used_mb - own).clip(lower=0)
    figure, (axes,) = subplots(9, 0.62 * len(rows) + 1.2)
    places = range(len(rows))
    bars = axes.barh(places, own, 0.6, color=COLOURS[1], label=text("pictures.mapping.own"))
    axes.bar_label(bars, fmt="%.0f", label_type="center", color="white", fontsize=9)
    bars = axes.barh(places, shared, 0.6, left=own, color=COLOURS[0], label=text("pictures.mapping.file"))
    labels = shared.map("{:.0f}".format).where(shared > 0.1 * (own + shared), "")
    axes.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
    axes.plot(rows.open_mb, places, "|", color="black", markersize=24, markeredgewidth=2,
              label=text("pictures.mapping.opened"))
    names = [f"{name}, {text(f'pictures.mapping.{way}')}" for name in figures for way in ("mapped", "read")]
    name_rows(axes, names, fontsize=9)
    axes.set_xlabel("MB")
    legend_above(axes, 3)
    return figure
