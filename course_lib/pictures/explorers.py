"""The interactive widgets of the lessons and the pictures that they show."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inference import benchmark
from ..models import selection
from ..models.cards import catalog_data, get_card
from ..runtime import language, text
from .canvas import COLOURS, PALE, explorer, name_rows, subplots, token_text
from .charts.architectures import next_tokens
from .diagrams import FAILED, PASSED, speculative_picture, wrapped

if TYPE_CHECKING:
    import torch

    from ..inference.speculative import SpeculativeStep

WIDE = {"description_width": "9em"}
WHEN_RELEASED = {"continuous_update": False}  # redraw only when the slider is released


# ---- size, speed and price (lesson 01) -----------------------------------------------------------

def cost_explorer() -> widgets.Widget:
    """Widget of lesson 01: `cost_picture` with controls for size, precision, device and price per hour."""
    known = benchmark.devices()
    billions = [0.135, 0.5, 1, 3, 7, 14, 32, 70]
    bits = [("fp32", 32), ("bf16", 16), ("int8", 8), ("nf4", 4.127)]
    names = [(device.name, key) for key, device in known.items()]
    return explorer(
        lambda billions, bits, device, price: cost_picture(billions, bits, known[device], price),
        billions=widgets.SelectionSlider(options=billions, value=7, description=text("pictures.billions"),
                                         style=WIDE),
        bits=widgets.ToggleButtons(options=bits, value=16, description=text("pictures.precision"),
                                   style={**WIDE, "button_width": "5em"}),
        device=widgets.Dropdown(options=names, value="t4", description=text("pictures.device"), style=WIDE),
        price=widgets.FloatSlider(value=0.5, min=0.0, max=10.0, step=0.1, description=text("pictures.price"),
                                  style=WIDE, **WHEN_RELEASED))


def cost_picture(billions: float, bits: float, device: benchmark.Device, price: float) -> Figure:
    """Weights (GB), time per token (ms) and price per million tokens; `price`: of the device, per hour."""
    weight_bytes = billions * 1e9 * bits / 8
    latency = benchmark.predict(int(billions * 1e9), weight_bytes, device)
    cost = benchmark.cost_per_million_tokens(latency.per_token, price)
    fits = weight_bytes <= device.memory
    verdict = "pictures.fits" if fits else "pictures.too_large"
    panels = (("pictures.weights_gb", weight_bytes / 1e9, device.memory / 1e9, verdict),
              ("pictures.ms_per_token", latency.per_token * 1e3, 100, "pictures.reading_pace"),
              ("pictures.price_per_million", cost, 0, ""))
    figure, all_axes = subplots(9, 2.6, columns=3)
    for axes, (title, value, limit, words) in zip(all_axes, panels, strict=True):
        bar = axes.bar([0], [value], 0.5, color=COLOURS[0] if fits else PALE)
        axes.bar_label(bar, fmt="%.3g")
        axes.set_title(text(title), fontsize=10)
        axes.set(xticks=[], xlim=(-0.8, 0.8), ylim=(0, max(value, limit) * 1.25 or 1))  # the price may be 0
        if limit:
            axes.axhline(limit, color=COLOURS[1], linestyle="--")
            axes.set_xlabel(text(words), fontsize=9, color=COLOURS[1])
    title = text("pictures.cost_title", billions=f"{billions:g}", bits=f"{bits:g}", device=device.name)
    figure.suptitle(title, fontsize=11)
    return figure


# ---- sampling (lesson 02) and speculative decoding (lesson 09) -----------------------------------

def sampling_explorer(tokenizer, logits: torch.Tensor) -> widgets.Widget:
    """Widget of lesson 02: the distribution of the next token at a chosen temperature; `logits`: (V,)."""
    slider = widgets.FloatLogSlider(value=1.0, base=10, min=-1, max=0.7, step=0.05,
                                    description=text("pictures.temperature"), **WHEN_RELEASED)
    return explorer(lambda temperature: next_tokens(tokenizer, logits, (temperature,)), temperature=slider)


def speculative_explorer(steps: Sequence[SpeculativeStep], tokenizer) -> widgets.Widget:
    """Widget of lesson 09: the text after a chosen step of speculative decoding."""
    slider = widgets.IntSlider(value=(len(steps) + 1) // 2, min=1, max=len(steps),
                               description=text("pictures.step"), **WHEN_RELEASED)
    return explorer(lambda number: speculative_picture(steps, tokenizer, number), number=slider)


# ---- distillation (lesson 05) --------------------------------------------------------------------

def distillation_explorer(
    tokenizer, teacher_logits: torch.Tensor, student_logits: torch.Tensor, label: int,
) -> widgets.Widget:
    """Widget of lesson 05: `distillation_terms` at a chosen temperature and alpha."""
    return explorer(
        lambda **values: distillation_terms(tokenizer, teacher_logits, student_logits, label, **values),
        temperature=widgets.FloatSlider(value=2.0, min=0.5, max=8.0, step=0.5, description="τ",
                                        **WHEN_RELEASED),
        alpha=widgets.FloatSlider(value=0.5, min=0.0, max=1.0, step=0.1, description="α", **WHEN_RELEASED))


def distillation_terms(
    tokenizer, teacher_logits: torch.Tensor, student_logits: torch.Tensor, label: int, *,
    temperature: float = 2.0, alpha: float = 0.5, top: int = 8,
) -> Figure:
    """Teacher and student distributions at one position, and the terms of the loss in nats; logits: (V,)."""
    figure, (left, right) = subplots(10, 3.4, columns=2)
    best = teacher_logits.topk(top).indices
    log_t = (teacher_logits.float() / temperature).log_softmax(-1)
    log_q = (student_logits.float() / temperature).log_softmax(-1)
    for offset, (log_p, key) in enumerate(((log_t, "pictures.teacher"), (log_q, "pictures.student"))):
        left.barh([index + 0.4 * offset for index in range(top)], log_p[best].exp().tolist(), 0.4,
                  color=COLOURS[offset], label=text(key))
    words = [token_text(tokenizer, token) for token in best.tolist()]
    left.set_yticks([index + 0.2 for index in range(top)], words)
    left.invert_yaxis()
    title = text("pictures.at_temperature", temperature=f"{temperature:g}")
    left.set(xlabel=text("pictures.probability"), title=title)
    left.legend(frameon=False)
    soft = float((log_t.exp() * (log_t - log_q)).sum())
    hard = -float(student_logits.float().log_softmax(-1)[label])
    terms = {"pictures.soft_term": alpha * temperature**2 * soft, "pictures.hard_term": (1 - alpha) * hard}
    bars = right.bar([text(key) for key in terms], list(terms.values()), 0.5, color=[COLOURS[2], COLOURS[3]])
    right.bar_label(bars, fmt="%.2f")
    title = text("pictures.loss_parts", alpha=f"{alpha:g}", loss=f"{sum(terms.values()):.2f}")
    right.set(ylabel=text("pictures.nats"), ylim=(0, 1.2 * max(*terms.values(), 0.1)), title=title)
    return figure


# ---- quantization (lesson 07) --------------------------------------------------------------------

def level_explorer(weights: torch.Tensor) -> widgets.Widget:
    """Widget of lesson 07: `level_picture` with controls for kind of levels, bits and block size."""
    kinds = [("NF4", "nf4"), (text("pictures.quantization.spaced"), "int")]
    sizes = [16, 32, 64, 128, 256, 1024, 4096]
    return explorer(
        lambda **values: level_picture(weights, **values),
        kind=widgets.ToggleButtons(options=kinds, description=text("pictures.quantization.kind"), style=WIDE),
        bits=widgets.IntSlider(value=4, min=2, max=8, description=text("pictures.quantization.bits"),
                               style=WIDE, **WHEN_RELEASED),
        block_size=widgets.SelectionSlider(options=sizes, value=64, style=WIDE, **WHEN_RELEASED,
                                           description=text("pictures.quantization.block")))


def level_picture(weights: torch.Tensor, kind: str = "nf4", bits: int = 4, block_size: int = 64) -> Figure:
    """Histogram of the weights divided by the largest of their block, with the quantization levels.

    `weights`: any shape; `kind`: "int" for evenly spaced levels, "nf4" for NF4, which always has 4 bits;
    `bits`, `block_size`: as in `cl.quantization.blockwise_absmax`. The title gives the relative error.
    """
    from ..quantization.rounding import absmax_levels, blockwise_absmax, nf4_codebook

    levels = nf4_codebook() if kind == "nf4" else absmax_levels(bits)
    blocks = blockwise_absmax(weights, block_size=block_size, levels=levels)
    weights = weights.float().cpu()
    error = float((weights - blocks.dequantize().cpu()).norm() / weights.norm())
    largest = blocks.scales.cpu().clamp(min=1e-12).repeat_interleave(block_size)[:weights.numel()]
    figure, (axes,) = subplots(9, 3.2)
    axes.hist((weights.flatten() / largest).numpy(), bins=201, range=(-1, 1), color="#c9d6e6")
    for level in levels.tolist():
        axes.axvline(level, color=COLOURS[1], linewidth=1)
    name = "NF4" if kind == "nf4" else text("pictures.quantization.even", bits=bits)
    title = text("pictures.quantization.levels", name=name, block=block_size, error=f"{100 * error:.1f}")
    axes.set(yticks=[], xlim=(-1.03, 1.03), xlabel=text("pictures.quantization.scaled"), title=title)
    return figure


# ---- the guide (lesson 10) -----------------------------------------------------------------------

# marker, colour and size: the candidate passes the rule, fails it, or the rule is not asked for
MARKS = {True: ("o", PASSED, 60), False: ("x", FAILED, 60), None: ("o", PALE, 6)}


def selection_explorer() -> widgets.Widget:
    """Widget of lesson 10: `selection_picture` for a task, a tier, memory, context and licence."""
    any_value = (text("pictures.selection.any"), None)
    licenses = [(text(f"pictures.selection.{name}"), name) for name in selection.LICENSES if name]
    options = {
        "task": [(entry["name"][language()], task) for task, entry in catalog_data()["tasks"].items()],
        "tier": [(f"{tier} ({size / 1e9:g}B)", tier) for tier, size in selection.TIERS.items()],
        "memory_gb": [any_value, *((str(size), size) for size in (1, 2, 4, 6, 8, 12, 16, 24, 80))],
        "context": [any_value, *((f"{size:,}", size) for size in (2048, 8192, 32768, 131072))],
        "license": [any_value, *licenses],
    }
    first = {"task": "rag", "tier": "best", "memory_gb": 16, "context": 8192, "license": "commercial"}
    titles = {name: text(f"pictures.selection.{name.removesuffix('_gb')}") for name in options}
    return explorer(selection_picture, **{
        name: widgets.Dropdown(options=choices, value=first[name], description=titles[name], style=WIDE)
        for name, choices in options.items()})


def selection_picture(
    task: str, tier: str = "best", memory_gb: float | None = None, license: str | None = None,
    context: int | None = None,
) -> Figure:
    """Candidate models against selection rules; below, the recommendation or why there is none."""
    conditions = selection.Conditions(task, tier, memory_gb, license, context)
    marks = selection.judge_candidates(conditions)
    try:
        answer = selection.recommend(task, tier, memory_gb, license, context)
        title = text("pictures.selection.title", model=answer.model_id, precision=answer.precision)
        lines = [*answer.reasons, _figures(answer)]
        chosen = get_card(answer.model_id).id
    except LookupError as error:
        title = text("pictures.selection.nothing")
        lines = [str(error)]
        chosen = None
    figure, (axes,) = subplots(9, 6.2)
    figure.set_layout_engine("none")
    axes.set_position([0.24, 0.50, 0.72, 0.41])
    _draw_marks(axes, marks, chosen)
    words = "\n".join(wrapped(f"· {line}", 130) for line in lines)
    figure.text(0.02, 0.44, title, fontsize=12, color=PASSED if chosen else FAILED, va="top")
    figure.text(0.02, 0.385, words, fontsize=9.5, va="top", linespacing=1.5, parse_math=False)
    return figure


def _draw_marks(axes: Axes, marks: dict[str, dict[str, bool]], chosen: str | None) -> None:
    """Mark each candidate (row) against each rule (column): passed, failed, or rule not asked for."""
    for row, (card_id, passed) in enumerate(marks.items()):
        if card_id == chosen:
            axes.axhspan(row - 0.5, row + 0.5, color="#dfe9f5", zorder=0)
        for column, rule in enumerate(selection.RULES):
            marker, colour, size = MARKS[passed.get(rule.name)]
            axes.scatter(column, row, s=size, marker=marker, color=colour)
    rules = [text(f"selection.head.{rule.name}") for rule in selection.RULES]
    axes.set_xticks(range(len(rules)), rules)
    name_rows(axes, [get_card(card_id).name for card_id in marks])
    axes.set(xlim=(-0.5, len(rules) - 0.5), ylim=(len(marks) - 0.5, -0.5))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel(text("pictures.selection.legend"), fontsize=9, loc="right")


def _figures(answer: selection.Recommendation) -> str:
    figures = [f"{figure.benchmark} {figure.value:g} ({figure.page[0]})"
               for name, figure in answer.figures.items() if name not in ("parameters", "context")]
    if not figures:
        return text("pictures.selection.no_figures")
    return text("pictures.selection.figures", figures=", ".join(figures))
