"""The recipe of comparing regions."""

from dataclasses import dataclass, field

from freezetrain.recipe.check import check


@dataclass
class OverlapRecipe:
    """Compare regions: how much do they have in common, and where does each lie?"""

    regions: list[str]
    """Region files, or folders of them; of any models whose parameters have the same shapes."""
    names: list[str] = field(default_factory=list)
    """Name of each region. Empty: the shortest endings of their paths that tell them apart."""

    def __post_init__(self) -> None:
        check(bool(self.regions), "regions", "one or more", self.regions)
