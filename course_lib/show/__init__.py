"""Pictures and widgets of the lessons, one function a picture, with labels in the language that `setup` chose.

A figure is returned, not shown, so that a cell shows it by ending with it. A widget carries a picture of its first
state beside it: a viewer without a kernel (a code host's preview, a printout) shows that picture instead.
"""
from .canvas import COLOURS, display_with_fallback, explorer, use_korean_font
from .speed import cost_explorer, cost_picture, memory_bars, speed_lines
from .tokens import next_tokens, sampling_explorer, tokens_per_character

__all__ = [
    "COLOURS", "display_with_fallback", "explorer", "use_korean_font",
    "cost_explorer", "cost_picture", "memory_bars", "speed_lines",
    "next_tokens", "sampling_explorer", "tokens_per_character",
]
