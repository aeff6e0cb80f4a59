"""Callbacks for trainers of other libraries."""

from freezetrain.extras import require

require("hf", __name__)
