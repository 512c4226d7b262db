"""Charts of lessons 05, 06 and 11: distillation, memory of a training step, padding, losses."""
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ...models.memory import MemoryEstimate
from ...runtime import show_progress, text
from ..canvas import COLOURS, PALE, logarithmic, name_rows, note, subplots


def layer_influences(influence: Sequence[float], kept: Sequence[int]) -> Figure:
    """Bars of the influence of each layer, that is how much it changes its input; kept layers in colour."""
    figure, (axes,) = subplots(9, 3.2)
    colours = [COLOURS[0] if index in kept else PALE for index in range(len(influence))]
    axes.bar(range(len(influence)), influence, color=colours)
    logarithmic(axes, "y")
    axes.set(xlabel=text("pictures.layer"), ylabel=text("pictures.layer_influence"),
             title=text("pictures.layers_kept", kept=len(kept), all=len(influence)))
    return figure


def student_bars(readings: Mapping[str, Sequence[float]]) -> Figure:
    """Mean KL to the teacher for each way of training, with a dot for each seed; `readings`: way → values."""
    figure, (axes,) = subplots(8, 3.4)
    for place, values in enumerate(readings.values()):
        mean = sum(values) / len(values)
        axes.bar(place, mean, 0.6, color=COLOURS[place % len(COLOURS)])
        axes.plot([place] * len(values), values, "o", color="black", markersize=4)
        note(axes, f"{mean:.2f}", (place, mean), (18, 4))
    axes.set_xticks(range(len(readings)), list(readings))
    axes.set(ylabel=text("pictures.kl_to_teacher"), title=text("pictures.students_title"))
    return figure


def distillation_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """KL and cross-entropy (nats) on held-out text; `curves`: way of training → {"step", "kl", "loss"}."""
    figure, panels = subplots(10, 3.4, columns=2)
    quantities = {"kl": "pictures.kl_to_teacher", "loss": "pictures.held_out_loss"}
    for axes, (quantity, label) in zip(panels, quantities.items(), strict=True):
        for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(curve["step"], curve[quantity], color=colour, label=text(f"pictures.trained_on.{name}"))
        axes.set(xlabel=text("pictures.step"), ylabel=text(label))
    panels[0].legend(frameon=False)
    return figure


def growth_lines(readings: Sequence[Mapping[str, object]]) -> Figure:
    """Seconds and extra peak memory of a step against tokens; `readings`: `growth` of bench/training.py."""
    figure, panels = subplots(10, 3.6, columns=2)
    quantities = (("seconds", 1, "pictures.seconds_a_step"), ("bytes", 1e9, "pictures.extra_peak"))
    for axes, (quantity, scale, label) in zip(panels, quantities, strict=True):
        for colour, step in zip(COLOURS, dict.fromkeys(row["step"] for row in readings), strict=False):
            points = [(row["tokens"], row[quantity] / scale) for row in readings if row["step"] == step]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=text(f"pictures.step.{step}"))
        logarithmic(axes, "x", base=2)
        logarithmic(axes, "y")
        axes.set(xlabel=text("pictures.tokens_in_sequence"), ylabel=text(label))
    panels[0].legend(frameon=False)
    return figure


def training_memory(estimates: dict[str, MemoryEstimate], measured: dict[str, int]) -> Figure:
    """Estimated memory (MB) of each training method by component, beside its measured peak (bytes)."""
    figure, (axes,) = subplots(9, 4.2)
    upper = [row - 0.21 for row in range(len(estimates))]
    lower = [row + 0.21 for row in range(len(estimates))]
    peaks = [size / 1e6 for size in measured.values()]
    axes.barh(lower, peaks, 0.38, color=PALE, label=text("pictures.training.measured"))
    components = {name: [getattr(estimate, name) for estimate in estimates.values()]
                  for name in ("weights", "adapters", "optimizer")}
    # activations and gradients are never both held in full
    components["activations"] = [max(row.activations, row.gradients) for row in estimates.values()]
    ends = [0.0] * len(estimates)
    for colour, (name, counts) in zip(COLOURS, components.items(), strict=False):
        sizes = [count / 1e6 for count in counts]
        axes.barh(upper, sizes, 0.38, left=ends, color=colour, label=text(f"pictures.training.{name}"))
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, megabytes in zip(upper + lower, ends + peaks, strict=True):
        axes.text(megabytes, place, f" {megabytes:,.0f}", va="center", fontsize=9)
    name_rows(axes, list(estimates))
    axes.set(xlim=(0, 1.1 * max(*ends, *peaks)), xlabel="MB", title=text("pictures.training.title"))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def wasted_tokens(shares: dict[str, float]) -> Figure:
    """Percentage of computed positions that are padding; `shares`: way to make batches → 0 to 1."""
    figure, (axes,) = subplots(8, 2.6)
    bars = axes.barh(list(shares), [100 * share for share in shares.values()], 0.6, color=COLOURS[1])
    axes.bar_label(bars, fmt=" %.1f %%", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel=text("pictures.training.waste"))
    return figure


class LossPlot:
    """Plot of the training loss: `finetune(..., on_step=plot)` fills it, `plot.picture()` draws it.

    In an interactive notebook it is redrawn at every step. `runs` holds {step: loss} of each run; a run that
    resumes from a checkpoint repeats some steps, and both losses of such a step are drawn.
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
        """Draw the losses so far; `held_out` adds losses on held-out questions as {step: loss}."""
        figure, (axes,) = subplots(8, 3.4)
        for run in self.runs[:-1]:
            axes.plot(list(run), list(run.values()), "x", color=COLOURS[4], zorder=3,
                      label=text("pictures.training.interrupted"))
        for run in self.runs[-1:]:
            losses = {step: loss for past in self.runs for step, loss in past.items() if step < min(run)}
            losses |= run
            axes.plot(list(losses), list(losses.values()), "o-", color=COLOURS[0], markersize=4,
                      label=text("pictures.training.loss"))
        if held_out:
            axes.plot(list(held_out), list(held_out.values()), "s", color=COLOURS[1], markersize=8,
                      label=text("pictures.training.held_out"))
            for step, loss in held_out.items():
                note(axes, f"{loss:.2f}", (step, loss), (0, 8), ha="center")
        axes.set(xlabel=text("pictures.step"), ylabel=text("pictures.nats"))
        axes.margins(y=0.15)
        axes.legend(frameon=False, fontsize=9)
        return figure
