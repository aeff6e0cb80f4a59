"""`freezetrain info`: what a region file, a score file or a model folder holds."""

from pathlib import Path
from typing import Any

from freezetrain.analysis.recipe import InfoRecipe
from freezetrain.errors import UserError
from freezetrain.models import load_model
from freezetrain.recipe.sources import ModelSource, model_place
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
from freezetrain.tables import Column, Table, facts_table


def region_facts(region: Region) -> Outcome:
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
    columns = [
        _PARAMETER,
        Column("kind", lambda row: row[1].kind, text=True),
        Column("shape", lambda row: _shape(row[1].shape), text=True),
        Column("entries", lambda row: row[1].count),
        Column("share", lambda row: coverage.tensors[row[0]], lambda share: f"{share:.3%}"),
    ]
    title = f"region of {region.count:,} entries, {coverage.model:.3%} of its parameters"
    return Outcome(results, [Table(title, columns, list(region.items()))])


def score_facts(scores: Scores) -> Outcome:
    """How the scores were made, and their range in each parameter."""
    results = {
        "kind": "scores",
        "parameters": len(scores),
        "base": scores.base.name if scores.base else None,
        "made": scores.made,
    }
    columns = [
        _PARAMETER,
        Column("shape", lambda row: _shape(row[1]), text=True),
        Column("mean", 2, lambda mean: f"{mean:.3g}"),
        Column("largest", 3, lambda largest: f"{largest:.3g}"),
    ]
    rows = [
        (name, tuple(values.shape), values.mean().item(), values.max().item())
        for name, values in scores.items()  # one tensor at a time
    ]
    language = scores.made.get("language") or "several languages"
    return Outcome(results, [Table(f"scores of {language}", columns, rows)])


_PARAMETER = Column("parameter", 0, text=True)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def model_facts(path: str) -> Outcome:
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
    facts = {name: f"{results[name]:,}" for name in ("parameters", "freezable", "norms")}
    facts["decoder blocks"] = f"{len(blocks)}: {blocks[0][0]} to {blocks[-1][0]}"
    facts |= {f"{name} embedding": parameter for name, parameter in embeddings.items()}
    return Outcome(results, [facts_table(type(model).__name__, facts)])


def run(recipe: InfoRecipe, folder: Path) -> Outcome:
    path = Path(model_place(recipe.path))
    if (path / "config.json").is_file():
        return model_facts(recipe.path)
    if not path.exists():
        raise UserError(
            f"expected a region file, a score file or a model folder at {path}, there is nothing"
        )
    if stored_what(path) == "scores":
        return score_facts(Scores.load(path))
    return region_facts(Region.load(path))
