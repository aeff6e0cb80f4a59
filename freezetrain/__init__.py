"""Further pre-training with regions of weights frozen bit for bit.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
