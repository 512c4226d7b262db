"""Pictures of lesson 02: the next token's distribution, tokens a character."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, explorer, subplots

if TYPE_CHECKING:
    import ipywidgets
    import pandas as pd
    import torch
    from matplotlib.figure import Figure


def next_tokens(tokenizer, logits: torch.Tensor, temperatures: Sequence[float] = (0.5, 1.0, 2.0), top: int = 10) -> Figure:
    """Probabilities of the likeliest next tokens at several temperatures; `logits` has the shape (vocabulary,)."""
    figure, axes = subplots(10, 3.4, columns=len(temperatures))
    best = logits.topk(top).indices
    labels = [repr(tokenizer.decode([token]))[1:-1] for token in best.tolist()]
    shares = [(logits.float() / temperature).softmax(-1)[best] for temperature in temperatures]
    widest = 1.25 * max(float(share.max()) for share in shares)  # one scale, so that panels compare
    for axis, temperature, probabilities in zip(axes, temperatures, shares, strict=True):
        bars = axis.barh(range(top), probabilities.tolist(), color=COLOURS[0])
        axis.bar_label(bars, fmt="{:.1%}", padding=2, fontsize=8)
        axis.set_yticks(range(top), labels)
        axis.invert_yaxis()
        axis.set_xlim(0, widest)
        axis.set_xlabel(text("show.probability"))
        axis.set_title(text("show.temperature_title", temperature=f"{temperature:g}", sum=f"{float(probabilities.sum()):.0%}"))
    return figure


def sampling_explorer(tokenizer, logits: torch.Tensor) -> ipywidgets.Widget:
    """The widget of lesson 02: the next token's distribution under a temperature."""
    import ipywidgets

    return explorer(lambda temperature: next_tokens(tokenizer, logits, (temperature,)),
                    temperature=ipywidgets.FloatLogSlider(value=1.0, base=10, min=-1, max=0.7, step=0.05,
                                                          description=text("show.temperature"), continuous_update=False))


def tokens_per_character(table: pd.DataFrame) -> Figure:
    """Bars of tokens a character: a group a language (rows), a bar a tokenizer (columns)."""
    figure, (axes,) = subplots(8, 3.6)
    table.plot.bar(ax=axes, rot=0, color=list(COLOURS[: table.shape[1]]))
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xlabel("")
    axes.set_ylabel(text("show.tokens_per_character"))
    axes.set_title(text("show.tokens_title"))
    axes.legend(frameon=False)
    return figure
