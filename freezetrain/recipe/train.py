"""The recipe of further pre-training."""

from dataclasses import dataclass, field
from typing import Any

from freezetrain.recipe.brake import Braking
from freezetrain.recipe.check import check, check_shares, check_temperature
from freezetrain.recipe.lora import Lora
from freezetrain.recipe.model import Dtype, ModelSource
from freezetrain.recipe.optimization import Engine, Freezing, Optimization
from freezetrain.recipe.penalty import Penalty
from freezetrain.recipe.texts import Replay, TextSource, Watch, check_held_out


@dataclass
class TrainRecipe:
    """Further pre-train a model, with a region frozen and other languages watched."""

    model: ModelSource
    """The base."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts trained on: their training documents."""
    languages: list[str] = field(default_factory=list)
    """Languages trained on. Empty: all that the texts hold."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each language, sum 1. Empty: by temperature."""
    temperature: float = 1.0
    """A language's share is proportional to its tokens to the power 1/temperature: 1 by size,
    more evens languages out."""
    replay: Replay | None = None
    """Texts of languages to keep, mixed in. None: none."""
    region: str | None = None
    """Region file; the region is frozen. None: plain full training."""
    freeze: Freezing = field(default_factory=Freezing)
    """How it is frozen."""
    penalty: Penalty | None = None
    """What pulls the weights back to the base's. None: nothing."""
    average_with_base: float | None = None
    """Share of the trained weights in the exported model, in (0, 1), which is base + share x
    (trained - base); evaluations on the way are of the trained weights. None: those alone."""
    lora: Lora | None = None
    """Train low-rank adapters only, added to the weights at the end. None: train all weights."""
    optimization: Optimization = field(default_factory=Optimization)
    """How it is trained."""
    engine: Engine = field(default_factory=Engine)
    """On what it is trained."""
    watch: Watch = field(default_factory=Watch)
    """What is watched for forgetting."""
    brake: Braking | None = None
    """How much may be forgotten, and what follows. None: any amount."""
    checkpoint_every: int = 100
    """Optimizer steps between checkpoints; a run that was stopped resumes from the last one."""
    export_dtype: Dtype = "stored"
    """Type that the exported weights are rounded to; stored: the one that the base was saved in."""
    from_scratch: bool = False
    """Pre-train with random weights: model.path needs only a configuration and a tokenizer."""
    cache: str | None = None
    """Folder of tokenized texts, which runs share. None: FREEZETRAIN_CACHE, or freezetrain in the
    user's cache."""
    workers: int | None = None
    """Processes that tokenize. None: one for each core."""

    def __post_init__(self) -> None:
        check(self.checkpoint_every >= 1, "checkpoint_every", "1 or more", self.checkpoint_every)
        check(self.workers is None or self.workers >= 1, "workers", "1 or more", self.workers)
        check_temperature("temperature", self.temperature, self.weights)
        check_shares("weights", self.weights)
        expected = "float32, bfloat16 or stored: float16 overflows in training"
        check(self.model.dtype != "float16", "model.dtype", expected, self.model.dtype)
        if not self.watch.off:
            check_held_out(self.texts, self.watch.texts, "texts", "watch.texts")
            if self.replay is not None:
                check_held_out(self.replay.texts, self.watch.texts, "replay.texts", "watch.texts")
        if self.replay is not None:
            both = [name for name in self.replay.languages if name in self.languages]
            expected = "left out of replay.languages: it is trained on"
            check(not both, "a language", expected, both[:1])
        if self.from_scratch:
            check(self.region is None, "region", "left out when from_scratch is set", self.region)
        if self.region is None:
            expected = "left out where no region is given"
            check(self.freeze == Freezing(), "freeze", expected, self.freeze)
        if self.optimization.max_steps is not None:
            self.freeze.check_steps(self.optimization.max_steps)
        if self.brake is not None:
            self._check_brake(self.brake)
        zero = self.engine.kind.startswith("zero")
        for name, only in (("bad_steps", "stop"), ("spike_factor", None), ("ema_decay", None)):
            value = getattr(self.optimization, name)
            expected = f"left out under {self.engine.kind}: DeepSpeed steps by itself"
            check(not zero or value == only, f"optimization.{name}", expected, value)

        self._check_base()

    def _check_base(self) -> None:
        """What is told of the base's weights, and what goes with it."""
        for name in ("penalty", "average_with_base", "lora"):
            value = getattr(self, name)
            if value is None:
                continue
            expected = f"left out under {self.engine.kind}: it works on one device and under ddp"
            check(self.engine.kind in ("auto", "ddp"), name, expected, value)
            expected = "left out when from_scratch is set: there is no base"
            check(not self.from_scratch, name, expected, value)
        averaged, share = self.optimization.ema_decay, self.average_with_base
        if share is not None:
            check(0 < share < 1, "average_with_base", "in (0, 1)", share)
            expected = "left out where average_with_base is given: one of them is exported"
            check(averaged is None, "optimization.ema_decay", expected, averaged)
            why = "the base's entries are not those that are frozen"
            expected = f"left out where average_with_base is given: {why}"
            for name, only in (("clamp", None), ("first_step", 0)):
                value = getattr(self.freeze, name)
                check(value == only, f"freeze.{name}", expected, value)
        if self.lora is not None:
            expected = "left out where lora is given: it trains adapters, and no weight of the base"
            for name in ("region", "penalty", "average_with_base"):
                check(getattr(self, name) is None, name, expected, getattr(self, name))
            check(averaged is None, "optimization.ema_decay", expected, averaged)

    def _check_brake(self, brake: Braking) -> None:
        """What the watch tells it, and weights that it can go back to."""
        expected = "left out where the watch is off"
        check(not self.watch.off, "brake", expected, brake.limits)
        if self.watch.languages:  # else only the texts tell
            brake.check_names(self.watch.languages, self.languages)
        if not brake.goes_back:
            return
        expected = f"left out where the brake's action is {brake.action}: "
        averaged, share = self.optimization.ema_decay, self.average_with_base
        why = "averages are not evaluated on the way"
        check(averaged is None, "optimization.ema_decay", expected + why, averaged)
        check(share is None, "average_with_base", expected + why, share)
        why = "earlier weights would not be frozen as the last ones are"
        for name, only in (("clamp", None), ("first_step", 0)):
            value = getattr(self.freeze, name)
            check(value == only, f"freeze.{name}", expected + why, value)


CHANGEABLE = ("engine.devices", "optimization.micro_batch", "workers", "cache")
"""Fields that a run may be resumed with other values of: the weights are the same, to rounding; in
a model with dropout, micro_batch also decides which places it drops."""


def changeable(earlier: Any) -> tuple[str, ...]:
    """Those of ``CHANGEABLE`` that may change in a run that began with the recipe ``earlier``.

    Without ``batch_tokens`` the micro-batch is the optimizer step, and must stay.
    """
    settings = earlier.get("optimization") if isinstance(earlier, dict) else None
    told = isinstance(settings, dict) and settings.get("batch_tokens") is not None
    return tuple(name for name in CHANGEABLE if told or name != "optimization.micro_batch")
