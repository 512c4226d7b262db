"""Pictures of lessons 01 and 09: memory, speed and price of a size; the roofline of a machine."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import catalog, decode
from ..runtime import text
from .canvas import COLOURS, explorer, plain_logarithm, subplots

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure

    from ..roofline import Roofline


def memory_bars(model_ids: Sequence[str], precisions: Sequence[str] = ("bf16", "int8", "nf4")) -> Figure:
    """Weights of each model in each precision in GB, against the memory of common machines."""
    figure, (axes,) = subplots(9, 4.2)
    width = 0.8 / len(precisions)
    for offset, precision in enumerate(precisions):
        sizes = [catalog.weight_bytes(model_id, precision) / 1e9 for model_id in model_ids]
        positions = [index + offset * width for index in range(len(model_ids))]
        bars = axes.bar(positions, sizes, width * 0.92, label=precision, color=COLOURS[offset])
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    for gigabytes in (8, 16, 24, 80):
        axes.axhline(gigabytes, color="#999999", linewidth=0.8, linestyle="--")
        axes.text(-0.45, gigabytes, f"{gigabytes} GB", va="bottom", fontsize=8, color="#555555")
    axes.set_yscale("log")
    plain_logarithm(axes.yaxis)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(model_ids))],
                    [catalog.get(model_id).name for model_id in model_ids], rotation=20, ha="right")
    axes.set_ylabel(text("show.weights_gb"))
    axes.set_title(text("show.memory_title"))
    axes.set_xlim(-0.5, len(model_ids))
    axes.legend(frameon=False, loc="upper center", ncols=len(precisions))
    return figure


def speed_lines(devices: Sequence[decode.Device], points: dict[str, tuple[float, float]] | None = None) -> Figure:
    """Most tokens a second against the size of the weights, a line a device; `points`: name → (bytes, tokens a second)."""
    figure, (axes,) = subplots(9, 4.2)
    sizes = [0.05e9, 200e9]
    for colour, device in zip(COLOURS, devices, strict=False):
        held = [size for size in (sizes[0], min(sizes[1], device.memory))]
        axes.plot([size / 1e9 for size in held], [device.bandwidth / size for size in held], color=colour, label=device.name)
    for name, (size, rate) in (points or {}).items():
        axes.plot(size / 1e9, rate, "o", color="black")
        axes.annotate(name, (size / 1e9, rate), textcoords="offset points", xytext=(-8, -14), ha="right", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_logarithm(axes.xaxis)
    plain_logarithm(axes.yaxis)
    axes.set_xlabel(text("show.weights_gb"))
    axes.set_ylabel(text("show.tokens_per_second_bound"))
    axes.set_title(text("show.speed_title"))
    axes.legend(frameon=False)
    return figure


def roofline_chart(roof: Roofline, measured: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """The most that a machine computes against arithmetic intensity, and where the phases of a model stand.

    Args:
        roof: of `decode.roofline`.
        measured: label → (operations a byte, operations a second), black dots under the roof.
    """
    figure, (axes,) = subplots(9, 4.6)
    measured = measured or {}
    places = [phase.intensity for phase in roof.phases] + [intensity for intensity, _ in measured.values()] + [roof.ridge]
    left, right = min(places) / 4, max(places) * 4
    corners = (left, roof.ridge, right)
    axes.plot(corners, [roof.attainable(intensity) / 1e9 for intensity in corners], color="#666666", zorder=1)
    axes.axvline(roof.ridge, color="#bbbbbb", linewidth=0.8, linestyle="--", zorder=0)
    axes.annotate(text("show.roofline.ridge", intensity=f"{roof.ridge:.3g}"), (roof.ridge, 0.02), ha="left", fontsize=9,
                  xycoords=axes.get_xaxis_transform(), xytext=(4, 0), textcoords="offset points", color="#666666")
    for phase in roof.phases:
        point = (phase.intensity, roof.attainable(phase.intensity) / 1e9)
        axes.plot(*point, "o", color=COLOURS[0] if phase.kind == "prefill" else COLOURS[1], zorder=2)
        # prefills are labelled above the roof and decode steps below it, so that neighbours don't meet
        up, ha = (8, "right") if phase.kind == "prefill" else (-14, "left")
        label = text(f"show.roofline.{phase.kind}", size=phase.size, rate=f"{roof.tokens_per_second(phase):,.0f}")
        axes.annotate(label, point, textcoords="offset points", xytext=(8 if ha == "left" else 0, up), fontsize=9, ha=ha)
    for name, (intensity, rate) in measured.items():
        axes.plot(intensity, rate / 1e9, "o", color="black", zorder=2)
        axes.annotate(name, (intensity, rate / 1e9), textcoords="offset points", xytext=(8, -6), fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(top=3 * roof.device.flops / 1e9)
    plain_logarithm(axes.xaxis)
    plain_logarithm(axes.yaxis)
    axes.set_xlabel(text("show.roofline.intensity"))
    axes.set_ylabel(text("show.roofline.rate"))
    axes.set_title(text("show.roofline.title", device=roof.device.name, bandwidth=f"{roof.device.bandwidth / 1e9:,.0f}",
                        rate=f"{roof.device.flops / 1e9:,.0f}"))
    return figure


def cost_picture(billions: float, bits: float, device: decode.Device, price: float) -> Figure:
    """Memory, time a token and price a million tokens of one model size on one device."""
    weight_bytes = billions * 1e9 * bits / 8
    latency = decode.predict(int(billions * 1e9), weight_bytes, device)
    figure, axes = subplots(9, 2.6, columns=3)
    fits = weight_bytes <= device.memory
    bars = (("show.weights_gb", weight_bytes / 1e9, device.memory / 1e9, "show.fits" if fits else "show.too_large"),
            ("show.ms_per_token", latency.per_token * 1e3, 100, "show.reading_pace"),
            ("show.price_per_million", decode.cost_per_million_tokens(latency.per_token, price), None, None))
    for axis, (label, value, limit, note) in zip(axes, bars, strict=True):
        bar = axis.bar([0], [value], 0.5, color=COLOURS[0] if fits else "#bbbbbb")
        axis.bar_label(bar, fmt="%.3g")
        axis.set_title(text(label), fontsize=10)
        axis.set_xticks([])
        axis.set_xlim(-0.8, 0.8)
        axis.set_ylim(0, max(value, limit or 0) * 1.25 or 1)  # a free device: an empty axis
        if limit:
            axis.axhline(limit, color=COLOURS[1], linestyle="--")
            axis.set_xlabel(text(note), fontsize=9, color=COLOURS[1])
    figure.suptitle(text("show.cost_title", billions=f"{billions:g}", bits=f"{bits:g}", device=device.name), fontsize=11)
    return figure


def cost_explorer() -> ipywidgets.Widget:
    """The widget of lesson 01: `cost_picture` for a size, a precision, a device and a price an hour."""
    import ipywidgets

    known = decode.devices()
    style = {"description_width": "9em"}
    return explorer(
        lambda billions, bits, device, price: cost_picture(billions, bits, known[device], price),
        billions=ipywidgets.SelectionSlider(options=[0.135, 0.5, 1, 3, 7, 14, 32, 70], value=7,
                                            description=text("show.billions"), style=style),
        bits=ipywidgets.ToggleButtons(options=[("fp32", 32), ("bf16", 16), ("int8", 8), ("nf4", 4.127)], value=16,
                                      description=text("show.precision"),
                                    style={**style, "button_width": "5em"}),
        device=ipywidgets.Dropdown(options=[(device.name, key) for key, device in known.items()], value="t4",
                                   description=text("show.device"), style=style),
        price=ipywidgets.FloatSlider(value=0.5, min=0.0, max=10.0, step=0.1, description=text("show.price"), style=style,
                                     continuous_update=False))
