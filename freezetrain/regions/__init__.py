"""Regions: sets of individual weights of one model, in pure PyTorch."""

from freezetrain.regions.ablate import ablate, perturb
from freezetrain.regions.base import Base, fingerprint
from freezetrain.regions.blocks import block_parameters, decoder_blocks, embedding_parameters
from freezetrain.regions.concentration import concentration
from freezetrain.regions.coverage import Coverage
from freezetrain.regions.entries import Entries
from freezetrain.regions.expression import Expression
from freezetrain.regions.magnitude import magnitude_scores
from freezetrain.regions.paper_layout import (
    export_masks,
    export_scores,
    import_masks,
    import_scores,
)
from freezetrain.regions.region import Region
from freezetrain.regions.resolve import Resolved
from freezetrain.regions.scores import Scores
from freezetrain.regions.scoring import compute_scores
from freezetrain.regions.select import core, monolingual, select
from freezetrain.regions.vocabulary import vocabulary_region

__all__ = [
    "Base",
    "Coverage",
    "Entries",
    "Expression",
    "Region",
    "Resolved",
    "Scores",
    "ablate",
    "block_parameters",
    "compute_scores",
    "concentration",
    "core",
    "decoder_blocks",
    "embedding_parameters",
    "export_masks",
    "export_scores",
    "fingerprint",
    "import_masks",
    "import_scores",
    "magnitude_scores",
    "monolingual",
    "perturb",
    "select",
    "vocabulary_region",
]
