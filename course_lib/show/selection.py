"""Pictures of lesson 10: the flowchart of the guide, drawn from its rules, and what they make of each candidate."""
from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from .. import selection
from ..cards import contents, get
from ..runtime import language, text
from .canvas import COLOURS, explorer, subplots

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PASSED, FAILED = COLOURS[0], COLOURS[1]
MARKS = {True: ("o", PASSED, 60), False: ("x", FAILED, 60), None: ("o", "#bbbbbb", 6)}  # None: the rule is not asked
BOX, STEP = 0.66, 1.0  # height of a box of the flowchart, and from one box to the next
RETURN = 9.0  # where the way back to the start runs


def selection_flowchart() -> Figure:
    """The guide as a flowchart: one box a rule of `selection.RULES`, in their order, between the start and the answer.

    A rule's box carries the group id "rule.NAME", so that a test can hold picture and rules against each other.
    """
    figure, (axes,) = subplots(9, 0.85 * len(selection.RULES) + 1.9)
    bottom = -(len(selection.RULES) + 1) * STEP
    _box(axes, 0, text("show.selection.start"), "#eeeeee", "start")
    for row, rule in enumerate(selection.RULES, start=1):
        _box(axes, -row * STEP, _wrapped(rule.question, 60), "white", f"rule.{rule.name}")
        axes.text(2.35, -row * STEP, _wrapped(text(f"selection.when.{rule.name}"), 30), ha="right", va="center", fontsize=8.5,
                  color="#666666")
        axes.plot([7.5, RETURN], [-row * STEP] * 2, color=FAILED)
        axes.text(7.6, -row * STEP + 0.06, text("show.selection.no"), fontsize=8.5, color=FAILED, va="bottom")
    _box(axes, bottom, text("show.selection.answer"), "#dfe9f5", "answer")
    for row in range(len(selection.RULES) + 1):
        start, end = -row * STEP - BOX / 2, -(row + 1) * STEP + BOX / 2
        axes.annotate("", (5, end), (5, start), arrowprops={"arrowstyle": "->", "color": PASSED})
        if row:
            axes.text(5.1, (start + end) / 2, text("show.selection.yes"), fontsize=8.5, color=PASSED, va="center")
    axes.plot([RETURN, RETURN], [-len(selection.RULES) * STEP, 0], color=FAILED)
    axes.annotate("", (7.5, 0), (RETURN, 0), arrowprops={"arrowstyle": "->", "color": FAILED, "shrinkA": 0})
    axes.set_xlim(0, RETURN + 0.1)
    axes.set_ylim(bottom - 0.5, 0.5)
    axes.axis("off")
    return figure


def _box(axes: Axes, height: float, words: str, colour: str, group: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((2.5, height - BOX / 2), 5, BOX, boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour,
                                  edgecolor="#666666", gid=group))
    axes.text(5, height, words, ha="center", va="center", fontsize=9.5, linespacing=1.4, gid=f"{group}.words")


def selection_picture(task: str, tier: str = "best", memory_gb: float | None = None, licence: str | None = None,
                      context: int | None = None) -> Figure:
    """Each candidate of a task against each rule that is asked, and under them the answer with its reasons, or why none fits.

    The arguments are those of `catalog.recommend`.
    """
    conditions = selection.Conditions(task, tier, memory_gb, licence, context)
    marks = selection.judge_candidates(conditions)
    try:
        answer = selection.recommend(task, tier, memory_gb, licence, context)
        title = text("show.selection.title", model=answer.model_id, precision=answer.precision)
        lines, chosen = [*answer.reasons, _figures(answer)], get(answer.model_id).id
    except LookupError as error:
        title, lines, chosen = text("show.selection.nothing"), [str(error)], None
    words = "\n".join(_wrapped(f"· {line}", 130) for line in lines)
    figure, (axes,) = subplots(9, 6.2)
    figure.set_layout_engine("none")
    axes.set_position([0.24, 0.50, 0.72, 0.41])
    _marks(axes, marks, chosen)
    figure.text(0.02, 0.44, title, fontsize=12, color=PASSED if chosen else FAILED, va="top")
    figure.text(0.02, 0.385, words, fontsize=9.5, va="top", linespacing=1.5, parse_math=False)
    return figure


def _marks(axes: Axes, marks: dict[str, dict[str, bool]], chosen: str | None) -> None:
    """A dot where a candidate (row) passes a rule (column), a cross where it fails, a grey point where nobody asks."""
    for row, (card_id, passed) in enumerate(marks.items()):
        if card_id == chosen:
            axes.axhspan(row - 0.5, row + 0.5, color="#dfe9f5", zorder=0)
        for column, rule in enumerate(selection.RULES):
            marker, colour, size = MARKS[passed.get(rule.name)]
            axes.scatter(column, row, s=size, marker=marker, color=colour)
    axes.set_xticks(range(len(selection.RULES)), [text(f"selection.head.{rule.name}") for rule in selection.RULES])
    axes.set_yticks(range(len(marks)), [get(card_id).name for card_id in marks])
    axes.set_xlim(-0.5, len(selection.RULES) - 0.5)
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel(text("show.selection.legend"), fontsize=9, loc="right")


def _figures(answer: selection.Recommendation) -> str:
    """The benchmark figures with their titles, in one sentence."""
    found = [f"{figure.benchmark} {figure.value:g} ({figure.page[0]})" for name, figure in answer.figures.items()
             if name not in ("parameters", "context")]
    return text("show.selection.figures", figures=", ".join(found)) if found else text("show.selection.no_figures")


def _wrapped(words: str, width: int) -> str:
    """Lines of at most `width` columns, broken at spaces; a Korean letter is as wide as two Latin ones."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and sum(2 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def selection_explorer() -> ipywidgets.Widget:
    """The widget of lesson 10: `selection_picture` for a task, a tier, a memory, a context and a licence."""
    import ipywidgets

    any_value = (text("show.selection.any"), None)
    options = {
        "task": [(entry["name"][language()], task) for task, entry in contents()["tasks"].items()],
        "tier": [(f"{tier} ({size / 1e9:g}B)", tier) for tier, size in selection.TIERS.items()],
        "memory_gb": [any_value, *((str(size), size) for size in (1, 2, 4, 6, 8, 12, 16, 24, 80))],
        "context": [any_value, *((f"{size:,}", size) for size in (2048, 8192, 32768, 131072))],
        "licence": [any_value, *((text(f"show.selection.{name}"), name) for name in selection.LICENCES if name)],
    }
    first = {"task": "rag", "tier": "best", "memory_gb": 16, "context": 8192, "licence": "commercial"}
    return explorer(selection_picture, **{
        name: ipywidgets.Dropdown(options=choices, value=first[name], description=text(f"show.selection.{name.split('_')[0]}"),
                                  style={"description_width": "9em"})
        for name, choices in options.items()})
