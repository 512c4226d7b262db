"""Pictures of lesson 10: scores with their intervals against chance, how far apart two models score on n questions."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = 1.96  # standard errors to each side of a mean: 95 % of a normal distribution


def score_bars(scores: Mapping[str, tuple[float, float]], chance: Mapping[str, float]) -> Figure:
    """A score in percent a row, with its 95 % interval, and what guessing would score.

    Args:
        scores: name → (score, standard error), both from 0 to 1.
        chance: name → the score of guessing, from 0 to 1.
    """
    names = list(scores)
    figure, (axes,) = subplots(9, 0.5 * len(names) + 1.1)
    rows = range(len(names))
    axes.errorbar([100 * scores[name][0] for name in names], rows, xerr=[100 * INTERVAL * scores[name][1] for name in names],
                  fmt="o", color=COLOURS[0], capsize=4, label=text("show.evaluation.score"))
    axes.plot([100 * chance[name] for name in names], rows, "|", color=COLOURS[1], markersize=16, markeredgewidth=2.5,
              label=text("show.evaluation.chance"))
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-5, 105)
    axes.set_xlabel(text("show.evaluation.percent"))
    axes.grid(axis="x", color="#e5e5e5")
    axes.legend(frameon=False, loc="lower right")
    return figure


def score_spread(better: float, worse: float, sizes: Sequence[int] = (50, 1000)) -> Figure:
    """What two models score on tests of n questions, if the one knows `better` and the other `worse` of all there are.

    A panel for each size; its title says how often the worse one scores at least as high, on questions of its own.

    Args:
        better, worse: shares from 0 to 1 of all questions that there are.
    """
    figure, panels = subplots(9, 3, columns=len(sizes))
    for axes, size in zip(panels, sizes, strict=True):
        ways = {share: _binomial(share, size) for share in (better, worse)}
        for colour, (share, chances) in zip(COLOURS, ways.items(), strict=False):
            axes.fill_between([100 * right / size for right in range(size + 1)], chances, step="mid", color=colour, alpha=0.45,
                              label=f"{100 * share:g} %")
        axes.set_yticks([])
        axes.set_xlim(100 * worse - 25, 100 * better + 25)
        axes.set_xlabel(text("show.evaluation.percent"))
        often = f"{100 * _overtakes(ways[worse], ways[better]):.0f}"
        axes.set_title(text("show.evaluation.overlap", count=f"{size:,}", share=often), fontsize=10.5, linespacing=1.4)
    panels[-1].legend(frameon=False, title=text("show.evaluation.knows"))
    return figure


def _binomial(share: float, size: int) -> list[float]:
    """Chance of 0, 1, …, `size` right answers, each right with probability `share`, which is neither 0 nor 1."""
    return [math.exp(math.lgamma(size + 1) - math.lgamma(right + 1) - math.lgamma(size - right + 1)
                     + right * math.log(share) + (size - right) * math.log1p(-share)) for right in range(size + 1)]


def _overtakes(worse: Sequence[float], better: Sequence[float]) -> float:
    """Chance that the worse model has at least as many right answers."""
    below, total = 0.0, 0.0
    for first, second in zip(worse, better, strict=True):
        below += second
        total += first * below
    return total
