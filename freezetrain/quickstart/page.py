"""The quickstart's page: for a person who has never heard of the paper."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from freezetrain.analysis.dimensions import DIRECTIONS, FULLEST, RegionPlace, location_table
from freezetrain.analysis.effects import (
    NOTHING,
    Effect,
    LanguageFigures,
    effects_table,
    mean_effect,
)
from freezetrain.analysis.figures import concentration_figure, effects_figure, entries_figure
from freezetrain.formats import count, fixed, language_and_code, percent, seconds, signed
from freezetrain.quickstart.observations import Observation, Variant
from freezetrain.report.comparison import language_rows, languages_table
from freezetrain.report.page import drawn, settings_text, write_page
from freezetrain.report.run_plots import course_figure, forgetting_figure
from freezetrain.tables import Column, Table, facts_table
from freezetrain.typed_json import to_json


@dataclass(frozen=True)
class ModelFacts:
    """The base."""

    name: str
    parameters: int
    layers: int
    built_in: bool
    folder: str


@dataclass(frozen=True)
class CoreRegion(RegionPlace):
    """Where the core region lies, and its file, beside the page."""

    file: str


@dataclass(frozen=True)
class QuickstartResults:
    """All that the page shows."""

    model: ModelFacts
    target: str
    languages: list[str]
    score_languages: list[str]
    settings: dict[str, Any]
    region: CoreRegion
    ablation: dict[str, LanguageFigures]
    """Region zeroed, or NOTHING → figures of every language."""
    variants: list[Variant]
    seconds: dict[str, float]
    observations: list[Observation]
    left_out: list[str]
    """What was not done so that it fits into the recipe's minutes, in words."""
    expected_seconds: float
    """That it should take, as measured before."""

    @property
    def effects(self) -> dict[str, Effect]:
        """Of zeroing each region."""
        names = [name for name in self.ablation if name != NOTHING]
        return {name: mean_effect(self.ablation, [name]) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; variants as ``runs``, by their names."""
        results = {name: to_json(value) for name, value in vars(self).items()}
        del results["variants"]
        return results | {"runs": {variant.name: variant.to_dict() for variant in self.variants}}


def render_quickstart(results: QuickstartResults, path: str | os.PathLike[str]) -> None:
    """Write the page of a quickstart to ``path``, whole or not at all; an older one is replaced.

    The page loads nothing: plots are inline SVG. The same results give the same bytes. Raises
    ``UserError`` if the path cannot be written to.
    """
    write_page(
        path,
        "quickstart/page.html.j2",
        results=results,
        settings=results.settings,
        plots=_plots(results),
        tables=_tables(results),
        fullest=percent(FULLEST),
        files=_files(results),
        commands=_commands(results),
        count=count,
        percent=percent,
        signed=signed,
    )


def _plots(results: QuickstartResults) -> dict[str, dict[str, Markup]]:
    runs, region = [variant.first.run for variant in results.variants], results.region
    effects = partial(effects_figure, starred=results.score_languages)
    plots = {
        "ablation": drawn("ablation", effects, results.effects),
        "forgetting": drawn("forgetting", forgetting_figure, runs),
        "course": drawn("course", course_figure, runs),
    }
    if region.matrices and region.layers:
        where = region, region.layers, region.matrices, FULLEST
        plots["concentration"] = drawn("concentration", concentration_figure, *where)
    if region.picture is not None:
        plots["entries"] = drawn("entries", entries_figure, region.picture)
    return plots


def _tables(results: QuickstartResults) -> dict[str, Table]:
    region, runs = results.region, [variant.first.run for variant in results.variants]
    locations: dict[str, Table] = {
        direction: location_table(
            region.shares(direction),
            direction,
            layers=region.layers,
            matrices=region.matrices,
            top=FULLEST,
            even=region.even[direction],
        )
        for direction in DIRECTIONS
    }
    return {
        "ablation": effects_table(
            "Loss of every language with a region set to zero; rise in nats per byte",
            results.ablation[NOTHING],
            results.effects,
        ),
        "languages": languages_table(language_rows(runs)),
        "course": _course_table(results.variants),
        "verified": _verified_table(results.variants),
        "settings": _settings_table(results),
        "times": facts_table(
            "Time", {name: seconds(value) for name, value in results.seconds.items()}
        ),
        **locations,
    }


def _course_table(variants: Sequence[Variant]) -> Table:
    rows = [
        (variant.name, evaluation.step, evaluation.forgetting)
        for variant in variants
        for evaluation in variant.first.run.evaluations
    ]
    columns = [
        Column("run", 0, text=True),
        Column("step", 1),
        Column("mean loss of held-out", lambda row: row[2].mean, signed),
        Column("target’s gain", lambda row: row[2].target_gain, signed),
        Column("worst language", lambda row: row[2].worst[0], language_and_code, text=True),
        Column("its loss", lambda row: row[2].worst[1], signed),
    ]
    return Table("The course of the runs, in nats per byte", columns, rows)


def _verified_table(variants: Sequence[Variant]) -> Table:
    columns = [
        Column("run", "name", text=True),
        Column("region’s weights", lambda variant: variant.first.verified.checked),
        Column("of these changed", lambda variant: variant.first.verified.moved),
        Column("others changed", lambda variant: variant.first.verified.changed_elsewhere),
        Column("last training loss", lambda variant: variant.first.final_loss, fixed),
    ]
    return Table("Each run’s model against the base, bit for bit", columns, variants)


def _settings_table(results: QuickstartResults) -> Table:
    """The model's and the region's size, then the settings as they were given."""
    model, region = results.model, results.region
    facts: Mapping[str, str] = {
        "model": model.name,
        "weights": count(model.parameters),
        "layers": count(model.layers),
        "region": f"{count(region.entries)} entries, {percent(region.share)} of all weights",
        "target": results.target,
        "languages": ", ".join(results.languages),
        "languages scored": ", ".join(results.score_languages),
    }
    given = {name.replace("_", " "): settings_text(v) for name, v in results.settings.items()}
    return facts_table("Settings", {**facts, **given}, ("setting", "value"))


def _models(results: QuickstartResults) -> dict[str, str]:
    """Variant → folder of its model, where that was kept."""
    return {
        variant.name: variant.first.model for variant in results.variants if variant.first.model
    }


def _files(results: QuickstartResults) -> dict[str, str]:
    """File or folder beside the page → what it holds."""
    files = {
        "results.json": "all figures of this page, for machines",
        results.region.file: "the core region",
    }
    for name, model in _models(results).items():
        files[f"{model}/"] = f"the model of the run “{name}”, in Hugging Face format"
        logs = f"{model.rpartition('/')[0]}/tensorboard/"
        files[logs] = f"the course of the run “{name}”, for TensorBoard"
    return files


def _commands(results: QuickstartResults) -> list[tuple[str, str]]:
    """(What it does, command); TEXTS stands for a folder of the reader's."""
    region, target = shlex.quote(results.region.file), shlex.quote(results.target)
    model = shlex.quote(results.model.folder)
    commands = [
        (
            "Train further with the region frozen, on texts of your own",
            f"freezetrain train --model {model} --region {region} --texts TEXTS "
            f"--languages+={target}",
        ),
        (
            "See what a region does to every language",
            f"freezetrain ablate --model {model} --regions+={region}",
        ),
        ("Look into the region", f"freezetrain info {region}"),
    ]
    frozen = [folder for name, folder in _models(results).items() if name != "plain"]
    if frozen:
        folder = shlex.quote(frozen[0])
        commands += [
            (
                "Compare model and region with the base, bit for bit",
                f"freezetrain verify {model} {folder} {region}",
            ),
            (
                "Compare two models, language by language",
                f"freezetrain forgetting {model} {folder} --target {target}",
            ),
        ]
    own = ("Run all this on a model of your own", "freezetrain quickstart --model PATH_OR_ID")
    return [*commands, own]
