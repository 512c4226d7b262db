"""Charts of lesson 04: losses of repeated runs, stages of a filter, pacing of a curriculum."""
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ...runtime import text
from ..canvas import COLOURS, PALE, legend_above, name_rows, subplots


def run_losses(losses: Mapping[str, Sequence[float]], before: float | None = None) -> Figure:
    """Held-out losses: a row for each label, a dot for each seed 0, 1, …; `before`: loss before training."""
    figure, (axes,) = subplots(8, 0.5 * len(losses) + 1.3)
    for row, values in enumerate(losses.values()):
        ends = [min(values), max(values)]
        axes.plot(ends, [row, row], color=PALE, linewidth=6, solid_capstyle="round", zorder=1)
        for seed, value in enumerate(values):
            label = text("pictures.seed", seed=seed) if row == 0 else None
            axes.scatter([value], [row], s=45, color=COLOURS[seed], label=label, zorder=2)
    if before is not None:
        label = text("pictures.before_training")
        axes.axvline(before, color="#666666", linestyle="--", linewidth=1, label=label)
    name_rows(axes, list(losses))
    axes.set(ylim=(len(losses) - 0.5, -0.5), xlabel=text("pictures.heldout_loss"))
    legend_above(axes, 3)
    return figure


def filter_funnel(stages: Sequence[tuple[str, int, int]]) -> Figure:
    """Bars of the good and the other texts that are left after each stage of a filter.

    `stages`: (stage, good texts left, others left); names as in `FilterReport.funnel`, or "duplicates".
    """
    figure, (axes,) = subplots(8, 0.42 * len(stages) + 1.2)
    names, good, others = zip(*stages, strict=True)
    rows = range(len(stages))
    bars = axes.barh(rows, good, color=COLOURS[0], label=text("pictures.good_texts"))
    axes.bar_label(bars, label_type="center", color="white", fontsize=9)
    bars = axes.barh(rows, others, left=good, color=COLOURS[1], label=text("pictures.planted_texts"))
    axes.bar_label(bars, padding=3, fontsize=9)
    name_rows(axes, [text(f"pictures.stage.{name}") for name in names])
    axes.set_xlabel(text("pictures.texts_left"))
    axes.legend(frameon=False, loc="lower right")
    return figure


def pacing_curves(total_steps: int, roots: Sequence[float] = (0.5, 1, 2), start: float = 0.2) -> Figure:
    """Share of the samples in use at each step, one curve for each root p of the pacing function."""
    from ...data.curriculum import curriculum_weights

    figure, (axes,) = subplots(7, 3.2)
    steps = range(total_steps + 1)
    for colour, root in zip(COLOURS, roots, strict=False):
        weights = [curriculum_weights(range(1000), step, total_steps=total_steps, start=start, root=root)
                   for step in steps]
        shares = [float((row > 0).float().mean()) for row in weights]
        axes.plot(steps, shares, color=colour, marker="o", markersize=3, label=f"p = {root:g}")
    axes.set(ylim=(0, 1.05), xlabel=text("pictures.training_step"), ylabel=text("pictures.share_open"))
    axes.legend(frameon=False, loc="lower right")
    return figure
