"""Every picture, drawn in both languages without a missing glyph; widgets carry their picture."""

import warnings

import pytest
import torch

from course_lib import ROOMS, runtime
from course_lib.pictures import canvas, explorers
from tests.pictures.examples import PICTURES, Letters


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_speak_both_languages_and_have_every_glyph(name):
    runtime.use_korean_font()
    pngs = []
    for lang in runtime.LANGUAGES:
        runtime.set_language(lang)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Gg]lyph")
            pngs.append(canvas.png(PICTURES[name]()))
    assert pngs[0] != pngs[1]
    assert all(png.startswith(b"\x89PNG") and len(png) > 5000 for png in pngs)


def test_there_is_an_example_of_every_public_picture():
    public = {name for file, names in ROOMS["pictures"].items() for name in names if file != "canvas"}
    drawn = {name.partition(",")[0] for name in PICTURES}
    assert {name for name in public if not name.endswith("_explorer")} <= drawn


def test_a_widget_carries_its_picture_for_viewers_without_a_kernel(shown):
    canvas.display_with_fallback(explorers.sampling_explorer(Letters(), torch.linspace(0, 3, 20)))
    assert "image/png" in shown[0] and "application/vnd.jupyter.widget-view+json" in shown[0]
