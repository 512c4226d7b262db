"""Shared helpers of all pictures and widgets: figures, axes, labels, colours, PNG files."""
from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import ipywidgets
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLOURS = ("#1f5fa8", "#d1661f", "#3d8b4f", "#8a4fa3", "#666666")
PALE = "#bbbbbb"
GREY = "#999999"


def subplots(width: float = 8, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure of a size in inches with `columns` axes side by side, without displaying it."""
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    pyplot.close(figure)  # else a notebook shows the figure twice
    return figure, list(axes[0])


def name_rows(axes: Axes, names: Sequence[str], **style: object) -> None:
    """Label rows 0, 1, … of a picture and put row 0 at the top."""
    axes.set_yticks(range(len(names)), names, **style)
    axes.invert_yaxis()


def legend_above(axes: Axes, columns: int) -> None:
    """Put the legend above the axes, with its entries in `columns` columns."""
    axes.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def note(axes: Axes, words: str, point: tuple[float, float], offset: tuple[float, float], **style) -> None:
    """Write `words` beside a data point, at a distance of `offset` = (x, y) typographic points."""
    axes.annotate(words, point, xytext=offset, textcoords="offset points", **{"fontsize": 9, **style})


def logarithmic(axes: Axes, directions: str, base: int = 10) -> None:
    """Make the axes in `directions` ("x", "y" or "xy") logarithmic, with ticks such as 0.1, 1, 10."""
    for direction in directions:
        getattr(axes, f"set_{direction}scale")("log", base=base)
        axis = getattr(axes, f"{direction}axis")
        # the font NanumGothic lacks the minus sign of exponents
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def token_text(tokenizer, token: int) -> str:
    """Decode one token; control characters such as line ends are escaped as in `repr`."""
    return repr(tokenizer.decode([token]))[1:-1]


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def explorer(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.Widget:
    """Build a widget: controls above the picture `draw(**values)`, which is redrawn at every change."""
    image = ipywidgets.Image(format="png")

    def redraw(_: object = None) -> None:
        image.value = png(draw(**{name: control.value for name, control in controls.items()}))

    redraw()
    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox([*controls.values(), image])


def display_with_fallback(box: ipywidgets.Widget) -> None:
    """Display a widget of `explorer` together with its current picture, for viewers without a kernel."""
    from IPython.display import display

    picture = base64.b64encode(box.children[-1].value).decode()
    display({**box._repr_mimebundle_(), "image/png": picture}, raw=True)
