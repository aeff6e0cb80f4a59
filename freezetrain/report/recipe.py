"""The recipe of `freezetrain report`."""

from dataclasses import dataclass, field

from freezetrain.recipe.check import check
from freezetrain.recipe.text_types import LocalPath


@dataclass
class ReportRecipe:
    """Show runs side by side in one page: what each gained, and what it forgot."""

    runs: list[LocalPath]
    """Folders that train, forgetting or quickstart left, or forgetting.json files of a tracker."""
    names: list[str] = field(default_factory=list)
    """Name of each run. Empty: the shortest endings of their paths that tell them apart."""

    def __post_init__(self) -> None:
        check(bool(self.runs), "runs", "one or more", self.runs)
