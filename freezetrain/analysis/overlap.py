"""`freezetrain overlap`: regions compared, each with each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from freezetrain.analysis.figures import overlap_figures
from freezetrain.analysis.recipe import OverlapRecipe
from freezetrain.errors import UserError
from freezetrain.files import write_text
from freezetrain.formats import fixed, language_and_code, shortest_endings
from freezetrain.regions import Region
from freezetrain.regions.overlap import expected_jaccard, jaccard_matrix, shares
from freezetrain.report.pictures import FOLDER as PICTURES
from freezetrain.report.pictures import save_pictures
from freezetrain.run_folder import Outcome
from freezetrain.tables import Column, Table, to_csv
from freezetrain.typed_json import to_json

_SUFFIX = ".safetensors"

_NOTED = 8  # regions up to which a table has what chance gives below each number


@dataclass(frozen=True)
class Overlap:
    """Regions compared: n of them."""

    names: list[str]
    jaccard: list[list[float]]
    """[n, n], entries in both regions over entries in either."""
    expected: list[list[float]]
    """[n, n], that of random regions of these sizes."""
    by_layer: dict[str, dict[int, float]]
    """Region → layer → share of its weights that is in the region."""
    by_kind: dict[str, dict[str, float]]
    """Region → kind of parameter → share of its weights that is in the region."""

    def pairs(self) -> "list[Pair]":
        """Each two regions once."""
        return [
            Pair(self.names[a], self.names[b], self.jaccard[a][b], self.expected[a][b])
            for a, b in combinations(range(len(self.names)), 2)
        ]


@dataclass(frozen=True)
class Pair:
    """Two regions, what they have in common, and what chance gives."""

    a: str
    b: str
    jaccard: float
    expected: float


def compare_regions(
    regions: Mapping[str, Region], numels: Mapping[str, int] | None = None
) -> Overlap:
    """What each region has in common with each, and where each lies.

    ``numels``: parameter → entries, of all parameters that the shares of layers and kinds are of;
    None: those of each region.
    """
    places = {name: shares(region, numels) for name, region in regions.items()}
    return Overlap(
        names=list(regions),
        jaccard=jaccard_matrix(regions),
        expected=[[expected_jaccard(a, b) for b in regions.values()] for a in regions.values()],
        by_layer={name: place.by_layer for name, place in places.items()},
        by_kind={name: place.by_kind for name, place in places.items()},
    )


def region_files(places: list[str]) -> list[Path]:
    """Files and folders that hold a region each, as given or one level down in a given folder."""
    files: list[Path] = []
    for place in map(Path, places):
        inside = sorted(place.glob(f"*{_SUFFIX}")) if place.is_dir() else []
        # A region of several shards is a folder itself, with an index.
        if place.is_dir() and not (place / f"region{_SUFFIX}.index.json").is_file():
            if not inside:
                raise UserError(
                    f"expected region files in the folder {place}, and it has no *{_SUFFIX}; "
                    "give a folder that select wrote, or a region file"
                )
            files += inside
        else:
            files.append(place)
    return files


def run(recipe: OverlapRecipe, folder: Path) -> Outcome:
    """Leaves overlap.csv and pictures."""
    files = region_files(recipe.regions)
    names = recipe.names or shortest_endings(
        [str(_labelled(Path(os.path.realpath(path)))) for path in files]
    )
    if len(names) != len(files):
        raise UserError(
            f"expected a name for each of {len(files)} regions, got {len(names)}; give as many, or "
            "none"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"expected a name of its own for each region, got {twice[0]!r} twice")
    regions = {name: Region.load(path) for name, path in zip(names, files, strict=True)}
    overlap = compare_regions(regions)
    columns = [Column(key, key) for key in ("a", "b", "jaccard", "expected")]
    write_text(folder / "overlap.csv", to_csv(columns, overlap.pairs()))
    save_pictures(overlap_figures(overlap), folder / PICTURES)
    table = jaccard_table(overlap, "regions")
    results = {"files": [str(path) for path in files], **to_json(overlap)}
    return Outcome(results, [table, f"pictures: {folder / PICTURES}"])


def _labelled(path: Path) -> Path:
    """What a region is called by: its file, or the folder of one that select left."""
    return (
        path.parent
        if path.name == f"region{_SUFFIX}"
        else path.with_name(path.name.removesuffix(_SUFFIX))
    )


def jaccard_table(overlap: Overlap, what: str) -> Table:
    """Each region with each; what chance gives is noted where there is room."""
    noted = len(overlap.names) <= _NOTED

    def column(place: int) -> Column:
        return Column(
            overlap.names[place],
            lambda row: overlap.jaccard[row][place],
            lambda share: fixed(share, 3),
            note=lambda row: f"chance {fixed(overlap.expected[row][place], 3)}" if noted else "",
        )

    places = range(len(overlap.names))
    region = Column("region", lambda row: language_and_code(overlap.names[row]), text=True)
    title = f"Jaccard of {what}: entries in both regions over entries in either"
    return Table(title, [region, *map(column, places)], places, sortable=True)
