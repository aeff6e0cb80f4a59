"""Lightning callbacks for any LightningModule: one hook to a file.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

from freezetrain.extras import require
from freezetrain.lazy_names import public_names

require("lightning", __name__)

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
