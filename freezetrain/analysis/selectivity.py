"""Does a language's region serve that language alone? Regions × languages, and the diagonal."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel

from freezetrain.analysis.ablate import NOTHING
from freezetrain.analysis.alone import LanguageFigures, each_alone, rises
from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation import Document
from freezetrain.recipe.sources import EvaluationTexts
from freezetrain.regions import Region

Matrix = Mapping[str, Mapping[str, float]]  # language of the region -> language -> nats per byte


def selectivity(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    regions: Mapping[str, Region],
    controls: Mapping[str, Region] | None,
    evaluation: EvaluationTexts,
    before: LanguageFigures | None = None,
) -> dict[str, Any]:
    """What zeroing each language's region does to every language, ready for JSON.

    Zhang et al. 2024 (arXiv 2402.14700): zeroing a language's monolingual region hurts that
    language most.

    Args:
        regions: by language.
        controls: by language too, such as ``region.random_like`` of each. None: none.
        before: what the model gives as it is, on the same documents. None: it is evaluated.

    Returns:
        ``languages`` (of the regions) and ``evaluated`` ones; ``entries`` of each region;
        ``rise`` and ``control``: language of the region -> language -> rise of the NLL in nats per
        byte; and the ``dominance`` of the diagonal.

    Raises:
        UserError: no region, or a region of a language without documents.
    """
    if not regions:
        raise UserError("expected the region of at least one language, got none")
    for language in regions:
        if language not in documents:
            raise UserError(
                f"the region of language {language!r} needs documents of it to be tested on"
                f"{near_misses(language, documents)}; those given are of {' '.join(documents)}"
            )
    every = {} if before is not None else {NOTHING: Region({})}
    every |= {f"region of {name}": region for name, region in regions.items()}
    every |= {f"control of {name}": region for name, region in (controls or {}).items()}
    found = each_alone(
        model, documents, evaluation, every.items(), number=len(every), what="zero each region"
    )
    before = before or found[NOTHING]

    def matrix(what: str, names: Mapping[str, Region]) -> dict[str, dict[str, float]]:
        return {name: rises(before, found[f"{what} of {name}"]) for name in names}

    rise = matrix("region", regions)
    return {
        "languages": list(regions),
        "evaluated": list(documents),
        "entries": {name: region.count for name, region in regions.items()},
        "rise": rise,
        "control": None if controls is None else matrix("control", controls),
        "dominance": dominance(rise),
    }


def dominance(rise: Matrix) -> dict[str, Any]:
    """By how much each language's own region hurts it more, ready for JSON.

    Among the ``of`` languages that have regions: in how many ``rows`` the region hurts its own
    language more than any other one; in how many ``columns`` the language is hurt more by its own
    region than by any other; the mean on the diagonal, ``own``, and off it, ``other``, and their
    ``ratio`` (None where other is not above 0). Of each language, what its region does to it
    (``own``), and at most (``largest_other``, to ``other``) and on average (``mean_other``) to
    another; None where there is only one language.
    """
    names = list(rise)
    languages: dict[str, dict[str, Any]] = {}
    rows = columns = 0
    for name in names:
        own = rise[name][name]
        others = {other: rise[name][other] for other in names if other != name}
        worst = max(others, key=lambda other: others[other]) if others else None
        rows += all(own > value for value in others.values())
        columns += all(own > rise[other][name] for other in others)
        languages[name] = {
            "own": own,
            "largest_other": None if worst is None else others[worst],
            "other": worst,
            "mean_other": fmean(others.values()) if others else None,
        }
    diagonal = fmean(one["own"] for one in languages.values())
    rest = fmean(one["mean_other"] for one in languages.values()) if len(names) > 1 else None
    return {
        "rows": rows,
        "columns": columns,
        "of": len(names),
        "own": diagonal,
        "other": rest,
        "ratio": diagonal / rest if rest is not None and rest > 0 else None,
        "languages": languages,
    }
