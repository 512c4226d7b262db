"""Training: samples, fine-tuning with adapters, distillation, device settings, publishing."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["training"])
