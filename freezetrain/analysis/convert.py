"""`freezetrain convert`: regions and scores to and from the layout of the paper's code."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from freezetrain.analysis.recipe import ConvertRecipe
from freezetrain.analysis.select import stored_model
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region, block_parameters
from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import selection_facts
from freezetrain.regions.parameters import all_parameters
from freezetrain.regions.storage import stored_what
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, export_masks, export_scores, import_masks, import_scores
from freezetrain.scoring.paper_layout import holds_masks


def run(recipe: ConvertRecipe, folder: Path) -> Outcome:
    source = Path(recipe.source)
    if recipe.to == "paper":
        what, path = _to_paper(source, folder)
    else:
        what, path = _from_paper(source, folder, recipe)
    return Outcome({"what": what, "file": path.name}, [f"{what}: {path}"])


def _to_paper(source: Path, folder: Path) -> tuple[str, Path]:
    if not source.exists():
        raise UserError(f"expected a region or score file at {source}, there is nothing")
    if stored_what(source) == "scores":
        return "scores", export_scores(Scores.load(source), folder / "scores")
    return "region", export_masks(Region.load(source), folder / "masks")


def _from_paper(source: Path, folder: Path, recipe: ConvertRecipe) -> tuple[str, Path]:
    if holds_masks(source):
        if recipe.language is not None:
            raise UserError(
                f"expected scores for language {recipe.language!r}, got masks in {source}; leave "
                "language out"
            )
        region = import_masks(source)
        if recipe.model is not None:
            region = region_in(region, recipe.model)
        return "region", region.save(folder / "region.safetensors")
    scores = import_scores(source, recipe.language)
    if recipe.model is not None:
        scores = scores_in(scores, recipe.model)
    path = folder / f"{recipe.language or 'scores'}.safetensors"
    scores.save(path)
    return "scores", path


def region_in(region: Region, source: ModelSource) -> Region:
    """The region under the model's own names, with the model as base; UserError if it has none."""
    model, full = stored_model(source)
    names = _names_in(model, region.shapes)
    entries = {names[name]: entries for name, entries in region.items()}
    return Region(entries, base_of(model, full), region.made)


def scores_in(scores: Scores, source: ModelSource) -> Scores:
    """As :func:`region_in`; also which parameters are of norms, and which are transposed."""
    model, full = stored_model(source)
    names = {own: name for name, own in _names_in(model, scores.shapes).items()}
    blocks = block_parameters(model, norms=True)
    kept = {name: names[name] for name in blocks if name in names}
    made = {
        **scores.made,
        "left_out": [*scores.made["left_out"], *sorted(names.keys() - kept.keys())],
        **selection_facts(model, kept),
    }
    return Scores(_Renamed(scores, kept), base_of(model, full), made)


class _Renamed(Mapping[str, Tensor]):
    """Some of the scores under other names."""

    def __init__(self, scores: Scores, names: Mapping[str, str]) -> None:
        self._scores = scores
        self._names = names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._scores.shape(self._names[name])

    def __getitem__(self, name: str) -> Tensor:
        return self._scores[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _names_in(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Each name -> the parameter of the model with this name or, after a dot, this ending.

    ``layers.0.x`` is ``model.layers.0.x`` where only that ends so. UserError for none, several, or
    another shape.
    """
    parameters = all_parameters(model)
    names = {}
    for name, shape in shapes.items():
        fitting = [own for own in parameters if own == name] or [
            own for own in parameters if own.endswith(f".{name}")
        ]
        if len(fitting) != 1:
            which = f"{len(fitting)} ({fitting[0]!r}, ...)" if fitting else "none"
            raise UserError(
                f"expected one parameter of the model that is called {name!r} or ends so, got "
                f"{which}{near_misses(name, parameters)}; give the model that this was made for"
            )
        own = fitting[0]
        if tuple(parameters[own].shape) != shape:
            raise UserError(
                f"expected {name!r} in the model's shape {list(parameters[own].shape)}, got "
                f"{list(shape)}; give the model that this was made for"
            )
        names[name] = own
    name, times = Counter(names.values()).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} files are of the parameter {name!r}; keep one of them")
    return names
