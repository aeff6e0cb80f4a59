"""Evaluate a model with each of several regions changed, one at a time."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from transformers import PreTrainedModel

from freezetrain.errors import CheckError
from freezetrain.evaluation import Document, Figures, evaluate
from freezetrain.evaluation.ranks import is_first_rank
from freezetrain.jobs.evaluate import window_length
from freezetrain.jobs.progress import progress_bar
from freezetrain.recipe import EvaluationTexts
from freezetrain.regions import Region, ablate

LanguageFigures = dict[str, Figures]


def each_alone(
    model: PreTrainedModel,
    documents: dict[str, list[Document]],
    evaluation: EvaluationTexts,
    regions: Iterable[tuple[str, Region]],
    *,
    number: int,
    what: str,
    change: Callable[[PreTrainedModel, Region], AbstractContextManager[None]] = ablate,
    during: Callable[[str], None] | None = None,
) -> dict[str, LanguageFigures]:
    """Name of a region -> figures of every language while it alone is changed.

    ``regions`` is gone through once, so that each may be made when its turn comes; ``number`` of
    them are known beforehand, for the one progress bar, named ``what``. An empty region stands for
    the model as it is. ``during(name)`` is called while the region is changed.
    """
    found = {}
    with progress_bar(what, is_first_rank()) as progress:
        for turn, (name, region) in enumerate(regions):

            def in_all(done: int, total: int, turn: int = turn) -> None:
                place = f" ({turn + 1} of {number})" if number > 1 else ""
                progress(turn * total + done, number * total, what + place)

            with change(model, region):
                try:
                    found[name] = evaluate(
                        model,
                        documents,
                        max_length=window_length(evaluation, model),
                        overlap=evaluation.overlap,
                        batch_tokens=evaluation.batch_tokens,
                        progress=in_all,
                    )
                except CheckError as error:
                    raise CheckError(f"{name}: {error}") from error
                if during is not None:
                    during(name)
    return found


def rises(before: Mapping[str, Figures], after: Mapping[str, Figures]) -> dict[str, float]:
    """Language -> rise of its NLL, in nats per byte."""
    return {
        language: figures.nll_per_byte - before[language].nll_per_byte
        for language, figures in after.items()
    }
