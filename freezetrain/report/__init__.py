"""What the pages share, and the page of runs."""

from freezetrain.extras import require

require("train", __name__)
