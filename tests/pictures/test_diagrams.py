"""Drawings of mechanisms: a verified draft token by token, the flowchart against the rules."""

import pytest

from course_lib import runtime
from course_lib.inference.speculative import SpeculativeStep
from course_lib.models import selection
from course_lib.pictures import diagrams
from tests.pictures.examples import STEPS, Letters

NAMES = [rule.name for rule in selection.RULES]


def words(figure):
    """The words of a figure with their colours, without title and legend, and how many are struck through."""
    *written, _, _, _, _ = figure.texts
    return [(word.get_text(), word.get_color()) for word in written], len(figure.artists)


def test_a_speculative_step_shows_what_was_kept_what_was_not_and_what_came_instead():
    kept, own, rejected = (diagrams.KINDS[kind] for kind in ("accepted", "target", "rejected"))
    figures = [diagrams.speculative_picture(STEPS, Letters(), number) for number in (1, 2, 3)]
    first = [("B", kept), ("C", kept), ("D", kept), ("E", own)]
    assert words(figures[0]) == (first, 0 + 1)  # the legend's own word is struck through in every picture
    assert words(figures[1]) == ([*first, ("F", kept), ("G", rejected), ("H", rejected), ("I", own)], 2 + 1)
    assert words(figures[2]) == ([*first, ("F", kept), ("I", own), ("J", kept), ("K", kept)], 0 + 1)
    assert "1 of 3 drafted tokens kept. 6 tokens so far, in 2 passes" in figures[1].texts[-4].get_text()


def test_a_long_speculative_text_keeps_its_end_and_plain_dollars():
    class Prices:
        def decode(self, ids):
            return f"${ids[0]}$\n"

    steps = [SpeculativeStep((number, number), 2, number) for number in range(100, 200)]
    figure = diagrams.speculative_picture(steps, Prices(), 100)
    shown, _ = words(figure)
    assert shown[-1][0] == "$199$¶" and len(shown) < 300
    assert all(0 <= word.get_position()[0] < 1 and 0 < word.get_position()[1] < 1 for word in figure.texts)


def test_what_verification_lets_through_adds_up_to_the_target():
    p = [0.5, 0.2, 0.3]
    _, right = diagrams.verification_bars(["a", "b", "c"], p, [0.2, 0.6, 0.2]).axes
    kept, drawn = ([bar.get_height() for bar in bars] for bars in right.containers)
    assert kept == pytest.approx([0.2, 0.2, 0.2])
    assert [a + b for a, b in zip(kept, drawn, strict=True)] == pytest.approx(p)


def drawn_rules():
    axes = diagrams.selection_flowchart().axes[0]
    groups = [patch.get_gid() or "" for patch in axes.patches]
    boxes = [group.removeprefix("rule.") for group in groups if group.startswith("rule.")]
    return boxes, {label.get_gid(): label.get_text() for label in axes.texts if label.get_gid()}


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_flowchart_shows_exactly_the_rules(lang):
    runtime.set_language(lang)
    boxes, labels = drawn_rules()
    assert boxes == NAMES
    assert set(labels) == {"start.words", "answer.words", *(f"rule.{name}.words" for name in NAMES)}
    for rule in selection.RULES:
        assert labels[f"rule.{rule.name}.words"].split() == rule.question.split()


def test_the_flowchart_follows_the_rules(monkeypatch):
    monkeypatch.setattr(selection, "RULES", tuple(reversed(selection.RULES[1:])))
    assert drawn_rules()[0] == NAMES[:0:-1]
