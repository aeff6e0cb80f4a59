"""The scores that `freezetrain score` left in a folder, by language."""

from collections.abc import Sequence
from pathlib import Path

from freezetrain.errors import UserError, near_misses
from freezetrain.regions import Scores


def language_scores(folder: str | Path, languages: Sequence[str] = ()) -> dict[str, Scores]:
    """Scores of ``languages``, in their order; of all that the folder holds if none is named.

    Raises:
        UserError: no score file there, or none of a language.
    """
    folder = Path(folder)
    files = {path.name.removesuffix(".safetensors"): path for path in folder.glob("*.safetensors")}
    if not files:
        raise UserError(
            f"expected a folder of score files at {folder}, found none; make them with "
            "`freezetrain score`"
        )
    for language in languages:
        if language not in files:
            raise UserError(
                f"{folder} has no scores of language {language!r}{near_misses(language, files)}; "
                f"it has {' '.join(sorted(files))}"
            )
    return {language: Scores.load(files[language]) for language in languages or sorted(files)}
