"""The scores that the paper's parts are made from: all, snapshots, methods, halves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freezetrain.jobs.score import score_languages, scores_folder
from freezetrain.jobs.score_files import language_scores
from freezetrain.recipe import PaperRecipe
from freezetrain.regions import Scores


class PaperScores:
    """Scores of every language, made where they are not there yet, read when they are asked for.

    ``made``: language → how its scores, by the first method, came about. ``core``: its languages.
    All ranks make one together.
    """

    def __init__(
        self, recipe: PaperRecipe, folder: Path, languages: list[str], core: list[str]
    ) -> None:
        self.languages = languages
        self.core = core
        self._recipe = recipe.scoring(languages)
        self._folder = folder / "scores"
        self._second = folder / "scores-second-half"
        self.made: Mapping[str, Any] = score_languages(self._recipe, self._folder)[
            recipe.methods[0]
        ]
        # Of a language with fewer sequences the second half is not another half.
        self.halved = [
            name
            for name in languages
            if recipe.halves and self.made[name]["sequences"] == recipe.sequences
        ]
        if self.halved:
            score_languages(recipe.second_half(self.halved), self._second)

    @property
    def snapshots(self) -> list[int]:
        """Numbers of sequences at which all the core's languages have scores, ascending."""
        fewest = min(self.made[name]["sequences"] for name in self.core)
        return [count for count in self._recipe.snapshots if count < fewest]

    def folder(self, method: str | None = None, sequences: int | None = None) -> Path:
        """Where the scores by ``method`` (None: the first) after so many ``sequences`` lie."""
        return scores_folder(self._recipe, self._folder, method, sequences)

    def of(self) -> dict[str, Scores]:
        """Language → its scores."""
        return language_scores(self.folder(), self.languages)

    def core_sum(self, method: str | None = None, sequences: int | None = None) -> Scores:
        """Of the core's languages together, as in :meth:`folder`."""
        return Scores.sum(list(language_scores(self.folder(method, sequences), self.core).values()))

    def halves(self) -> dict[str, tuple[Scores, Scores]]:
        """Language → scores of its first and of its second half of the sequences."""
        if not self.halved:
            return {}
        # Of a language that has fewer sequences there may be no scores at the half.
        at_half = self.folder(sequences=self._recipe.sequences // 2)
        first, second = (language_scores(at, self.halved) for at in (at_half, self._second))
        return {name: (first[name], second[name]) for name in self.halved}
