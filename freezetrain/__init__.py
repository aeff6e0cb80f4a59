"""Further pre-training with regions of weights frozen bit for bit.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

from freezetrain.lazy_names import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
