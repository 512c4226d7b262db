"""Export models to GGUF, ONNX and ExecuTorch files, and run those files."""
import lazy_loader

from .. import ROOMS

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=ROOMS["export"])
