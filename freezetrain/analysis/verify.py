"""`freezetrain verify`: is every frozen entry bit-identical in two model folders?"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from freezetrain.analysis.recipe import VerifyRecipe
from freezetrain.errors import UserError
from freezetrain.freezing import Comparison, compare_checkpoints, compare_weights
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import load_model, meta_model
from freezetrain.places import refuse_adapter
from freezetrain.recipe.sources import ModelSource, model_place
from freezetrain.regions import Region
from freezetrain.run_folder import Outcome
from freezetrain.stored_model import not_of_model
from freezetrain.tables import Column, Table


def _stored_as_named(region: Region, stored: WeightsFolder) -> bool:
    """Whether the folder's files hold the region's parameters under the names that models use."""
    try:
        for name, entries in region.items():
            stored.stored_name(name, entries.shape)
    except UserError:
        return False
    return True


def compare(
    base: Path,
    adapted: Path,
    region: Region,
    clamp: float | None = None,
    rounded_to: str | None = None,
) -> Comparison:
    """Compare two model folders, tensor by tensor from their files where that is possible.

    transformers stores some models under other names than they have in memory (fused experts,
    GPT-NeoX's head); these are loaded whole. What is in files and no parameter of the model of
    their config.json is left out.
    """
    folders = WeightsFolder.plain(base), WeightsFolder.plain(adapted)
    left_out = _not_of_models(folders)
    options: dict[str, Any] = {"clamp": clamp, "rounded_to": rounded_to, "left_out": left_out}
    if all(_stored_as_named(region, folder) for folder in folders):
        return compare_checkpoints(base, adapted, region, **options)
    models = [load_model(ModelSource(str(path), dtype="stored")) for path in (base, adapted)]
    weights = [{n: p.detach() for n, p in model.named_parameters()} for model in models]
    comparison = compare_weights(weights[0], weights[1], region, **options)
    return replace(comparison, left_out=sorted(left_out))


def _not_of_models(folders: Sequence[WeightsFolder]) -> set[str]:
    """Names in the files of tensors that are no parameters of the folders' models."""
    names = set[str]()
    for folder in folders:
        try:
            model = meta_model(ModelSource(str(folder.path), dtype="stored"))
        except UserError:  # weights alone, or a model of its own code: names must tell
            continue
        names |= not_of_model(model, folder)
    return names


def comparison_display(comparison: Comparison) -> list[str | Table]:
    """The counts, and the first offenders where there are any."""
    changed = f"{comparison.changed:,} of {comparison.trainable:,} trainable entries changed"
    out = comparison.left_out
    left_out = [
        f"{len(out)} tensors in the files that are no parameters were not compared, first {out[0]}"
        for _ in out[:1]
    ]
    if not comparison.moved:
        return [f"{comparison.checked:,} frozen entries are bit-identical; {changed}", *left_out]
    display: list[str | Table] = [
        f"{comparison.moved:,} of {comparison.checked:,} frozen entries moved; {changed}",
        *left_out,
    ]
    if comparison.rounded_to:
        display.append(
            f"all that moved have the base's values rounded to {comparison.rounded_to}, as an "
            f"engine makes them that trains in 16 bits: --rounded_to {comparison.rounded_to} "
            "accepts that"
        )
    columns = [
        Column("parameter", "name", text=True),
        Column("flat index", "index"),
        Column("base", "base", repr),
        Column("adapted", "adapted", repr),
    ]
    return [*display, Table("first that moved", columns, comparison.offenders)]


def run(recipe: VerifyRecipe, folder: Path) -> Outcome:
    base, adapted = (Path(model_place(path)) for path in (recipe.base, recipe.adapted))
    for path in (base, adapted):
        refuse_adapter(
            path,
            ": the adapter itself moves no weight of its base, merging moves frozen entries of "
            "the layers that it adds to, which are then counted",
        )
    region = Region.load(recipe.region)
    comparison = compare(base, adapted, region, recipe.clamp, recipe.rounded_to)
    results = {**asdict(comparison), "region_digest": region.digest}
    return Outcome(results, comparison_display(comparison), passed=comparison.moved == 0)
