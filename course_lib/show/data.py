"""Pictures of lesson 04: losses of repeated runs, the funnel of the filters, how a curriculum opens."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_losses(losses: Mapping[str, Sequence[float]], before: float | None = None) -> Figure:
    """Held-out losses of runs that differ in their seed: a row a kind of training, a dot a seed, a bar from best to worst.

    Args:
        losses: label → the loss with seed 0, 1, …
        before: the loss of the untrained model, drawn as a line.
    """
    figure, (axes,) = subplots(8, 0.5 * len(losses) + 1.3)
    for row, values in enumerate(losses.values()):
        axes.plot([min(values), max(values)], [row, row], color="#bbbbbb", linewidth=6, solid_capstyle="round", zorder=1)
        for seed, value in enumerate(values):
            label = text("show.seed", seed=seed) if row == 0 else None
            axes.scatter([value], [row], s=45, color=COLOURS[seed], label=label, zorder=2)
    if before is not None:
        axes.axvline(before, color="#666666", linestyle="--", linewidth=1, label=text("show.before_training"))
    axes.set_yticks(range(len(losses)), list(losses))
    axes.set_ylim(len(losses) - 0.5, -0.5)
    axes.set_xlabel(text("show.heldout_loss"))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def filter_funnel(stages: Sequence[tuple[str, int, int]]) -> Figure:
    """What each stage of a filter leaves: bars of the good texts and of the others.

    Args:
        stages: (name, good texts left, others left) in the order of the stages; names as in `FilterReport.funnel`, and
            "duplicates".
    """
    figure, (axes,) = subplots(8, 0.42 * len(stages) + 1.2)
    rows = range(len(stages))
    good, others = [stage[1] for stage in stages], [stage[2] for stage in stages]
    bars = axes.barh(rows, good, color=COLOURS[0], label=text("show.good_texts"))
    axes.bar_label(bars, label_type="center", color="white", fontsize=9)
    bars = axes.barh(rows, others, left=good, color=COLOURS[1], label=text("show.planted_texts"))
    axes.bar_label(bars, padding=3, fontsize=9)
    axes.set_yticks(rows, [text(f"show.stage.{stage[0]}") for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel(text("show.texts_left"))
    axes.legend(frameon=False, loc="lower right")
    return figure


def pacing_curves(total_steps: int, roots: Sequence[float] = (0.5, 1, 2), start: float = 0.2) -> Figure:
    """Share of the samples in use at each training step, a curve for each root p of the pacing function."""
    from ..data import curriculum_weights

    figure, (axes,) = subplots(7, 3.2)
    samples = range(1000)
    for colour, root in zip(COLOURS, roots, strict=False):
        shares = [float((curriculum_weights(samples, step, total_steps=total_steps, start=start, root=root) > 0).float().mean())
                  for step in range(total_steps + 1)]
        axes.plot(range(total_steps + 1), shares, color=colour, marker="o", markersize=3, label=f"p = {root:g}")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(text("show.training_step"))
    axes.set_ylabel(text("show.share_open"))
    axes.legend(frameon=False, loc="lower right")
    return figure
