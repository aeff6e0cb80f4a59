"""`freezetrain overlap`: regions compared, each with each."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from freezetrain.analysis.figures import overlap_figures
from freezetrain.analysis.recipe import OverlapRecipe
from freezetrain.errors import UserError
from freezetrain.files import write_text
from freezetrain.formats import shortest_endings
from freezetrain.regions import Region
from freezetrain.regions.overlap import expected_jaccard, jaccard_matrix, shares
from freezetrain.report.pictures import FOLDER as PICTURES
from freezetrain.report.pictures import save_pictures
from freezetrain.run_folder import Outcome

_SUFFIX = ".safetensors"

_SHOWN = 10  # regions that the terminal has columns for


def overlap(
    regions: Mapping[str, Region], numels: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Jaccard and what chance gives, of each with each, and where each lies; ready for JSON.

    ``numels``: parameter -> entries, of all parameters that the shares of layers and kinds are of;
    None: those of each region.
    """
    found = {name: shares(region, numels) for name, region in regions.items()}
    return {
        "names": list(regions),
        "jaccard": jaccard_matrix(regions),
        "expected": [[expected_jaccard(a, b) for b in regions.values()] for a in regions.values()],
        "by_layer": {
            name: {str(layer): share for layer, share in of.by_layer.items()}
            for name, of in found.items()
        },
        "by_kind": {name: of.by_kind for name, of in found.items()},
    }


def region_files(places: list[str]) -> list[Path]:
    """Files and folders that hold a region each, as given or one level down in a given folder."""
    found = []
    for place in map(Path, places):
        inside = sorted(place.glob(f"*{_SUFFIX}")) if place.is_dir() else []
        # A region of several shards is a folder itself, with an index.
        if place.is_dir() and not (place / f"region{_SUFFIX}.index.json").is_file():
            if not inside:
                raise UserError(
                    f"expected region files in the folder {place}, and it has no *{_SUFFIX}; "
                    "give a folder that select wrote, or a region file"
                )
            found += inside
        else:
            found.append(place)
    return found


def run(recipe: OverlapRecipe, folder: Path) -> Outcome:
    """Leaves overlap.csv and pictures."""
    files = region_files(recipe.regions)
    names = recipe.names or shortest_endings([str(_labelled(path.resolve())) for path in files])
    if len(names) != len(files):
        raise UserError(
            f"expected a name for each of {len(files)} regions, got {len(names)}; give as many, or "
            "none"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"expected a name of its own for each region, got {twice[0]!r} twice")
    found = overlap({name: Region.load(path) for name, path in zip(names, files, strict=True)})
    write_text(folder / "overlap.csv", _csv(found))
    save_pictures(overlap_figures(found), folder / PICTURES)
    display = [_table(found), f"pictures: {folder / PICTURES}"]
    return Outcome({"files": [str(path) for path in files], **found}, display)


def _labelled(path: Path) -> Path:
    """What a region is called by: its file, or the folder of one that select left."""
    return (
        path.parent
        if path.name == f"region{_SUFFIX}"
        else path.with_name(path.name.removesuffix(_SUFFIX))
    )


def _csv(found: Mapping[str, Any]) -> str:
    """A row a pair, each pair once, numbers in full."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["a", "b", "jaccard", "expected"])
    names = found["names"]
    for one, a in enumerate(names):
        for other in range(one + 1, len(names)):
            numbers = (found[key][one][other] for key in ("jaccard", "expected"))
            rows.writerow([a, names[other], *numbers])
    return written.getvalue()


def _table(found: Mapping[str, Any]) -> Table:
    """Jaccard of each with each; of many regions, that with the first few."""
    shown = found["names"][:_SHOWN]
    table = Table(title="entries in both regions over entries in either", title_justify="left")
    table.add_column("region", overflow="fold")
    for name in shown:
        table.add_column(escape(name), justify="right", overflow="fold")
    for name, row in zip(found["names"], found["jaccard"], strict=True):
        table.add_row(escape(name), *(f"{share:.3f}" for share in row[: len(shown)]))
    if len(shown) < len(found["names"]):
        table.caption = f"{len(found['names']) - len(shown)} more columns are in overlap.csv"
    return table
