"""Pictures of lesson 06: memory of a training step by part, and the share of padding in batches."""
from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime import show_progress, text
from .canvas import COLOURS, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..memory import MemoryEstimate


def training_memory(estimates: dict[str, MemoryEstimate], measured: dict[str, int]) -> Figure:
    """A predicted bar of each method by part, in MB, beside its measured peak (bytes).

    Gradients and activations are one part, the larger of both, since they are never held in full together.
    """
    figure, (axes,) = subplots(9, 4.2)
    axes.barh([index + 0.21 for index in range(len(measured))], [size / 1e6 for size in measured.values()], 0.38,
              color="#bbbbbb", label=text("show.training.measured"))
    names = ("weights", "adapters", "optimizer", "activations")
    left = [0.0] * len(estimates)
    for colour, name in zip(COLOURS, names, strict=False):
        sizes = [max(part.activations, part.gradients) if name == "activations" else getattr(part, name)
                 for part in estimates.values()]
        axes.barh([index - 0.21 for index in range(len(sizes))], [size / 1e6 for size in sizes], 0.38,
                  left=[start / 1e6 for start in left], color=colour, label=text(f"show.training.{name}"))
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for index, (guess, real) in enumerate(zip(left, measured.values(), strict=True)):
        for size, place in ((guess, index - 0.21), (real, index + 0.21)):
            axes.text(size / 1e6, place, f" {size / 1e6:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.invert_yaxis()
    axes.set_xlabel("MB")
    axes.set_xlim(0, 1.1 * max(*left, *measured.values()) / 1e6)
    axes.set_title(text("show.training.title"))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def wasted_tokens(shares: dict[str, float]) -> Figure:
    """Of all positions that are computed, the share that is padding, for each way to make batches."""
    figure, (axes,) = subplots(8, 2.6)
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], 0.6, color=COLOURS[1])
    axes.bar_label(bars, fmt=" %.1f %%", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(text("show.training.waste"))
    return figure


class LossPlot:
    """The loss of each training step, drawn while it falls: `finetune(..., on_step=plot)`, then `plot.picture()`. Lesson 11.

    In a notebook that somebody watches the picture grows with every step; elsewhere nothing is shown until `picture`. A run
    that goes on from a checkpoint takes some steps again: both readings are drawn.

    Attributes:
        runs: for each run its steps with their losses, {step: loss}.
    """

    def __init__(self) -> None:
        self.runs: list[dict[int, float]] = []
        self._display = None

    def __call__(self, step: int, loss: float) -> None:
        if not self.runs or step <= max(self.runs[-1]):
            self.runs.append({})
        self.runs[-1][step] = loss
        if show_progress():
            self._update()

    def _update(self) -> None:
        from IPython.display import display

        if self._display is None:
            self._display = display(self.picture(), display_id=True)
        elif self._display:
            self._display.update(self.picture())

    def picture(self, held_out: dict[int, float] | None = None) -> Figure:
        """The losses so far, and those on held-out questions, {step: loss}."""
        figure, (axes,) = subplots(8, 3.4)
        for run in self.runs[:-1]:
            axes.plot(list(run), list(run.values()), "x", color=COLOURS[4], label=text("show.training.interrupted"), zorder=3)
        for run in self.runs[-1:]:
            whole = {step: loss for earlier in self.runs for step, loss in earlier.items() if step < min(run)} | run
            axes.plot(list(whole), list(whole.values()), "o-", color=COLOURS[0], markersize=4, label=text("show.training.loss"))
        if held_out:
            axes.plot(list(held_out), list(held_out.values()), "s", color=COLOURS[1], markersize=8,
                      label=text("show.training.held_out"))
            for step, loss in held_out.items():
                axes.annotate(f"{loss:.2f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=9)
        axes.set_xlabel(text("show.step"))
        axes.set_ylabel(text("show.nats"))
        axes.margins(y=0.15)
        axes.legend(frameon=False, fontsize=9)
        return figure
