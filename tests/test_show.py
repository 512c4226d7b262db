"""Pictures: drawn in both languages without a missing glyph, and widgets taken through their states."""
import warnings

import pandas as pd
import pytest
import torch

from course_lib import decode, runtime, show
from course_lib.show import canvas


class Letters:
    """Stands in for a tokenizer: token i is a letter."""

    def decode(self, ids):
        return chr(65 + ids[0])


def pictures():
    devices = list(decode.devices().values())
    table = pd.DataFrame({"SmolLM2": [0.2, 2.1], "Nemo": [0.2, 0.5]}, index=["English", "한국어"])
    return {
        "memory_bars": lambda: show.memory_bars(["smollm2-135m", "Qwen/Qwen2.5-0.5B"]),
        "speed_lines": lambda: show.speed_lines(devices[:4], {"SmolLM2": (538e6, 20.0)}),
        "cost_picture": lambda: show.cost_picture(7, 16, decode.devices()["t4"], 0.5),
        "cost_picture, too large": lambda: show.cost_picture(70, 16, decode.devices()["t4"], 0.0),
        "next_tokens": lambda: show.next_tokens(Letters(), torch.linspace(0, 3, 20)),
        "tokens_per_character": lambda: show.tokens_per_character(table),
    }


@pytest.mark.parametrize("lang", runtime.LANGUAGES)
@pytest.mark.parametrize("name", pictures())
def test_pictures_have_every_glyph(name, lang):
    runtime.set_language(lang)
    show.use_korean_font()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        png = canvas.png(pictures()[name]())
    assert png.startswith(b"\x89PNG") and len(png) > 5000


@pytest.mark.parametrize("name", pictures())
def test_pictures_speak_the_chosen_language(name):
    pngs = []
    for lang in runtime.LANGUAGES:
        runtime.set_language(lang)
        pngs.append(canvas.png(pictures()[name]()))
    assert pngs[0] != pngs[1]


def test_the_cost_widget_redraws_for_every_control():
    box = show.cost_explorer()
    *controls, image = box.children
    seen = {bytes(image.value)}
    for control, value in zip(controls, (70, 4.127, "h100", 8.0), strict=True):
        control.value = value
        seen.add(bytes(image.value))
    assert len(seen) == 5


def test_the_sampling_widget_redraws():
    box = show.sampling_explorer(Letters(), torch.linspace(0, 3, 20))
    control, image = box.children
    before = bytes(image.value)
    control.value = 0.2
    assert bytes(image.value) != before


def test_a_widget_carries_its_picture_for_viewers_without_a_kernel(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    show.display_with_fallback(show.sampling_explorer(Letters(), torch.linspace(0, 3, 20)))
    assert "image/png" in shown[0] and "application/vnd.jupyter.widget-view+json" in shown[0]
