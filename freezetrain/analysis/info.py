"""`freezetrain info`: what a region file, a score file or a model folder holds."""

from pathlib import Path
from typing import Any

from rich.table import Table

from freezetrain.analysis.recipe import InfoRecipe
from freezetrain.errors import UserError
from freezetrain.models import load_model
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import (
    Region,
    block_parameters,
    decoder_blocks,
    embedding_parameters,
    fingerprint,
)
from freezetrain.regions.storage import stored_what
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores


def region_contents(region: Region) -> tuple[dict[str, Any], Table]:
    """How many entries, where, of which base, and how it was made."""
    coverage = region.coverage()
    results = {
        "kind": "region",
        "entries": region.count,
        "parameters": len(region),
        "bytes": region.nbytes,
        "coverage": coverage.model,
        "coverage_by_layer": {str(layer): share for layer, share in coverage.layers.items()},
        "digest": region.digest,
        "base": region.base.name if region.base else None,
        "made": region.made,
    }
    title = f"region of {region.count:,} entries, {coverage.model:.3%} of its parameters"
    table = _parameter_table(title, "kind", "shape", "entries", "share")
    for name, entries in region.items():
        shape = "×".join(map(str, entries.shape))
        share = f"{coverage.tensors[name]:.3%}"
        table.add_row(name, entries.kind, shape, f"{entries.count:,}", share)
    return results, table


def score_facts(scores: Scores) -> tuple[dict[str, Any], Table]:
    """How the scores were made, and their range in each parameter."""
    results = {
        "kind": "scores",
        "parameters": len(scores),
        "base": scores.base.name if scores.base else None,
        "made": scores.made,
    }
    of = scores.made.get("language") or "several languages"
    table = _parameter_table(f"scores of {of}", "shape", "mean", "largest")
    for name, values in scores.items():
        shape = "×".join(map(str, values.shape))
        table.add_row(name, shape, f"{values.mean():.3g}", f"{values.max():.3g}")
    return results, table


def _parameter_table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    table.add_column("parameter", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def model_facts(path: str) -> tuple[dict[str, Any], Table]:
    """What freezetrain finds in a model by structure."""
    model = load_model(ModelSource(path, dtype="stored"))
    with_norms, without = block_parameters(model, norms=True), block_parameters(model)
    blocks, embeddings = decoder_blocks(model), embedding_parameters(model)
    results: dict[str, Any] = {
        "kind": "model",
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "decoder_blocks": [name for name, _ in blocks],
        "freezable": sum(p.numel() for p in without.values()),
        "norms": sum(p.numel() for p in with_norms.values())
        - sum(p.numel() for p in without.values()),
        "embeddings": embeddings,
        "fingerprint": fingerprint(model),
    }
    table = Table("what", "found", title=type(model).__name__)
    for name in ("parameters", "freezable", "norms"):
        table.add_row(name, f"{results[name]:,}")
    table.add_row("decoder blocks", f"{len(blocks)}: {blocks[0][0]} to {blocks[-1][0]}")
    for name, parameter in embeddings.items():
        table.add_row(f"{name} embedding", parameter)
    return results, table


def run(recipe: InfoRecipe, folder: Path) -> Outcome:
    path = Path(recipe.path)
    if (path / "config.json").is_file():
        return Outcome(*_listed(model_facts(recipe.path)))
    if not path.exists():
        raise UserError(
            f"expected a region file, a score file or a model folder at {path}, there is nothing"
        )
    if stored_what(path) == "scores":
        return Outcome(*_listed(score_facts(Scores.load(path))))
    return Outcome(*_listed(region_contents(Region.load(path))))


def _listed(found: tuple[dict[str, Any], Table]) -> tuple[dict[str, Any], list[Table]]:
    results, table = found
    return results, [table]
