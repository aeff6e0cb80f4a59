"""NLL and perplexity of many languages, and how much of them a model forgot.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
