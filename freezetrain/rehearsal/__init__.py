"""Rehearsal: sequences that the base drew, and what it says at each of their places.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

from freezetrain.lazy_names import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
