"""`course_lib`: the small package behind the course on small language models.

`import course_lib as cl` takes a fraction of a second: torch and transformers are imported where they are used.
Names appear here from the module that holds them: `cl.load` is `course_lib.loading.load`.
"""
from __future__ import annotations

import importlib

_HOME = {
    "load": "loading", "chat": "loading",
    "profile": "runtime", "set_seed": "runtime", "cache_dir": "runtime",
    "setup": "lessons", "check": "lessons",
}
_MODULES = (
    "architectures", "browser", "calibration", "catalog", "comparison", "data", "decode", "deploy", "distill", "evaluate",
    "filters", "finetune", "fused_loss", "hub", "lessons", "loading", "memory", "noise", "quantize", "roofline", "rounding",
    "runtime", "sandbox", "selection", "show", "speculative", "synthesis", "tasks", "training",
)

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'course_lib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
