"""Quantization: rounding a layer by hand, calibration, and whole models by any method."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["quantization"])
