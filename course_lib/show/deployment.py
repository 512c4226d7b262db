"""Pictures of lesson 08: where rounding changes a token, what mapping a file saves, a model on two processors."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, plain_logarithm, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def near_ties(margins: Sequence[float], parted: Mapping[str, Sequence[float]]) -> Figure:
    """How clearly a model preferred its token over the second best: a grey dot for each token, the parted ones in colour.

    Args:
        margins: differences of the two largest logits, one for each token of the reference.
        parted: runtime → the margins of the tokens at which it chose differently.
    """
    figure, (axes,) = subplots(9, 0.5 * len(parted) + 1.8)
    least = 1e-3  # a margin of zero has no place on a logarithmic axis
    axes.scatter([max(margin, least) for margin in margins], [0] * len(margins), s=22, color="#999999", alpha=0.6)
    for row, (colour, values) in enumerate(zip(COLOURS, parted.values(), strict=False), start=1):
        axes.scatter([max(margin, least) for margin in values], [row] * len(values), s=40, color=colour)
    axes.set_yticks(range(len(parted) + 1), [text("show.near_ties.all"), *parted])
    axes.set_ylim(len(parted) + 0.6, -0.6)
    axes.set_xscale("log")
    plain_logarithm(axes.xaxis)
    axes.set_xlabel(text("show.near_ties.margin"))
    return figure


def mapping_bars(figures: Mapping[str, pd.DataFrame]) -> Figure:
    """Memory of a process that opened a file and used it: its own part, and the part that belongs to the file.

    Args:
        figures: file → what `deploy.memory_map_figures` found, with the rows "mapped" and "read".
    """
    rows = [(f"{name}, {text(f'show.mapping.{way}')}", table.loc[way]) for name, table in figures.items()
            for way in ("mapped", "read")]
    own = [row.used_mb if row.isna().anonymous_mb else row.anonymous_mb for _, row in rows]
    shared = [max(row.used_mb - mine, 0) for (_, row), mine in zip(rows, own, strict=True)]
    figure, (axes,) = subplots(9, 0.62 * len(rows) + 1.2)
    axes.barh(range(len(rows)), own, 0.6, color=COLOURS[1], label=text("show.mapping.own"))
    axes.barh(range(len(rows)), shared, 0.6, left=own, color=COLOURS[0], label=text("show.mapping.file"))
    for place, (mine, theirs) in enumerate(zip(own, shared, strict=True)):
        axes.text(mine / 2, place, f"{mine:.0f}", ha="center", va="center", color="white", fontsize=9)
        if theirs > 0.1 * (mine + theirs):
            axes.text(mine + theirs / 2, place, f"{theirs:.0f}", ha="center", va="center", color="white", fontsize=9)
    axes.plot([row.open_mb for _, row in rows], range(len(rows)), "|", color="black", markersize=24, markeredgewidth=2,
              label=text("show.mapping.opened"))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("MB")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def layer_split(rates: Sequence[float], fitting: int) -> Figure:
    """Tokens a second against the number of layers on the GPU; what is beyond its memory is grey.

    Args:
        rates: with 0, 1, … layers there.
        fitting: the most layers that its memory holds.
    """
    figure, (axes,) = subplots(9, 3.6)
    counts = range(len(rates))
    axes.plot(counts[fitting:], rates[fitting:], "o-", color="#bbbbbb", markersize=4, label=text("show.split.beyond"))
    axes.plot(counts[:fitting + 1], rates[:fitting + 1], "o-", color=COLOURS[0], markersize=4, label=text("show.split.fits"))
    axes.annotate(text("show.split.point", layers=fitting, rate=f"{rates[fitting]:.1f}"), (fitting, rates[fitting]),
                  textcoords="offset points", xytext=(-8, 8), ha="right", fontsize=10)
    axes.set_ylim(0, 1.1 * max(rates))
    axes.set_xlabel(text("show.split.layers"))
    axes.set_ylabel(text("show.split.rate"))
    axes.legend(frameon=False, loc="upper left")
    return figure
