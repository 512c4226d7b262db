"""The widgets, taken through their states, and what the pictures of the guide show."""
import re

import pytest
import torch

from course_lib import runtime
from course_lib.models import cards, selection
from course_lib.pictures import canvas, explorers
from tests.pictures.examples import STEPS, Letters

HANGUL = re.compile(r"[가-힣]")
TASKS = cards.catalog_data()["tasks"]


def states(box, *values):
    """The pictures of a widget: as it is, and after each control in turn took its value."""
    *controls, image = box.children
    pictures = {bytes(image.value)}
    for control, value in zip(controls, values, strict=True):
        control.value = value
        pictures.add(bytes(image.value))
    return pictures


def test_every_control_draws_anew():
    logits = torch.linspace(0, 3, 20)
    assert len(states(explorers.cost_explorer(), 70, 4.127, "h100", 8.0)) == 5
    assert len(states(explorers.sampling_explorer(Letters(), logits), 0.2)) == 2
    assert len(states(explorers.level_explorer(torch.randn(8, 64)), "int", 2, 16)) == 4
    assert len(states(explorers.distillation_explorer(Letters(), logits, -logits, 3), 4.0, 0.9)) == 3


def test_the_speculative_widget_goes_through_the_steps():
    box = explorers.speculative_explorer(STEPS, Letters())
    slider, _ = box.children
    assert (slider.min, slider.value, slider.max) == (1, 2, 3)
    assert len(states(box, 1) | states(box, 3)) == 3


# ---- the guide -------------------------------------------------------------------------------------------

def test_the_picture_shows_each_candidate_against_each_rule():
    figure = explorers.selection_picture("rag", "best", 16, "commercial")
    sizes = [points.get_sizes()[0] for points in figure.axes[0].collections]
    candidates = len(TASKS["rag"]["candidates"])
    assert len(sizes) == candidates * len(selection.RULES)
    assert sizes.count(explorers.MARKS[None][2]) == candidates * 2  # "open" and "context" are not asked
    words = " ".join(label.get_text() for label in figure.texts)
    assert "Llama-3.1-8B-Instruct, int8" in words and "98.8" in words and "Llama 3.2, model card" in words
    assert "Nothing fits" in explorers.selection_picture("rag", "best", 0.1).texts[0].get_text()
    assert "No benchmark figure" in explorers.selection_picture("edge").texts[1].get_text()


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
def test_the_words_stay_inside_the_picture(lang):
    runtime.set_language(lang)
    runtime.use_korean_font()
    for task in TASKS:
        for others in (
            ("best", 80, "commercial", 32768),
            ("best", 80, None, 131072),
            ("mobile", 1, "open", 131072),
        ):
            figure = explorers.selection_picture(task, *others)
            for label in figure.texts:
                box = label.get_window_extent()
                assert box.y0 > 0 and box.x1 < figure.bbox.width, (task, others, label.get_text())


def test_the_widget_of_the_guide_goes_through_its_states():
    box = explorers.selection_explorer()
    *controls, image = box.children
    pictures = states(box, "korean", "mobile", 4, 32768, "open")
    controls[2].value = 1  # nothing fits
    pictures.add(bytes(image.value))
    assert len(pictures) == 7
    for control in controls[2:]:
        assert None in dict(control.options).values()
        control.value = None
        pictures.add(bytes(image.value))
    assert len(pictures) == 10


def test_the_widget_of_the_guide_speaks_korean_and_has_its_picture(shown):
    runtime.set_language("ko")
    runtime.use_korean_font()
    box = explorers.selection_explorer()
    assert all(HANGUL.search(control.description) for control in box.children[:-1])
    canvas.display_with_fallback(box)
    assert "image/png" in shown[0]
