"""All that `freezetrain paper` finds, as its page, its pictures and its claims read it."""

from dataclasses import dataclass, field
from typing import Any

from freezetrain.analysis.ablate import Ablation, Kind, RemovalEffect
from freezetrain.analysis.dimensions import Dimensions
from freezetrain.analysis.effects import Selectivity
from freezetrain.analysis.overlap import Overlap
from freezetrain.analysis.perturb import Perturbations
from freezetrain.evaluation.texts import TextFacts
from freezetrain.typed_json import KEY

KINDS: tuple[Kind, ...] = (
    "top",
    "random",
    "bottom",
)  # of regions, in the order in which they are shown


@dataclass(frozen=True)
class ModelFacts:
    """The model that was looked at."""

    name: str
    parameters: int
    layers: int
    folder: str


@dataclass(frozen=True)
class PaperLanguages:
    """Languages that were scored, of these the core's, and those that were evaluated."""

    scored: list[str]
    core: list[str]
    evaluated: list[str]


@dataclass(frozen=True)
class MonolingualSelectivity(Selectivity):
    """Selectivity of monolingual regions."""

    ratio: float
    """Share of entries that a region has before those of other languages are taken out."""


@dataclass(frozen=True)
class Halves:
    """Regions of two halves of each language's texts, a number for each language."""

    names: list[str]
    jaccard: list[float]
    expected: list[float]
    """By chance."""


@dataclass(frozen=True)
class Overlaps:
    """Regions compared with each other; None for what was not compared."""

    languages: Overlap | None = None
    samples: Overlap | None = None
    """Cores from fewer sequences."""
    methods: Overlap | None = None
    """Cores by other scores."""
    halves: Halves | None = None
    whole_model: Overlap | None = field(default=None, metadata={KEY: "whole model"})
    """Regions selected over the whole model, which need not have as much of every matrix."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, whether it holds here (None: cannot be told), and what was seen."""

    claim: str
    paper: str
    holds: bool | None
    seen: str


@dataclass
class PaperResults:
    """None and nothing for what was not looked at."""

    model: ModelFacts
    settings: dict[str, Any]
    languages: PaperLanguages
    texts: list[TextFacts]
    scores: dict[str, dict[str, Any]]
    """Language → how its scores, by the first method, came about."""
    seconds: dict[str, float]
    ablation: Ablation | None = None
    selectivity: MonolingualSelectivity | None = None
    dimensions: Dimensions | None = None
    weights: dict[str, Perturbations | None] = field(default_factory=dict)
    """What was done → what it does to the model."""
    overlap: Overlaps = field(default_factory=Overlaps)
    claims: list[Claim] = field(default_factory=list)

    @property
    def removed(self) -> dict[float, dict[str, RemovalEffect]]:
        """Ratio, ascending → kind of region (of KINDS) → what zeroing it does."""
        summary = [] if self.ablation is None else self.ablation.summary
        ratios = sorted({effect.ratio for effect in summary if effect.ratio is not None})
        by_place = {(effect.ratio, effect.kind): effect for effect in summary}
        return {
            ratio: {kind: by_place[ratio, kind] for kind in KINDS if (ratio, kind) in by_place}
            for ratio in ratios
        }

    @property
    def changed(self) -> dict[str, Perturbations]:
        """Of ``weights`` what changed anything."""
        return {
            name: changed for name, changed in self.weights.items() if changed and changed.weights
        }
