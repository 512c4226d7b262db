"""Diagrams of attention heads, masks, GPU offloading, speculative decoding and model selection."""
from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from ..models import selection
from ..runtime import text
from .canvas import COLOURS, GREY, PALE, note, subplots, token_text

if TYPE_CHECKING:
    import torch

    from ..inference.speculative import SpeculativeStep


# ---- architectures (lesson 03) and a model on two processors (lesson 08) -------------------------

def head_groups(num_heads: int, kv_counts: Sequence[int]) -> Figure:
    """Query heads (top) and the key/value heads that they share (bottom), a panel for each of `kv_counts`."""
    figure, panels = subplots(3.4 * len(kv_counts), 2.2, columns=len(kv_counts))
    for axes, count in zip(panels, kv_counts, strict=True):
        group = num_heads // count
        for head in range(num_heads):
            middle = group * (head // group) + (group - 1) / 2
            axes.plot([head, middle], [1, 0], color=GREY, linewidth=1, zorder=1)
            axes.scatter([head], [1], s=150, marker="s", color=COLOURS[0], zorder=2)
            axes.scatter([middle], [0], s=150, marker="s", color=COLOURS[1], zorder=2)
        axes.set(xlim=(-0.8, num_heads - 0.2), ylim=(-0.5, 1.5), xticks=[])
        names = [text("pictures.key_value_heads"), text("pictures.query_heads")]
        axes.set_yticks([0, 1], names if axes is panels[0] else ["", ""])
        axes.tick_params(left=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        kind = "MHA" if count == num_heads else "MQA" if count == 1 else "GQA"
        axes.set_title(text("pictures.head_groups", kind=kind, heads=num_heads, shared=count), fontsize=10)
    return figure


def maps(
    panels: Mapping[str, torch.Tensor], rows: Sequence[str] = (), columns: Sequence[str] = (), *,
    across: str | None = None, down: str | None = None,
) -> Figure:
    """Draw matrices such as masks, attention weights or gates as heat maps, dark where the value is large.

    `panels`: title → matrix of booleans or values from 0 to 1, all of one shape; `rows`, `columns`: tick
    labels; `across`, `down`: axis labels, "keys" and "queries" by default.
    """
    height, width = next(iter(panels.values())).shape
    cell = min(0.24, 3 / width)
    size = max(len(panels) * (cell * width + 0.9), 4), max(cell * height + 1.3, 2.2)
    figure, all_axes = subplots(*size, columns=len(panels))
    for axes, (title, matrix) in zip(all_axes, panels.items(), strict=True):
        axes.pcolormesh(matrix.float(), cmap="Blues", vmin=0, vmax=1, edgecolors="#cccccc", linewidth=0.3)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=10)
        axes.set_xticks([index + 0.5 for index in range(len(columns))], columns, rotation=90, fontsize=7)
        axes.set_yticks([index + 0.5 for index in range(len(rows))], rows, fontsize=7)
        axes.spines[["right", "top"]].set_visible(True)
        axes.set_xlabel(across or text("pictures.keys"))
    all_axes[0].set_ylabel(down or text("pictures.queries"))
    return figure


def layer_split(rates: Sequence[float], fitting: int) -> Figure:
    """Tokens per second (`rates`) with 0, 1, … layers on the GPU; grey: more than `fitting` do not fit."""
    figure, (axes,) = subplots(9, 3.6)
    counts = range(len(rates))
    lines = {"beyond": (slice(fitting, None), PALE), "fits": (slice(fitting + 1), COLOURS[0])}
    for key, (layers, colour) in lines.items():
        label = text(f"pictures.split.{key}")
        axes.plot(counts[layers], rates[layers], "o-", color=colour, markersize=4, label=label)
    words = text("pictures.split.point", layers=fitting, rate=f"{rates[fitting]:.1f}")
    note(axes, words, (fitting, rates[fitting]), (-8, 8), ha="right", fontsize=10)
    axes.set(ylim=(0, 1.1 * max(rates)), xlabel=text("pictures.split.layers"),
             ylabel=text("pictures.split.rate"))
    axes.legend(frameon=False, loc="upper left")
    return figure


# ---- speculative decoding (lesson 09) ------------------------------------------------------------

KINDS = {"accepted": COLOURS[0], "target": COLOURS[1], "rejected": GREY}  # the text: accepted and target
MARGIN = 0.02  # left and right of the text; all three are fractions of the figure
TOP = 0.80
LINE = 0.095


def verification_bars(words: Sequence[str], p: Sequence[float], q: Sequence[float]) -> Figure:
    """Probabilities of target (p) and draft (q) for some words; p also split into kept and resampled."""
    figure, (left, right) = subplots(9, 3.4, columns=2)
    places = range(len(words))
    for offset, shares, key, colour in ((-0.2, q, "draft", GREY), (0.2, p, "target_p", COLOURS[1])):
        label = text(f"pictures.speculative.{key}")
        left.bar([place + offset for place in places], shares, 0.38, label=label, color=colour)
    kept = [min(shares) for shares in zip(p, q, strict=True)]
    drawn = [share - share_kept for share, share_kept in zip(p, kept, strict=True)]
    for bottom, shares, key, kind in ((0, kept, "kept", "accepted"), (kept, drawn, "residual", "target")):
        label = text(f"pictures.speculative.{key}")
        right.bar(places, shares, 0.6, bottom=bottom, label=label, color=KINDS[kind])
    for axes, key in ((left, "both"), (right, "sum")):
        axes.set_title(text(f"pictures.speculative.{key}"), fontsize=11)
        axes.set_xticks(list(places), words)
        axes.set_ylim(0, 1.35 * max(*p, *q))
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    left.set_ylabel(text("pictures.speculative.probability"))
    return figure


def speculative_picture(steps: Sequence[SpeculativeStep], tokenizer, number: int) -> Figure:
    """The text after step `number` (from 1) by origin of its tokens; rejected drafts of this step only."""
    figure, (axes,) = subplots(9, 3.4)
    axes.remove()
    tokens = [token for index, step in enumerate(steps[:number], 1)
              for token in _tokens_of(step, rejected=index == number)]
    _write(figure, [(_word(tokenizer, token), kind) for token, kind in tokens])
    step = steps[number - 1]
    figure.text(MARGIN, 0.91, text(
        "pictures.speculative.title", step=number, steps=len(steps), accepted=step.accepted,
        drafted=len(step.drafted), tokens=sum(kind != "rejected" for _, kind in tokens)))
    place = MARGIN
    for kind in KINDS:
        place = 0.03 + _put(figure, place, 0.04, text(f"pictures.speculative.{kind}"), kind, fontsize=9)
    return figure


def _tokens_of(step: SpeculativeStep, *, rejected: bool) -> list[tuple[int, str]]:
    """List (token id, kind) of a step in reading order, with rejected drafts only if `rejected`."""
    kinds = {"accepted": step.drafted[:step.accepted],
             "rejected": step.drafted[step.accepted:] if rejected else (),
             "target": () if step.next_token is None else (step.next_token,)}
    return [(token, kind) for kind, tokens in kinds.items() for token in tokens]


def _word(tokenizer, token: int) -> str:
    """Decode a token; ¶ stands for a line end (the font shows \\ as ₩), □ for an incomplete character."""
    return token_text(tokenizer, token).replace("\\n", "¶").replace("\ufffd", "□")


def _write(figure: Figure, words: Sequence[tuple[str, str]]) -> None:
    """Write (word, kind) pairs as wrapped text and keep only the last seven lines."""
    lines = [[]]
    place = MARGIN
    for word, kind in words:
        if place + _width(figure, word) > 1 - MARGIN and lines[-1]:
            lines.append([])
            place = MARGIN
            word = word.lstrip(" ")
        lines[-1].append((place, word, kind))
        place += _width(figure, word)
    for row, line in enumerate(lines[-7:]):
        for place, word, kind in line:
            _put(figure, place, TOP - row * LINE, word, kind)


def _put(figure: Figure, place: float, height: float, word: str, kind: str, fontsize: float = 11) -> float:
    """Write a word in the colour of its kind, struck through if rejected; return the x of its right edge."""
    written = figure.text(place, height, word, color=KINDS[kind], fontsize=fontsize, parse_math=False)
    box = written.get_window_extent().transformed(figure.transFigure.inverted())
    end = place + box.width
    if kind == "rejected":
        middle = (box.y0 + box.y1) / 2
        figure.add_artist(Line2D([place, end], [middle, middle], color=KINDS[kind], linewidth=1))
    return end


def _width(figure: Figure, word: str) -> float:
    probe = figure.text(0, 0, word, fontsize=11, parse_math=False)
    width = probe.get_window_extent().width / figure.bbox.width
    probe.remove()
    return width


# ---- the guide as a flowchart (lesson 10) --------------------------------------------------------

PASSED = COLOURS[0]
FAILED = COLOURS[1]
BOX = 0.66  # height of a box of the flowchart; rows are 1 apart
RETURN = 9.0  # x of the line back to the start


def selection_flowchart() -> Figure:
    """The steps of model selection as a flowchart, with a box for each of `models.selection.RULES`."""
    figure, (axes,) = subplots(9, 0.85 * len(selection.RULES) + 1.9)
    _box(axes, 0, text("pictures.selection.start"), "#eeeeee", "start")
    for row, rule in enumerate(selection.RULES, start=1):
        # a test compares the picture with the rules by this group id
        _box(axes, row, wrapped(rule.question, 60), "white", f"rule.{rule.name}")
        condition = wrapped(text(f"selection.when.{rule.name}"), 30)
        axes.text(2.35, -row, condition, ha="right", va="center", fontsize=8.5, color="#666666")
        axes.plot([7.5, RETURN], [-row, -row], color=FAILED)
        axes.text(7.6, 0.06 - row, text("pictures.selection.no"), fontsize=8.5, color=FAILED, va="bottom")
        axes.text(5.1, -row - 0.5, text("pictures.selection.yes"), fontsize=8.5, color=PASSED, va="center")
    last = len(selection.RULES) + 1
    _box(axes, last, text("pictures.selection.answer"), "#dfe9f5", "answer")
    for row in range(last):
        arrow = {"arrowstyle": "->", "color": PASSED}
        axes.annotate("", (5, -row - 1 + BOX / 2), (5, -row - BOX / 2), arrowprops=arrow)
    axes.plot([RETURN, RETURN], [1 - last, 0], color=FAILED)
    axes.annotate("", (7.5, 0), (RETURN, 0), arrowprops={"arrowstyle": "->", "color": FAILED, "shrinkA": 0})
    axes.set(xlim=(0, RETURN + 0.1), ylim=(-last - 0.5, 0.5))
    axes.axis("off")
    return figure


def _box(axes: Axes, row: int, words: str, colour: str, group: str) -> None:
    axes.add_patch(FancyBboxPatch((2.5, -row - BOX / 2), 5, BOX, boxstyle="round,pad=0,rounding_size=0.1",
                                  facecolor=colour, edgecolor="#666666", gid=group))
    axes.text(5, -row, words, ha="center", va="center", fontsize=9.5, linespacing=1.4, gid=f"{group}.words")


def wrapped(words: str, width: int) -> str:
    """Break text at spaces into lines of at most `width` columns; a Korean letter takes two columns."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        columns = sum(2 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in longer)
        if lines[-1] and columns > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
