"""The recipe of a comparison: variants of a training run, at learning rates and seeds."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from freezetrain.analysis.recipe import ScoreRecipe, SelectRecipe
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.check import check, file_name
from freezetrain.recipe.mapping import build, change
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import TextSource, check_held_out
from freezetrain.recipe.text_types import FieldsOf, LocalPath, Name
from freezetrain.sampling.recipe import RehearseRecipe
from freezetrain.training.recipe import Rehearse, Replay, TrainRecipe

SUFFIX = ".safetensors"

REFERENCE = "plain"
"""The variant that all others are compared with."""

# All variants are trained on the same texts in the same order, and evaluated on the same.
_SHARED = ("model", "texts", "languages", "weights", "temperature", "watch", "from_scratch", "push")

RegionKind = Literal[
    "core", "monolingual", "random", "vocabulary", "magnitude", "layers", "expression", "file"
]

_SHARED_SETTINGS = ("seed", "learning_rate", "sequence_length", "document_mask")


@dataclass
class RegionFields(SelectRecipe):
    """The fields that a region of a comparison may have; some of them are given."""

    kind: RegionKind | None = None  # type: ignore[assignment]
    """As in `freezetrain select`; file: one that is there."""
    path: LocalPath | None = None
    """Region file (file)."""


@dataclass
class Variant:
    """One way to train further: what differs from the recipe that all share."""

    region: str | None = None
    """The region frozen: a name of regions, or several combined by | & - ^ and parentheses."""
    changes: Annotated[dict[str, Any], FieldsOf(TrainRecipe)] = field(default_factory=dict)
    """Fields of train with other values, as in a recipe: {replay: {share: 0.05}}. In pull and
    penalty, fisher may name the method of the comparison's own scores; in pull, regions are named
    as the region that is frozen is: {core: 100, columns | vocabulary: 20}; in rehearse, folder may
    name one of rehearsals."""
    learning_rates: list[float] = field(default_factory=list)
    """Peak learning rates of this variant. Empty: those of all."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of this variant. Empty: all."""


@dataclass
class CompareRecipe:
    """Compare ways to train further at equal gain of the target language: does freezing help?"""

    # As in TrainRecipe: it does not change what is trained.
    changeable: ClassVar = (
        *("train.engine.gradient_checkpointing", "train.logger", "train.wandb", "train.mlflow"),
    )

    # May change when a comparison is repeated in its folder: what is missing is run.
    grows: ClassVar = (
        "variants",
        "learning_rates",
        "seeds",
        "regions",
        "rehearsals",
        "gain",
        "runs_at_once",
        "keep_models",
    )

    train: TrainRecipe
    """What all runs share: the base, the target's texts, how long; watch says which held-out
    documents are evaluated, of which languages, once a run is trained. The learning rate and the
    seed in it are not used."""
    variants: dict[Name, Variant] = field(default_factory=lambda: {REFERENCE: Variant()})
    """Name to variant: region (a name of regions, or several combined by | & - ^), changes (other
    fields of train, as in a recipe), and learning_rates and seeds where they are not those of all;
    each may be left out. The one called plain, {}, is what the others are compared with."""
    learning_rates: list[float] = field(default_factory=lambda: [2e-5, 5e-5, 1e-4])
    """Peak learning rates. A variant is judged by its curve through them, so give two or more."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the data order; what differs less than seeds do is noise."""
    regions: dict[Name, Annotated[dict[str, Any], FieldsOf(RegionFields)]] = field(
        default_factory=dict
    )
    """Name to region: fields of `freezetrain select`, of which model, texts and language are filled
    in; like may name an earlier region, scores a method of scoring; or kind: file with a path."""
    rehearsals: dict[Name, Annotated[dict[str, Any], FieldsOf(RehearseRecipe)]] = field(
        default_factory=dict
    )
    """Name to rehearsal, made once for all variants that name it: fields of `freezetrain rehearse`,
    of which model is filled in, and sequence_length where it is left out."""
    scoring: Annotated[dict[str, Any], FieldsOf(ScoreRecipe)] = field(default_factory=dict)
    """Fields of `freezetrain score`, made before the runs where a region needs scores; model and
    texts (those that watch evaluates) are filled in. Languages: those held out, unless named."""
    scores: LocalPath | None = None
    """Folder that `freezetrain score` left, instead of scoring."""
    gain: float | None = None
    """Target gain, in nats per UTF-8 byte, at which variants are compared. None: what plain
    training gains at its second highest learning rate, without those beyond the one that gains
    most."""
    runs_at_once: int = 1
    """Runs that share a GPU (or the CPU): small models leave much of one idle."""
    keep_models: bool = False
    """Keep the trained models; else only their figures."""

    def __post_init__(self) -> None:
        train = self.train
        check(len(train.languages) == 1, "train.languages", "one, the target", train.languages)
        own = {"region": None, "brake": None, "from_scratch": False, "push": None}
        for name, default in own.items():
            value = getattr(train, name)
            check(value == default, f"train.{name}", "left out: variants say what differs", value)
        check(not train.watch.off, "train.watch.off", "false: the runs are evaluated", True)
        watched = train.watch.languages
        has_target = not watched or self.target in watched
        check(has_target, "train.watch.languages", f"with the target, {self.target}", watched)
        check(not watched or len(watched) > 1, "train.watch.languages", "two or more", watched)
        devices = train.engine.devices
        expected = "1 or left out: each run takes one device, and several run at once"
        check(devices in (None, 1), "train.engine.devices", expected, devices)
        check(self.runs_at_once >= 1, "runs_at_once", "1 or more", self.runs_at_once)
        gain = self.gain
        check(gain is None or (math.isfinite(gain) and gain > 0), "gain", "a number above 0", gain)
        expected = "left out where scores are given"
        check(self.scores is None or not self.scoring, "scoring", expected, self.scoring)
        names = [*self.variants]
        check(REFERENCE in names, "variants", f"with one called {REFERENCE}", names)
        for name, count in Counter(map(file_name, names)).items():
            distinct = count == 1 and bool(name.strip("."))
            check(distinct, "variants", f"told apart as folders, {name!r} once", names)
        plain = self.variants[REFERENCE]
        expected = "without region and changes: what all share goes into train"
        check(plain.region is None and not plain.changes, f"variants.{REFERENCE}", expected, plain)
        for kind, given in {"region": self.regions, "rehearsal": self.rehearsals}.items():
            for name in given:
                check(
                    file_name(name) == name, f"a {kind}'s name", "letters, digits and _ . -", name
                )
        for name in names:
            self._check_variant(name)
        for name in self.regions:
            self.selection(name)
        for name in self.rehearsals:
            self.rehearsal(name)
        self._check_expressions()
        if self.scores is None and self.needs_scores:
            self.scoring_recipe()

    @property
    def target(self) -> str:
        return self.train.languages[0]

    def _check_variant(self, name: str) -> None:
        where, variant = f"variants.{name}", self.variants[name]
        rates, seeds = self.rates_of(name), self.seeds_of(name)
        for field_name, values in (("learning_rates", rates), ("seeds", seeds)):
            once = len(set(values)) == len(values) > 0
            check(once, f"{where}: {field_name}", "one or more, each once", values)
        stray = [seed for seed in seeds if seed not in self.seeds_of(REFERENCE)]
        expected = "some of plain's: runs are compared seed by seed"
        check(not stray, f"{where}: seeds", expected, stray)
        settings = variant.changes.get("optimization") or {}
        own = ("region", "brake", "engine")
        fixed = [field_name for field_name in (*_SHARED, *own) if field_name in variant.changes]
        fixed += [f"optimization.{setting}" for setting in _SHARED_SETTINGS if setting in settings]
        expected = "without what all variants share, or the variant itself tells"
        check(not fixed, f"{where}: changes", expected, fixed)
        for rate in rates:
            valid = math.isfinite(rate) and rate > 0
            check(valid, f"{where}: learning_rates", "numbers above 0", rate)
        folder = (variant.changes.get("rehearse") or {}).get("folder")
        if folder is not None and folder not in self.rehearsals and not Path(str(folder)).is_dir():
            known = ", ".join(self.rehearsals) or "none"
            raise UserError(
                f"{where}: rehearse.folder is {folder!r}, which is neither a folder nor one of "
                f"rehearsals{near_misses(str(folder), self.rehearsals)}; those are {known}"
            )
        replay = self.training(name, rates[0], seeds[0]).replay
        if replay is not None:
            watched = self.train.watch.texts
            check_held_out(replay.texts, watched, f"{where}: replay.texts", "train.watch.texts")

    def _check_expressions(self) -> None:
        from freezetrain.regions import Expression  # imports torch

        for name in self.variants:
            for text in self.expressions(name):
                Expression(text).check(self.regions)

    def rates_of(self, variant: str) -> list[float]:
        return self.variants[variant].learning_rates or self.learning_rates

    def seeds_of(self, variant: str) -> list[int]:
        return self.variants[variant].seeds or self.seeds

    def training(
        self,
        name: str,
        rate: float,
        seed: int,
        folder: Path = Path(),
    ) -> TrainRecipe:
        """How the variant ``name`` is trained; ``folder``: where regions and scores are.

        Not watched: the exported model is what is evaluated.
        """
        variant = self.variants[name]
        where = f"variants.{name}"
        changes = dict(variant.changes)
        settings = changes.get("optimization") or {}
        changes["optimization"] = {**settings, "learning_rate": rate, "seed": seed}
        for field_name in ("pull", "penalty"):
            fields = changes.get(field_name) or {}
            if fisher := fields.get("fisher"):
                scores = self.scores_of(
                    fisher, str(folder / "scores"), f"{where}: {field_name}.fisher"
                )
                fields = {"languages": self._kept(scores), **fields, "fisher": scores}
                changes[field_name] = fields
        if named := self._pulled(name):
            files = {str(folder / self.region_file(text)): named[text] for text in named}
            changes["pull"] = {**changes["pull"], "regions": files}
        rehearse = changes.get("rehearse") or {}
        if rehearse.get("folder") in self.rehearsals:
            made = folder / "rehearsals" / rehearse["folder"]
            changes["rehearse"] = {**rehearse, "folder": str(made)}
        if variant.region is not None:
            changes["region"] = str(folder / self.region_file(variant.region))
        if self.train.engine.devices is None:
            changes["engine"] = {"devices": 1}
        unwatched = replace(self.train, watch=replace(self.train.watch, off=True))
        return change(unwatched, changes, where)

    def expressions(self, name: str) -> list[str]:
        """What the variant ``name`` freezes or pulls: each a region, or several combined."""
        region = self.variants[name].region
        return [*([] if region is None else [region]), *self._pulled(name)]

    def _pulled(self, name: str) -> dict[str, Any]:
        """Regions of the pull of the variant ``name``, as they are called here, and strengths."""
        regions = (self.variants[name].changes.get("pull") or {}).get("regions")
        return regions if isinstance(regions, dict) else {}

    def region_file(self, expression: str) -> Path:
        """Where in a comparison's folder the region is that ``expression`` names."""
        from freezetrain.regions import Expression  # imports torch

        if Expression(expression).names == [expression]:
            return Path("regions") / f"{expression}{SUFFIX}"
        digest = hashlib.sha256(expression.encode()).hexdigest()[:8]  # a - b is not a | b
        return Path("combined") / f"{file_name(expression)[:80]}-{digest}{SUFFIX}"

    @property
    def methods(self) -> list[str]:
        """Of the comparison's own scores."""
        return list(self.scoring.get("methods") or ["taylor"])

    def scores_of(self, method: str | None, folder: str, where: str) -> str:
        """The folder of scores by ``method``, None: the first, where all lie in ``folder``."""
        if self.scores is not None:
            return self.scores if method is None else str(Path(self.scores) / method)
        methods = self.methods
        if method is not None and method not in methods:
            raise UserError(
                f"{where} is {method!r}, and the methods of scoring are {', '.join(methods)}"
                f"{near_misses(method, methods)}; add it to scoring.methods"
            )
        return folder if len(methods) == 1 else str(Path(folder) / (method or methods[0]))

    @property
    def needs_scores(self) -> bool:
        return any(map(self.is_scored, self.regions)) or any(map(self._has_fisher, self.variants))

    def _has_fisher(self, variant: str) -> bool:
        changes = self.variants[variant].changes
        return any((changes.get(name) or {}).get("fisher") for name in ("pull", "penalty"))

    def is_scored(self, name: str) -> bool:
        """Whether the region ``name`` is made from scores."""
        fields = self.regions[name]
        kind = fields.get("kind") or ("expression" if fields.get("expression") else "core")
        return kind in ("core", "monolingual") or (kind == "expression" and "scores" in fields)

    def _kept(self, folder: str) -> list[str] | None:
        """Of the languages that have scores those to keep; None: all of them are."""
        scored = self._scored
        if self.scores is not None:
            scored = sorted(path.stem for path in Path(folder).glob("*.safetensors"))
        kept = [name for name in scored if name != self.target]
        return kept if len(kept) < len(scored) else None

    @property
    def _scored(self) -> list[str]:
        return list(self.scoring.get("languages") or ())

    def scoring_recipe(self, held_out: Sequence[str] = ()) -> ScoreRecipe:
        """How the scores are made; ``held_out``: languages, where the recipe names none."""
        watch = self.train.watch
        languages = list(held_out) or [name for name in watch.languages if name != self.target]
        base = ScoreRecipe(
            self.train.model, languages=languages, texts=watch.texts, engine=Engine(devices=1)
        )
        recipe = change(base, self.scoring, "scoring")
        check(recipe.model == base.model, "scoring.model", "left out: it is train's", recipe.model)
        check_held_out(recipe.texts, watch.texts, "scoring.texts", "train.watch.texts")
        expected = "1 or left out: for more, run freezetrain score, and give scores its folder"
        check(recipe.engine.devices == 1, "scoring.engine.devices", expected, recipe.engine.devices)
        return recipe

    def selection(self, name: str, folder: Path = Path(), scores: str = "scores") -> SelectRecipe:
        """How the region ``name`` is made, with earlier ones in ``folder``."""
        where = f"regions.{name}"
        fields = dict(self.regions[name])
        kind = fields.get("kind")
        if kind == "file":
            valid = set(fields) == {"kind", "path"} and isinstance(fields["path"], str)
            check(valid, where, "kind: file and a path, nothing else", fields)
            return SelectRecipe(kind="expression", expression=name, regions=fields["path"])
        if like := fields.get("like"):
            earlier = list(self.regions)[: list(self.regions).index(name)]
            check(like in earlier, f"{where}: like", "the name of an earlier region", like)
            fields["like"] = str(folder / f"{like}.safetensors")
        if self.is_scored(name):
            fields["scores"] = self.scores_of(fields.get("scores"), scores, f"{where}: scores")
            if kind in (None, "core") and self.target in self._scored:
                kept = [language for language in self._scored if language != self.target]
                fields.setdefault("languages", kept)
        if kind in ("vocabulary", "magnitude", "layers") or (kind == "random" and not like):
            fields["model"] = asdict(self.train.model)
        if kind == "vocabulary":
            fields.setdefault("language", self.target)
            fields.setdefault("texts", asdict(self.train.texts))
        return build(SelectRecipe, fields, where)

    def rehearsal(self, name: str) -> RehearseRecipe:
        """How the rehearsal ``name`` is made."""
        where, train = f"rehearsals.{name}", self.train
        length = train.optimization.sequence_length
        base = {"model": asdict(train.model), "sequence_length": length, "engine": {"devices": 1}}
        recipe = build(RehearseRecipe, {**base, **self.rehearsals[name]}, where)
        check(
            recipe.model == train.model, f"{where}: model", "left out: it is train's", recipe.model
        )
        for field_name in ("prompts", "texts"):
            texts = getattr(recipe, field_name)
            if texts is not None:
                watched = train.watch.texts
                check_held_out(texts, watched, f"{where}: {field_name}", "train.watch.texts")
        return recipe

    def _rehearsed(self, name: str) -> RehearseRecipe | None:
        """The comparison's rehearsal that the variant ``name`` is trained on."""
        folder = (self.variants[name].changes.get("rehearse") or {}).get("folder")
        return self.rehearsal(folder) if folder in self.rehearsals else None

    def old_share(self, name: str) -> float:
        """Share of a run's sequences that are texts of held-out languages."""
        training = self.training(name, self.rates_of(name)[0], self.seeds_of(name)[0])
        mixed: list[Replay | Rehearse | None] = [training.replay]
        if self._rehearsed_text(name)[0]:
            mixed.append(training.rehearse)
        return sum(part.share * part.until for part in mixed if part is not None)

    def _rehearsed_text(self, name: str) -> tuple[bool, bool]:
        """Of what the variant ``name`` rehearses: whether it is old text, and begun with some."""
        from freezetrain.rehearsal.pieces import made_of  # imports torch

        if (rehearsed := self._rehearsed(name)) is not None:
            return rehearsed.texts is not None, rehearsed.prompts != TextSource()
        folder = (self.variants[name].changes.get("rehearse") or {}).get("folder")
        if folder is None:
            return False, False
        how = made_of(Path(folder)).how
        return not how.get("drawn", True), bool(how.get("own_prompts"))

    def reads_old(self, name: str) -> bool:
        """Whether the variant ``name`` needs texts of held-out languages before it is trained."""
        from freezetrain.regions import Expression  # imports torch

        names = [part for text in self.expressions(name) for part in Expression(text).names]
        scored = self._has_fisher(name) or any(map(self.is_scored, names))
        return scored or self._rehearsed_text(name)[1]
