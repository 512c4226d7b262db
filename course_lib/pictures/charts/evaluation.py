"""Charts of lessons 10 and 12: scores with intervals, spread of scores, models compared, gains."""
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from ...runtime import text
from ..canvas import COLOURS, name_rows, subplots

INTERVAL = 1.96  # standard errors to each side of a mean: 95 % of a normal distribution
MEASURES = {"bits_per_character": "pictures.capstone.bits", "memory_mb": "pictures.capstone.memory",
            "first_token_ms": "pictures.capstone.first", "tokens_per_second": "pictures.capstone.rate"}


def score_bars(scores: Mapping[str, tuple[float, float]], chance: Mapping[str, float]) -> Figure:
    """Scores in percent with 95 % intervals, beside the scores of guessing.

    `scores`: name → (score, standard error); `chance`: name → score of guessing; all from 0 to 1.
    """
    figure, (axes,) = subplots(9, 0.5 * len(scores) + 1.1)
    rows = range(len(scores))
    percent = [100 * score for score, _ in scores.values()]
    errors = [100 * INTERVAL * error for _, error in scores.values()]
    axes.errorbar(percent, rows, xerr=errors, fmt="o", color=COLOURS[0], capsize=4,
                  label=text("pictures.evaluation.score"))
    axes.plot([100 * chance[name] for name in scores], rows, "|", color=COLOURS[1], markersize=16,
              markeredgewidth=2.5, label=text("pictures.evaluation.chance"))
    name_rows(axes, list(scores))
    axes.set(xlim=(-5, 105), ylim=(len(scores) - 0.4, -0.6), xlabel=text("pictures.evaluation.percent"))
    axes.grid(axis="x", color="#e5e5e5")
    axes.legend(frameon=False, loc="lower right")
    return figure


def score_spread(better: float, worse: float, sizes: Sequence[int] = (50, 1000)) -> Figure:
    """Score distributions of two models that know these shares of all questions; a panel per test size."""
    figure, panels = subplots(9, 3, columns=len(sizes))
    for axes, size in zip(panels, sizes, strict=True):
        percent = [100 * right / size for right in range(size + 1)]
        chances = {share: binom.pmf(range(size + 1), size, share) for share in (better, worse)}
        for colour, (share, curve) in zip(COLOURS, chances.items(), strict=False):
            label = f"{100 * share:g} %"
            axes.fill_between(percent, curve, step="mid", color=colour, alpha=0.45, label=label)
        ends = (100 * worse - 25, 100 * better + 25)
        axes.set(yticks=[], xlim=ends, xlabel=text("pictures.evaluation.percent"))
        overtakes = (chances[worse] * chances[better].cumsum()).sum()  # P(worse scores at least as high)
        title = text("pictures.evaluation.overlap", count=f"{size:,}", share=f"{100 * overtakes:.0f}")
        axes.set_title(title, fontsize=10.5, linespacing=1.4)
    panels[-1].legend(frameon=False, title=text("pictures.evaluation.knows"))
    return figure


def comparison_bars(table: pd.DataFrame) -> Figure:
    """Bars that compare models: a row for each model, a panel for each measured column of `table`.

    The columns are any of bits_per_character, memory_mb (with estimated_mb as a line), first_token_ms and
    tokens_per_second (with spread as an error bar). A cell without a number is labelled as failed.
    """
    columns = [column for column in MEASURES if column in table.columns]
    numbers = table.apply(pd.to_numeric, errors="coerce")
    figure, panels = subplots(2.6 * len(columns) + 1, 0.45 * len(table) + 1.2, len(columns))
    for colour, column, axes in zip(COLOURS, columns, panels, strict=False):
        title = MEASURES[column]
        spread = numbers.get("spread") if column == "tokens_per_second" else None
        whiskers = None if spread is None else spread.fillna(0) / 2
        _measured_bars(axes, numbers[column], whiskers, colour)
        if column == "memory_mb" and "estimated_mb" in numbers:
            title = "pictures.capstone.memory_estimated"
            for row, value in enumerate(numbers["estimated_mb"]):
                axes.plot([value, value], [row - 0.38, row + 0.38], color="black", linewidth=1.5)
        axes.set_title(text(title), fontsize=10, linespacing=1.4)
        name_rows(axes, list(map(str, table.index)))
        if axes is not panels[0]:
            axes.set_yticklabels([])
    return figure


def _measured_bars(axes: Axes, values: pd.Series, whiskers: pd.Series | None, colour: str) -> None:
    """Draw a bar and its number for each value; NaN is labelled as failed."""
    axes.barh(range(len(values)), values.fillna(0), 0.6, color=colour, xerr=whiskers, ecolor="#555555")
    most = values.max() if values.notna().any() else 1.0
    ends = (values if whiskers is None else values + whiskers).fillna(0)
    for row, (value, end) in enumerate(zip(values, ends, strict=True)):
        label = f"{value:,.2f}" if most < 10 else f"{value:,.0f}"
        words = text("pictures.capstone.failed") if pd.isna(value) else label
        axes.text(end + 0.03 * most, row, words, va="center", fontsize=9)
    axes.set_xlim(0, 1.4 * most)


def before_and_after(sets: Mapping[str, Mapping[str, float]]) -> Figure:
    """Scores before and after training; `sets`: name → before, after, gain, low, high (shares)."""
    figure, panels = subplots(4.2 * len(sets), 2.9, len(sets))
    names = [text("pictures.capstone.before"), text("pictures.capstone.after")]
    for axes, (name, scores) in zip(panels, sets.items(), strict=True):
        bars = axes.bar(names, [scores["before"], scores["after"]], 0.55, color=[COLOURS[-1], COLOURS[0]])
        axes.bar_label(bars, fmt="%.2f", fontsize=10)
        axes.set_ylim(0, 1.12)
        interval = {key: scores[key] for key in ("gain", "low", "high")}
        axes.set_title(text("pictures.capstone.gain", part=name, **interval), fontsize=10)
    panels[0].set_ylabel(text("pictures.capstone.score"))
    return figure
