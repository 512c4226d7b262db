"""Models: cards and catalog, parameter counts, memory, architectures, and how to choose one."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["models"])
