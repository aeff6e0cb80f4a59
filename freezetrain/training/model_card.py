"""The model card that a run leaves with its model: what it was made of, what it forgot."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from freezetrain import __version__
from freezetrain.escaping import visible_lines
from freezetrain.formats import count
from freezetrain.hub_network import can_be_id
from freezetrain.recipe.sources import BUILT_IN_MODEL, ModelSource
from freezetrain.report.run import RegionFacts
from freezetrain.tables import Column, Table, markdown, to_markdown
from freezetrain.training.recipe import TrainRecipe

CARD = "README.md"

_LICENSE = ("license", "license_name", "license_link")


def model_card(
    recipe: TrainRecipe,
    recipe_text: str,
    data: Mapping[str, Any],
    region: RegionFacts | None,
    forgetting: Table | None,
    base: Path,
) -> ModelCard:
    """The card of the model that a run of ``recipe`` left.

    Args:
        recipe: what was trained, and how.
        recipe_text: the same in YAML, as the run's folder has it.
        data: language → what was read of it, as results.json has it.
        region: what was frozen.
        forgetting: of the watched languages, and the target's gain; None: nothing was watched.
        base: folder of the base's files, whose card says under what license it is.
    """
    name = _base_name(recipe.model)
    trained = [language for language, facts in data.items() if not facts["replayed"]]
    how = f"This is {markdown(name)}, pre-trained further"
    if recipe.from_scratch:
        how = f"This is a model with the configuration of {markdown(name)}, pre-trained"
    texts = ", ".join(map(markdown, trained))
    parts = [
        "# Model card",
        f"{how} on texts in {texts} with freezetrain {__version__}.",
        "## Texts",
        to_markdown(_texts(data)),
    ]
    if region is not None:
        parts += ["## Frozen weights", *_frozen(region, name)]
    parts += ["## What was forgotten, and what was gained"]
    if forgetting is None:
        parts.append("No language was watched.")
    else:
        parts.append("Loss on held-out documents, in nats per byte, of this model beside its base.")
        parts.append(to_markdown(forgetting))
    lines = visible_lines(recipe_text).rstrip().splitlines()
    parts += ["## Recipe", "\n".join(f"    {line}".rstrip() for line in lines)]
    card = "\n\n".join(parts)
    return ModelCard(f"---\n{_metadata(recipe, trained, base).to_yaml()}\n---\n\n{card}\n")


def _base_name(source: ModelSource) -> str:
    """An id on the hub, or the folder's name: where it lay says nothing to others."""
    if _is_id(source):
        return source.path
    return (
        "freezetrain's built-in base" if source.path == BUILT_IN_MODEL else Path(source.path).name
    )


def _is_id(source: ModelSource) -> bool:
    return not Path(source.place).is_dir() and can_be_id(source.path)


def _metadata(recipe: TrainRecipe, trained: Sequence[str], base: Path) -> ModelCardData:
    sources = [recipe.texts, *([] if recipe.replay is None else [recipe.replay.texts])]
    sets = dict.fromkeys(
        source.hub for source in sources if source.hub and not Path(source.hub).is_dir()
    )
    known: dict[str, Any] = {
        "base_model": recipe.model.path if _is_id(recipe.model) else None,
        "datasets": list(sets) or None,
        # The hub knows ISO 639 codes alone.
        "language": [name for name in trained if re.fullmatch("[a-z]{2,3}", name)] or None,
    }
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["freezetrain", "continued-pretraining"],
        **known,
        **({} if recipe.from_scratch else _license(base)),
    )


def _license(base: Path) -> dict[str, Any]:
    """What the base's card says of its license, which a model made from it goes on with."""
    if not (base / CARD).is_file():
        return {}
    try:
        data = ModelCard.load(base / CARD, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError):  # it is no card, and then it says nothing
        return {}
    return {name: data[name] for name in _LICENSE if name in data}


def _texts(data: Mapping[str, Any]) -> Table:
    columns = [
        Column("language", 0, text=True),
        Column("documents", lambda row: row[1]["documents"], count),
        Column("tokens", lambda row: row[1]["tokens"], count),
        Column("share of the training", lambda row: row[1]["share"], "{:.1%}".format),
        Column("passes", lambda row: row[1]["epochs"], "{:.3g}".format),
        Column("", lambda row: "replayed" if row[1]["replayed"] else "", text=True),
    ]
    return Table("", columns, list(data.items()))


def _frozen(region: RegionFacts, base: str) -> list[str]:
    return [
        f"{count(region.entries)} weights, {region.share:.3%} of all, were {region.frozen}. They "
        f"are those of the region with the digest `{region.digest}`. With that region's file "
        "anyone can check that none of them moved; this ends with status 1 where one did:",
        f"    freezetrain verify BASE THIS_MODEL REGION   # BASE: {visible_lines(base)}",
    ]
