"""Pictures of lesson 05: soft targets, what a layer does, how close students come."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, explorer, plain_logarithm, subplots

if TYPE_CHECKING:
    import ipywidgets
    import torch
    from matplotlib.figure import Figure


def layer_influences(influence: Sequence[float], kept: Sequence[int]) -> Figure:
    """Bars of how much each layer changes its input; the kept ones in colour."""
    figure, (axes,) = subplots(9, 3.2)
    colours = [COLOURS[0] if index in kept else "#bbbbbb" for index in range(len(influence))]
    axes.bar(range(len(influence)), influence, color=colours)
    axes.set_yscale("log")
    plain_logarithm(axes.yaxis)
    axes.set_xlabel(text("show.layer"))
    axes.set_ylabel(text("show.layer_influence"))
    axes.set_title(text("show.layers_kept", kept=len(kept), all=len(influence)))
    return figure


def distillation_terms(
    tokenizer, teacher_logits: torch.Tensor, student_logits: torch.Tensor, label: int, temperature: float = 2.0,
    alpha: float = 0.5, top: int = 8,
) -> Figure:
    """The two distributions at one position at a temperature, and the loss by its parts; logits have the shape (V,)."""
    figure, (left, right) = subplots(10, 3.4, columns=2)
    best = teacher_logits.topk(top).indices
    log_t, log_q = ((logits.float() / temperature).log_softmax(-1) for logits in (teacher_logits, student_logits))
    for offset, (log_p, key) in enumerate(((log_t, "show.teacher"), (log_q, "show.student"))):
        left.barh([index + 0.4 * offset for index in range(top)], log_p[best].exp().tolist(), 0.4, color=COLOURS[offset],
                  label=text(key))
    left.set_yticks([index + 0.2 for index in range(top)], [repr(tokenizer.decode([token]))[1:-1] for token in best.tolist()])
    left.invert_yaxis()
    left.set_xlabel(text("show.probability"))
    left.set_title(text("show.at_temperature", temperature=f"{temperature:g}"))
    left.legend(frameon=False)
    soft = float((log_t.exp() * (log_t - log_q)).sum())
    hard = -float(student_logits.float().log_softmax(-1)[label])
    parts = {"show.soft_term": alpha * temperature**2 * soft, "show.hard_term": (1 - alpha) * hard}
    bars = right.bar([text(key) for key in parts], list(parts.values()), 0.5, color=[COLOURS[2], COLOURS[3]])
    right.bar_label(bars, fmt="%.2f")
    right.set_ylabel(text("show.nats"))
    right.set_ylim(0, 1.2 * max(*parts.values(), 0.1))
    right.set_title(text("show.loss_parts", alpha=f"{alpha:g}", loss=f"{sum(parts.values()):.2f}"))
    return figure


def distillation_explorer(
    tokenizer, teacher_logits: torch.Tensor, student_logits: torch.Tensor, label: int,
) -> ipywidgets.Widget:
    """The widget of lesson 05: `distillation_terms` for a temperature and an alpha."""
    import ipywidgets

    return explorer(
        lambda temperature, alpha: distillation_terms(tokenizer, teacher_logits, student_logits, label, temperature, alpha),
        temperature=ipywidgets.FloatSlider(value=2.0, min=0.5, max=8.0, step=0.5, description="τ", continuous_update=False),
        alpha=ipywidgets.FloatSlider(value=0.5, min=0.0, max=1.0, step=0.1, description="α", continuous_update=False))


def student_bars(readings: Mapping[str, Sequence[float]]) -> Figure:
    """KL to the teacher by way of training, a bar a way, a dot a seed; `readings`: name → one value a seed."""
    figure, (axes,) = subplots(8, 3.4)
    for place, values in enumerate(readings.values()):
        mean = sum(values) / len(values)
        axes.bar(place, mean, 0.6, color=COLOURS[place % len(COLOURS)])
        axes.plot([place] * len(values), values, "o", color="black", markersize=4)
        axes.annotate(f"{mean:.2f}", (place, mean), textcoords="offset points", xytext=(18, 4), fontsize=9)
    axes.set_xticks(range(len(readings)), list(readings))
    axes.set_ylabel(text("show.kl_to_teacher"))
    axes.set_title(text("show.students_title"))
    return figure


def distillation_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """KL and cross-entropy on held-out text over the steps; `curves`: way of training → {"step", "kl", "loss"}."""
    figure, panels = subplots(10, 3.4, columns=2)
    for axes, quantity, label in zip(panels, ("kl", "loss"), ("show.kl_to_teacher", "show.held_out_loss"), strict=True):
        for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(curve["step"], curve[quantity], color=colour, label=text(f"show.trained_on.{name}"))
        axes.set_xlabel(text("show.step"))
        axes.set_ylabel(text(label))
    panels[0].legend(frameon=False)
    return figure


def growth_lines(readings: Sequence[Mapping[str, object]]) -> Figure:
    """Seconds and peak memory of a training step against the length of its sequence; `readings` of `bench_training.growth`."""
    figure, panels = subplots(10, 3.6, columns=2)
    for axes, quantity, scale, label in zip(panels, ("seconds", "bytes"), (1, 1e9), ("show.seconds_a_step", "show.extra_peak"),
                                            strict=True):
        for colour, step in zip(COLOURS, dict.fromkeys(row["step"] for row in readings), strict=False):
            points = [(row["tokens"], row[quantity] / scale) for row in readings if row["step"] == step]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=text(f"show.step.{step}"))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_logarithm(axes.xaxis)
        plain_logarithm(axes.yaxis)
        axes.set_xlabel(text("show.tokens_in_sequence"))
        axes.set_ylabel(text(label))
    panels[0].legend(frameon=False)
    return figure
