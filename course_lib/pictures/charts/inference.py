"""Charts of lessons 01 and 09: memory and decoding speed of models, and the roofline of a machine."""
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ...inference.benchmark import Device
from ...inference.roofline import Roofline
from ...models import cards, catalog
from ...runtime import text
from ..canvas import COLOURS, GREY, PALE, logarithmic, note, subplots


def memory_bars(model_ids: Sequence[str], precisions: Sequence[str] = ("bf16", "int8", "nf4")) -> Figure:
    """Size of the weights (GB) of each model in each precision, with lines at common memory sizes."""
    figure, (axes,) = subplots(9, 4.2)
    width = 0.8 / len(precisions)
    for offset, precision in enumerate(precisions):
        sizes = [catalog.weight_bytes(model_id, precision) / 1e9 for model_id in model_ids]
        positions = [index + offset * width for index in range(len(model_ids))]
        bars = axes.bar(positions, sizes, width * 0.92, label=precision, color=COLOURS[offset])
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    for gigabytes in (8, 16, 24, 80):
        axes.axhline(gigabytes, color=GREY, linewidth=0.8, linestyle="--")
        axes.text(-0.45, gigabytes, f"{gigabytes} GB", va="bottom", fontsize=8, color="#555555")
    logarithmic(axes, "y")
    middles = [index + 0.4 - width / 2 for index in range(len(model_ids))]
    names = [cards.get_card(model_id).name for model_id in model_ids]
    axes.set_xticks(middles, names, rotation=20, ha="right")
    axes.set(xlim=(-0.5, len(model_ids)), ylabel=text("pictures.weights_gb"),
             title=text("pictures.memory_title"))
    axes.legend(frameon=False, loc="upper center", ncols=len(precisions))
    return figure


def speed_lines(devices: Sequence[Device], points: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Bound on tokens per second against size of the weights; `points`: name → (bytes, tokens per second)."""
    figure, (axes,) = subplots(9, 4.2)
    for colour, device in zip(COLOURS, devices, strict=False):
        sizes = (0.05e9, min(200e9, device.memory))
        rates = [device.bandwidth / size for size in sizes]
        axes.plot([size / 1e9 for size in sizes], rates, color=colour, label=device.name)
    for name, (size, rate) in (points or {}).items():
        axes.plot(size / 1e9, rate, "o", color="black")
        note(axes, name, (size / 1e9, rate), (-8, -14), ha="right")
    logarithmic(axes, "xy")
    axes.set(xlabel=text("pictures.weights_gb"), ylabel=text("pictures.tokens_per_second_bound"),
             title=text("pictures.speed_title"))
    axes.legend(frameon=False)
    return figure


def roofline_chart(roof: Roofline, measured: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Attainable operations per second against arithmetic intensity, with a dot for each phase of a model.

    `measured`: label → (operations per byte, operations per second), drawn as black dots.
    """
    figure, (axes,) = subplots(9, 4.6)
    measured = measured or {}
    intensities = [roof.ridge, *(phase.intensity for phase in roof.phases)]
    intensities += [intensity for intensity, _ in measured.values()]
    corners = (min(intensities) / 4, roof.ridge, max(intensities) * 4)
    axes.plot(corners, [roof.attainable(intensity) / 1e9 for intensity in corners], color="#666666", zorder=1)
    axes.axvline(roof.ridge, color=PALE, linewidth=0.8, linestyle="--", zorder=0)
    note(axes, text("pictures.roofline.ridge", intensity=f"{roof.ridge:.3g}"), (roof.ridge, 0.02), (4, 0),
         xycoords=axes.get_xaxis_transform(), color="#666666")
    for phase in roof.phases:
        point = (phase.intensity, roof.attainable(phase.intensity) / 1e9)
        rate = f"{roof.tokens_per_second(phase):,.0f}"
        label = text(f"pictures.roofline.{phase.kind}", size=phase.size, rate=rate)
        # prefills are labelled above the roof and decode steps below it, so that neighbours don't meet
        above = phase.kind == "prefill"
        axes.plot(*point, "o", color=COLOURS[0] if above else COLOURS[1], zorder=2)
        note(axes, label, point, (0, 8) if above else (8, -14), ha="right" if above else "left")
    for name, (intensity, rate) in measured.items():
        axes.plot(intensity, rate / 1e9, "o", color="black", zorder=2)
        note(axes, name, (intensity, rate / 1e9), (8, -6))
    logarithmic(axes, "xy")
    title = text("pictures.roofline.title", device=roof.device.name, rate=f"{roof.device.flops / 1e9:,.0f}",
                 bandwidth=f"{roof.device.bandwidth / 1e9:,.0f}")
    axes.set(xlim=(corners[0], corners[-1]), xlabel=text("pictures.roofline.intensity"),
             ylabel=text("pictures.roofline.rate"), title=title)
    axes.set_ylim(top=3 * roof.device.flops / 1e9)
    return figure
