"""Charts, diagrams and widgets of the lessons, labelled in English or Korean."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["pictures"])
