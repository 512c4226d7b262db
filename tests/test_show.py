"""Pictures: drawn in both languages without a missing glyph, and widgets taken through their states."""
import re
import warnings

import pandas as pd
import pytest
import torch

from course_lib import decode, memory, roofline, runtime, show
from course_lib.runtime import text
from course_lib.show import canvas
from course_lib.speculative import SpeculativeStep

STEPS = (SpeculativeStep((1, 2, 3), 3, 4), SpeculativeStep((5, 6, 7), 1, 8), SpeculativeStep((9, 10), 2, None))
MAPPING = pd.DataFrame({"open_s": [0.1, 0.2], "open_mb": [1.0, 150.0], "used_mb": [150.0, 150.0], "anonymous_mb": [5.0, 150.0]},
                       index=["mapped", "read"])


COMPARED = pd.DataFrame(
    {"bits_per_character": [1.1, 1.2, None], "memory_mb": [269.0, 110, None], "estimated_mb": [269.0, 110, None],
     "first_token_ms": [65.0, 64, None], "tokens_per_second": [25.0, 35, None], "spread": [1.0, 2, None]},
    index=["bf16", "nf4", "absent"])


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
        "LossPlot": lambda: loss_plot().picture({0: 2.0, 4: 1.5}),
        "wasted_tokens": lambda: show.wasted_tokens({runtime.text(f"lesson06.{way}"): 0.5 for way in ("fixed", "packed")}),
        "level_picture": lambda: show.level_picture(torch.randn(4, 64)),
        "level_picture, even": lambda: show.level_picture(torch.randn(4, 64), "int", 3, 4096),
        "outlier_columns": lambda: show.outlier_columns({"q_proj": torch.tensor([0.0, 1, 9]), "up_proj": torch.ones(4)}),
        "size_against_perplexity": lambda: show.size_against_perplexity(pd.DataFrame(
            {"file_mb": [269.0, 164, 145], "perplexity": [53.5, 53.9, 53.6], "tokens_per_second": [27.0, 18, 93]},
            index=["bf16", "int8", "Q8_0"])),
        "comparison_bars": lambda: show.comparison_bars(COMPARED),
        "comparison_bars, speed alone": lambda: show.comparison_bars(COMPARED[["tokens_per_second"]].dropna()),
        "before_and_after": lambda: show.before_and_after(
            {"domain": {"before": 0.25, "after": 0.8, "gain": 0.55, "low": 0.3, "high": 0.75},
             "한국어": {"before": 0.5, "after": 0.1, "gain": -0.4, "low": -0.6, "high": -0.2}}),
        "layer_influences": lambda: show.layer_influences([1.0, 0.1, 0.03, 0.2], [0, 3]),
        "distillation_terms": lambda: show.distillation_terms(Letters(), torch.linspace(0, 3, 20), torch.zeros(20), 19),
        "student_bars": lambda: show.student_bars({text(f"lesson05.{way}"): [2.0, 1.9] for way in ("labels", "teacher")}),
        "distillation_curves": lambda: show.distillation_curves(
            {way: {"step": [0, 10], "kl": [3.0, 2.0], "loss": [6.0, 5.0]} for way in ("labels", "teacher", "both")}),
        "growth_lines": lambda: show.growth_lines(
            [{"step": step, "tokens": tokens, "seconds": tokens / 500, "bytes": tokens * 2e6}
             for step in ("distillation", "fine_tuning") for tokens in (256, 1024, 4096)]),
        "near_ties": lambda: show.near_ties([0.0, 0.2, 3.0], {"Q8_0": [0.2], "ONNX int4": []}),
        "mapping_bars": lambda: show.mapping_bars({"a.gguf": MAPPING, "where the system does not tell": MAPPING.assign(
            anonymous_mb=float("nan"))}),
        "layer_split": lambda: show.layer_split([10.0, 12.0, 15.0, 20.0], 2),
        "roofline_chart": lambda: show.roofline_chart(
            roofline.roofline("smollm2-135m", "fp32", device=decode.devices()["t4"]), {"decode": (0.5, 1e11)}),
        "score_bars": lambda: show.score_bars({"SmolLM2": (0.6, 0.1), "한국어": (0.2, 0.0)}, {"SmolLM2": 0.25, "한국어": 0.25}),
        "score_spread": lambda: show.score_spread(0.65, 0.6),
        "selection_flowchart": show.selection_flowchart,
        "selection_picture": lambda: show.selection_picture("rag", "best", 16, "commercial", 8192),
        "selection_picture, nothing fits": lambda: show.selection_picture("korean", "best", 1, "open", 131072),
        "speculative_picture": lambda: show.speculative_picture(STEPS, Letters(), 2),
        "verification_bars": lambda: show.verification_bars(["a", "b", "c"], [0.5, 0.2, 0.3], [0.2, 0.6, 0.2]),
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


def loss_plot():
    """Two runs: one cut after step 3, one that goes on from a checkpoint at step 2."""
    plot = show.LossPlot()
    for step, loss in ((1, 2.0), (2, 1.9), (3, 1.8), (3, 1.8), (4, 1.6)):
        plot(step, loss)
    return plot


def test_the_loss_plot_keeps_runs_apart():
    plot = loss_plot()
    assert plot.runs == [{1: 2.0, 2: 1.9, 3: 1.8}, {3: 1.8, 4: 1.6}]
    crosses, line = plot.picture().axes[0].lines
    assert list(crosses.get_xdata()) == [1, 2, 3] and list(line.get_xdata()) == [1, 2, 3, 4]


@pytest.mark.parametrize("watched", [True, False])
def test_the_loss_plot_is_live_where_somebody_watches(monkeypatch, watched):
    import IPython.display

    seen = []

    class Handle:
        def update(self, figure):
            seen.append("update")

    monkeypatch.setattr(IPython.display, "display", lambda figure, display_id: seen.append("display") or Handle())
    monkeypatch.setattr("course_lib.show.training.show_progress", lambda: watched)
    loss_plot()
    assert seen == (["display"] + ["update"] * 4 if watched else [])


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


def test_the_level_widget_redraws_for_every_control():
    box = show.level_explorer(torch.randn(8, 64))
    *controls, image = box.children
    seen = {bytes(image.value)}
    for control, value in zip(controls, ("int", 2, 16), strict=True):
        control.value = value
        seen.add(bytes(image.value))
    assert len(seen) == 4


def test_a_widget_carries_its_picture_for_viewers_without_a_kernel(shown):
    show.display_with_fallback(show.sampling_explorer(Letters(), torch.linspace(0, 3, 20)))
    assert "image/png" in shown[0] and "application/vnd.jupyter.widget-view+json" in shown[0]


def words(figure):
    """The words of a figure with their colours, but for the title and the legend, and how many are struck through."""
    *written, _, _, _, _ = figure.texts
    return [(word.get_text(), word.get_color()) for word in written], len(figure.artists)


def test_a_speculative_step_shows_what_was_kept_what_was_not_and_what_came_instead():
    kept, own, rejected = (show.speculative.KINDS[kind] for kind in ("accepted", "target", "rejected"))
    figures = [show.speculative_picture(STEPS, Letters(), number) for number in (1, 2, 3)]
    first = [("B", kept), ("C", kept), ("D", kept), ("E", own)]
    assert words(figures[0]) == (first, 0 + 1)  # the legend's own word is struck through in every picture
    assert words(figures[1]) == ([*first, ("F", kept), ("G", rejected), ("H", rejected), ("I", own)], 2 + 1)
    assert words(figures[2]) == ([*first, ("F", kept), ("I", own), ("J", kept), ("K", kept)], 0 + 1)
    assert "1 of 3 drafted tokens kept. 6 tokens so far, in 2 passes" in figures[1].texts[-4].get_text()


def test_what_verification_lets_through_adds_up_to_the_target():
    p, q = [0.5, 0.2, 0.3], [0.2, 0.6, 0.2]
    _, right = show.verification_bars(["a", "b", "c"], p, q).axes
    kept, drawn = ([bar.get_height() for bar in bars] for bars in right.containers)
    assert kept == pytest.approx([0.2, 0.2, 0.2])
    assert [a + b for a, b in zip(kept, drawn, strict=True)] == pytest.approx(p)


def test_a_long_speculative_text_keeps_its_end_and_plain_dollars():
    class Prices:
        def decode(self, ids):
            return f"${ids[0]}$\n"

    steps = [SpeculativeStep((number, number), 2, number) for number in range(100, 200)]
    shown, _ = words(show.speculative_picture(steps, Prices(), 100))
    assert shown[-1][0] == "$199$¶" and len(shown) < 300
    figure = show.speculative_picture(steps, Prices(), 100)
    assert all(0 <= place.get_position()[0] < 1 and 0 < place.get_position()[1] < 1 for place in figure.texts)


def test_the_speculative_widget_redraws_for_every_step():
    box = show.speculative_explorer(STEPS, Letters())
    slider, image = box.children
    assert (slider.min, slider.value, slider.max) == (1, 2, 3)
    seen = {bytes(image.value)}
    for step in (1, 3):
        slider.value = step
        seen.add(bytes(image.value))
    assert len(seen) == 3


def test_the_roofline_names_its_phases():
    roof = roofline.roofline("smollm2-135m", "fp32", prompts=(512,), batches=(1,), device=decode.devices()["t4"])
    for lang, shown in (("en", ("prefill, 512 tokens", "decoding, batch 1:")), ("ko", ("프리필 512토큰", "디코딩 배치 1:"))):
        runtime.set_language(lang)
        labels = " ".join(label.get_text() for label in show.roofline_chart(roof).axes[0].texts)
        assert all(word in labels for word in shown)


def test_the_worse_model_wins_less_often_the_more_questions_there_are():
    few, many = (int(re.search(r"(\d+) %", axes.get_title())[1]) for axes in show.score_spread(0.65, 0.6, (50, 1000)).axes)
    assert 30 < few < 40 and many < 3
