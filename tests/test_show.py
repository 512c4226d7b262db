"""Pictures: drawn in both languages without a missing glyph, and widgets taken through their states."""
import warnings

import pandas as pd
import pytest
import torch

from course_lib import decode, memory, runtime, show
from course_lib.runtime import text
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
        "parameter_shares": lambda: show.parameter_shares(1e6 * table),
        "cache_lines": lambda: show.cache_lines(["google/gemma-2-2b", "Qwen/Qwen2.5-0.5B"]),
        "head_groups": lambda: show.head_groups(9, (9, 3, 1)),
        "soft_cap_curves": lambda: show.soft_cap_curves((50, 30)),
        "maps": lambda: show.maps({"causal": torch.ones(9, 9).tril(), "window": torch.ones(9, 9).tril().triu(-2)}),
        "maps with labels": lambda: show.maps({"G": torch.eye(4, 26)}, "1234", "abcdefghijklmnopqrstuvwxyz", down="experts"),
        "run_losses": lambda: show.run_losses({"clean": [4.05, 4.04], "noisy": [4.2, 4.17]}, before=4.4),
        "filter_funnel": lambda: show.filter_funnel([("input", 48, 80), ("duplicates", 48, 20), ("classifier", 47, 1)]),
        "pacing_curves": lambda: show.pacing_curves(8),
        "training_memory": lambda: show.training_memory(
            {method: memory.estimate("smollm2-135m", precision, context=200, batch=2, training=method)
             for method, precision in (("full", "fp32"), ("lora", "bf16"), ("qlora", "nf4"))},
            {"full": 2_500_000_000, "lora": 900_000_000, "qlora": 700_000_000}),
        "wasted_tokens": lambda: show.wasted_tokens({runtime.text(f"lesson06.{way}"): 0.5 for way in ("fixed", "packed")}),
        "layer_influences": lambda: show.layer_influences([1.0, 0.1, 0.03, 0.2], [0, 3]),
        "distillation_terms": lambda: show.distillation_terms(Letters(), torch.linspace(0, 3, 20), torch.zeros(20), 19),
        "student_bars": lambda: show.student_bars({text(f"lesson05.{way}"): [2.0, 1.9] for way in ("labels", "teacher")}),
        "distillation_curves": lambda: show.distillation_curves(
            {way: {"step": [0, 10], "kl": [3.0, 2.0], "loss": [6.0, 5.0]} for way in ("labels", "teacher", "both")}),
        "growth_lines": lambda: show.growth_lines(
            [{"step": step, "tokens": tokens, "seconds": tokens / 500, "bytes": tokens * 2e6}
             for step in ("distillation", "fine_tuning") for tokens in (256, 1024, 4096)]),
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
