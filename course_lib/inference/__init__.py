"""Speed, memory and perplexity of a model, its roofline, and speculative decoding."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["inference"])
