"""Pictures of lesson 12: several models side by side, and a score before and after a training."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def comparison_bars(table: DataFrame) -> Figure:
    """A panel for each measured column of a table with a row for each model: quality, memory, the two speeds.

    Args:
        table: any of the columns bits_per_character, memory_mb, first_token_ms and tokens_per_second; estimated_mb is drawn as
            a line over memory_mb, spread as a whisker on tokens_per_second. A cell without a number is marked.
    """
    import pandas as pd

    titles = {"bits_per_character": "show.capstone.bits", "memory_mb": "show.capstone.memory",
              "first_token_ms": "show.capstone.first", "tokens_per_second": "show.capstone.rate"}
    if "estimated_mb" in table.columns:
        titles["memory_mb"] = "show.capstone.memory_estimated"
    columns = [column for column in titles if column in table.columns]
    figure, panels = subplots(2.6 * len(columns) + 1, 0.45 * len(table) + 1.2, len(columns))
    for colour, column, axes in zip(COLOURS, columns, panels, strict=False):
        values = pd.to_numeric(table[column], errors="coerce")
        spread = table["spread"] if column == "tokens_per_second" and "spread" in table.columns else None
        half = None if spread is None else pd.to_numeric(spread, errors="coerce").fillna(0) / 2
        axes.barh(range(len(table)), values.fillna(0), 0.6, color=colour, xerr=half, ecolor="#555555")
        most = values.max() if values.notna().any() else 1.0
        for place, value in enumerate(values):
            label = text("show.capstone.failed") if pd.isna(value) else f"{value:,.2f}" if most < 10 else f"{value:,.0f}"
            beside = 0.0 if pd.isna(value) else value + (0 if half is None else half.iloc[place])
            axes.text(beside + 0.03 * most, place, label, va="center", fontsize=9)
        if column == "memory_mb" and "estimated_mb" in table.columns:
            for place, value in enumerate(pd.to_numeric(table["estimated_mb"], errors="coerce")):
                axes.plot([value, value], [place - 0.38, place + 0.38], color="black", linewidth=1.5)
        axes.set_yticks(range(len(table)), [str(name) for name in table.index] if axes is panels[0] else [])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.4 * most)
        axes.set_title(text(titles[column]), fontsize=10, linespacing=1.4)
    return figure


def before_and_after(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Two bars for each set of questions, and in the heading the gain with its interval.

    Args:
        parts: name of the set → before, after, gain, low and high, each a share from -1 to 1.
    """
    figure, panels = subplots(4.2 * len(parts), 2.9, len(parts))
    for axes, (name, found) in zip(panels, parts.items(), strict=True):
        values = [found["before"], found["after"]]
        bars = axes.bar([text("show.capstone.before"), text("show.capstone.after")], values, 0.55,
                        color=[COLOURS[-1], COLOURS[0]])
        axes.bar_label(bars, fmt="%.2f", fontsize=10)
        axes.set_ylim(0, 1.12)
        figures = {key: found[key] for key in ("gain", "low", "high")}
        axes.set_title(text("show.capstone.gain", part=name, **figures), fontsize=10)
    panels[0].set_ylabel(text("show.capstone.score"))
    return figure
