"""NLL and perplexity of many languages, and how much of them a model forgot.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

from freezetrain.extras import require
from freezetrain.lazy_names import public_names

require("evaluation", __name__)

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
