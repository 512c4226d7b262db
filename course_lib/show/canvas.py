"""What every picture and widget of the course uses: axes, the font, colours, the static picture beside a widget."""
from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1661f", "#3d8b4f", "#8a4fa3", "#666666")


def use_korean_font() -> None:
    """Make matplotlib use NanumGothic (from the koreanize-matplotlib package), which has Latin and Korean glyphs."""
    import matplotlib
    from matplotlib import font_manager

    # the package's own import needs distutils, which Python 3.12 dropped, so we only take its fonts
    home = Path(importlib.util.find_spec("koreanize_matplotlib").submodule_search_locations[0])
    known = {font.name for font in font_manager.fontManager.ttflist}
    if "NanumGothic" not in known:
        for style in ("", "Bold"):
            font_manager.fontManager.addfont(home / "fonts" / f"NanumGothic{style}.ttf")
    matplotlib.rcParams.update({"font.family": "NanumGothic", "axes.unicode_minus": False, "axes.spines.top": False,
                                "axes.spines.right": False, "figure.dpi": 90})


def subplots(width: float = 8, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, and the axes of its columns; nothing shows it yet."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    pyplot.close(figure)  # the cell that returns it shows it, once
    return figure, list(axes[0])


def plain_logarithm(axis) -> None:
    """Ticks such as 0.1, 1, 10: NanumGothic has no minus sign for exponents."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def explorer(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.Widget:
    """A picture under its controls; moving one draws anew with `draw(**values)`."""
    import ipywidgets

    def current() -> bytes:
        return png(draw(**{name: control.value for name, control in controls.items()}))

    image = ipywidgets.Image(value=current(), format="png")

    def redraw(_: dict) -> None:
        image.value = current()

    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox([*controls.values(), image])


def display_with_fallback(box: ipywidgets.Widget) -> None:
    """Display a widget of `explorer` together with its picture, for viewers that have no kernel."""
    from IPython.display import display

    picture = base64.b64encode(box.children[-1].value).decode()
    display({**box._repr_mimebundle_(), "image/png": picture}, raw=True)
