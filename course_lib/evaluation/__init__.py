"""Evaluate models: benchmark tasks, answer extraction, statistics, a sandbox for generated code."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["evaluation"])
