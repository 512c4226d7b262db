"""Pictures of lesson 09: two distributions and what verification makes of them; what a draft proposed and the target kept."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime import text
from .canvas import COLOURS, explorer, subplots

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure

    from ..speculative import SpeculativeStep

KINDS = {"accepted": COLOURS[0], "target": COLOURS[1], "rejected": "#999999"}  # the first two make up the text
LEFT, RIGHT, TOP, LINE = 0.02, 0.98, 0.80, 0.095  # of the figure's width and height


def speculative_picture(steps: Sequence[SpeculativeStep], tokenizer, number: int) -> Figure:
    """The text after step `number` (from 1): drafted tokens that were kept, the target's own, and this step's rejected ones.

    Args:
        steps: of `SpeculativeStats`.
        tokenizer: of both models.
    """
    figure, (axes,) = subplots(9, 3.4)
    axes.remove()
    pieces = [piece for index, step in enumerate(steps[:number], 1) for piece in _pieces(step, rejected=index == number)]
    _write(figure, [(_word(tokenizer, token), kind) for token, kind in pieces])
    step = steps[number - 1]
    figure.text(LEFT, 0.91, text("show.speculative.title", step=number, steps=len(steps), accepted=step.accepted,
                                 drafted=len(step.drafted), tokens=sum(kind != "rejected" for _, kind in pieces)))
    place = LEFT
    for kind in KINDS:
        place = _put(figure, place, 0.04, text(f"show.speculative.{kind}"), kind, fontsize=9) + 0.03
    return figure


def verification_bars(words: Sequence[str], p: Sequence[float], q: Sequence[float]) -> Figure:
    """The target's p and the draft's q over a few words; and p again, as kept drafts plus what rejections are drawn from."""
    figure, (left, right) = subplots(9, 3.4, columns=2)
    places = range(len(words))
    for offset, shares, key in ((-0.2, q, "draft"), (0.2, p, "target_p")):
        left.bar([place + offset for place in places], shares, 0.38, label=text(f"show.speculative.{key}"),
                 color="#999999" if key == "draft" else COLOURS[1])
    kept = [min(a, b) for a, b in zip(p, q, strict=True)]
    right.bar(places, kept, 0.6, color=KINDS["accepted"], label=text("show.speculative.kept"))
    right.bar(places, [a - b for a, b in zip(p, kept, strict=True)], 0.6, bottom=kept, color=KINDS["target"],
              label=text("show.speculative.residual"))
    left.set_title(text("show.speculative.both"), fontsize=11)
    right.set_title(text("show.speculative.sum"), fontsize=11)
    for axes in (left, right):
        axes.set_xticks(list(places), words)
        axes.set_ylim(0, 1.35 * max(*p, *q))
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    left.set_ylabel(text("show.speculative.probability"))
    return figure


def _pieces(step: SpeculativeStep, *, rejected: bool) -> list[tuple[int, str]]:
    """Token ids of a step with their kinds, in the order in which they are shown."""
    kept, others = step.drafted[:step.accepted], step.drafted[step.accepted:] if rejected else ()
    own = () if step.next_token is None else (step.next_token,)
    return [(token, kind) for kind, tokens in (("accepted", kept), ("rejected", others), ("target", own)) for token in tokens]


def _word(tokenizer, token: int) -> str:
    """The text of a token; a line's end as ¶ (the font's backslash is a won sign), a part of a character as □."""
    return repr(tokenizer.decode([token]))[1:-1].replace("\\n", "¶").replace("\ufffd", "□")


def _write(figure: Figure, words: Sequence[tuple[str, str]]) -> None:
    """Write words one behind the other, in lines as wide as the figure; of a text that is too long, its end."""
    lines, place = [[]], LEFT
    for word, kind in words:
        if place + _width(figure, word) > RIGHT and lines[-1]:
            lines.append([])
            place, word = LEFT, word.lstrip(" ")
        lines[-1].append((place, word, kind))
        place += _width(figure, word)
    for row, line in enumerate(lines[-7:]):
        for place, word, kind in line:
            _put(figure, place, TOP - row * LINE, word, kind)


def _put(figure: Figure, place: float, height: float, word: str, kind: str, fontsize: float = 11) -> float:
    """Write one word in the colour of its kind, struck through where it is rejected; where it ends."""
    from matplotlib.lines import Line2D

    written = figure.text(place, height, word, color=KINDS[kind], fontsize=fontsize, parse_math=False)
    end = place + _width(figure, word, fontsize)
    if kind == "rejected":
        box = written.get_window_extent()
        middle = (box.y0 + box.y1) / 2 / figure.bbox.height
        figure.add_artist(Line2D([place, end], [middle, middle], color=KINDS[kind], linewidth=1))
    return end


def _width(figure: Figure, word: str, fontsize: float = 11) -> float:
    """Width of a word, as a share of the figure's."""
    probe = figure.text(0, 0, word, fontsize=fontsize, parse_math=False)
    width = probe.get_window_extent().width / figure.bbox.width
    probe.remove()
    return width


def speculative_explorer(steps: Sequence[SpeculativeStep], tokenizer) -> ipywidgets.Widget:
    """The widget of lesson 09: `speculative_picture` for a step."""
    import ipywidgets

    slider = ipywidgets.IntSlider(value=(len(steps) + 1) // 2, min=1, max=len(steps), description=text("show.step"),
                                  continuous_update=False)
    return explorer(lambda number: speculative_picture(steps, tokenizer, number), number=slider)
