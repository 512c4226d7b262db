"""Data: the course's texts and yours, checked, filtered, damaged on purpose, ordered or synthesized."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["data"])
