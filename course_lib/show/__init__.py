"""Pictures and widgets of the lessons, one function a picture, with labels in the language that `setup` chose.

A figure is returned, not shown, so that a cell shows it by ending with it. A widget carries a picture of its first
state beside it: a viewer without a kernel (a code host's preview, a printout) shows that picture instead.
"""
from .architectures import cache_lines, head_groups, maps, parameter_shares, soft_cap_curves
from .canvas import COLOURS, display_with_fallback, explorer, png, use_korean_font
from .capstone import before_and_after, comparison_bars
from .data import filter_funnel, pacing_curves, run_losses
from .deployment import layer_split, mapping_bars, near_ties
from .distillation import (
    distillation_curves,
    distillation_explorer,
    distillation_terms,
    growth_lines,
    layer_influences,
    student_bars,
)
from .evaluation import score_bars, score_spread
from .quantization import level_explorer, level_picture, outlier_columns, size_against_perplexity
from .selection import selection_explorer, selection_flowchart, selection_picture
from .speculative import speculative_explorer, speculative_picture, verification_bars
from .speed import cost_explorer, cost_picture, memory_bars, roofline_chart, speed_lines
from .tokens import next_tokens, sampling_explorer, tokens_per_character
from .training import LossPlot, training_memory, wasted_tokens

__all__ = [
    "COLOURS", "display_with_fallback", "explorer", "png", "use_korean_font",
    "cache_lines", "head_groups", "maps", "parameter_shares", "soft_cap_curves",
    "before_and_after", "comparison_bars",
    "layer_split", "mapping_bars", "near_ties",
    "distillation_curves", "distillation_explorer", "distillation_terms", "growth_lines", "layer_influences", "student_bars",
    "score_bars", "score_spread",
    "filter_funnel", "pacing_curves", "run_losses",
    "level_explorer", "level_picture", "outlier_columns", "size_against_perplexity",
    "selection_explorer", "selection_flowchart", "selection_picture",
    "speculative_explorer", "speculative_picture", "verification_bars",
    "cost_explorer", "cost_picture", "memory_bars", "roofline_chart", "speed_lines",
    "next_tokens", "sampling_explorer", "tokens_per_character",
    "LossPlot", "training_memory", "wasted_tokens",
]
