"""Lightning callbacks for any LightningModule: one hook to a file.

The public names stand in ``__init__.pyi``; each is loaded on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
