"""`freezetrain verify`: is every frozen entry bit-identical in two model folders?"""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from freezetrain.analysis.recipe import VerifyRecipe
from freezetrain.errors import UserError
from freezetrain.freezing import Comparison, compare_checkpoints, compare_weights
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import load_model
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region
from freezetrain.run_folder import Outcome


def _stored_as_named(region: Region, folder: Path) -> bool:
    """Whether the folder's files hold the region's parameters under the names that models use."""
    stored = WeightsFolder(folder)
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
    GPT-NeoX's head); these are loaded whole.
    """
    if _stored_as_named(region, base):
        return compare_checkpoints(base, adapted, region, clamp=clamp, rounded_to=rounded_to)
    models = [load_model(ModelSource(str(path), dtype="stored")) for path in (base, adapted)]
    weights = [{n: p.detach() for n, p in model.named_parameters()} for model in models]
    return compare_weights(weights[0], weights[1], region, clamp=clamp, rounded_to=rounded_to)


def as_display(found: Comparison) -> list[str | Table]:
    """The counts, and the first offenders where there are any."""
    changed = f"{found.changed:,} of {found.trainable:,} trainable entries changed"
    if not found.moved:
        return [f"{found.checked:,} frozen entries are bit-identical; {changed}"]
    table = Table(title="first that moved")
    table.add_column("parameter", overflow="fold")
    for heading in ("flat index", "base", "adapted"):
        table.add_column(heading, justify="right")
    for offender in found.offenders:
        table.add_row(
            offender.name, str(offender.index), repr(offender.base), repr(offender.adapted)
        )
    lines: list[str | Table] = [
        f"{found.moved:,} of {found.checked:,} frozen entries moved; {changed}"
    ]
    if found.rounded_to:
        lines.append(
            f"all that moved have the base's values rounded to {found.rounded_to}, as an engine "
            f"makes them that trains in 16 bits: --rounded_to {found.rounded_to} accepts that"
        )
    return [*lines, table]


def run(recipe: VerifyRecipe, folder: Path) -> Outcome:
    region = Region.load(recipe.region)
    found = compare(
        Path(recipe.base), Path(recipe.adapted), region, recipe.clamp, recipe.rounded_to
    )
    results = {**asdict(found), "region_digest": region.digest}
    return Outcome(results, as_display(found), passed=found.moved == 0)
