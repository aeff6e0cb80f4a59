"""The recipe of `freezetrain train`."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from freezetrain.evaluation.brake import Brake
from freezetrain.loggers.recipe import Kind, Mlflow, Wandb, check_loggers
from freezetrain.recipe.check import (
    check,
    check_repository,
    check_shares,
    check_temperature,
)
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.optimizers import check_engine
from freezetrain.recipe.sources import (
    Dtype,
    EvaluationTexts,
    ModelSource,
    TextSource,
    check_held_out,
)
from freezetrain.recipe.text_types import LocalPath, Name, WordOrList


@dataclass
class Replay:
    """Texts of languages to keep, mixed into training so that they are not forgotten."""

    texts: TextSource = field(default_factory=TextSource)
    """Texts replayed: their training documents."""
    languages: list[Name] = field(default_factory=list)
    """Languages replayed. Empty: all that the texts hold but those trained on."""
    weights: dict[Name, float] = field(default_factory=dict)
    """Share of each language among what is replayed, sum 1. Empty: by temperature."""
    temperature: float = 1.0
    """A language's share is proportional to its tokens to the power 1/temperature: 1 by size,
    more evens languages out."""
    share: float = 0.05
    """Share of the sequences that are replayed ones, in (0, 1)."""
    until: float = 1.0
    """Share of the run, from its start, in which they are mixed in; later there are none."""

    def __post_init__(self) -> None:
        check(0 < self.share < 1, "share", "above 0 and below 1", self.share)
        check(0 < self.until <= 1, "until", "above 0 and at most 1", self.until)
        check_temperature("temperature", self.temperature, self.weights)
        check_shares("weights", self.weights)


@dataclass
class Rehearse:
    """Sequences that the base drew, mixed into training so that it does not forget what it says.

    What `freezetrain rehearse` made, of this very base. No text of the languages to keep is needed.
    """

    folder: LocalPath
    """Folder that `freezetrain rehearse` made."""
    share: float = 0.05
    """Share of the sequences that are rehearsed ones, in (0, 1); with replay.share below 1."""
    until: float = 1.0
    """Share of the run, from its start, in which they are mixed in; later there are none."""
    loss: Literal["kl", "next_token"] = "kl"
    """kl: at each of their places, KL(base || model) of the next token's distribution, in nats (Li
    and Hoiem 2016, arXiv 1606.09282); next_token: as texts, which forgets more."""
    teacher: Literal["stored", "model"] = "stored"
    """Where kl takes what the base says from. stored: from the folder, its likeliest tokens and the
    mass of the others as one; model: from the base, which is kept in memory beside the model and
    run too, over the whole vocabulary (on one device and under ddp)."""

    def __post_init__(self) -> None:
        check(0 < self.share < 1, "rehearse.share", "above 0 and below 1", self.share)
        check(0 < self.until <= 1, "rehearse.until", "above 0 and at most 1", self.until)
        expected = "stored where rehearse.loss is next_token: there is no KL"
        needed = self.teacher == "stored" or self.loss == "kl"
        check(needed, "rehearse.teacher", expected, self.teacher)


@dataclass
class Watch(EvaluationTexts):
    """Which languages are watched for forgetting, and how often."""

    every_n_steps: int | None = None
    """Optimizer steps between evaluations; also before the first step and at the end. None: 100,
    unless every_n_tokens or at_samples says when."""
    every_n_tokens: int | None = None
    """Training tokens between evaluations, instead of steps."""
    at_samples: list[int] = field(default_factory=list)
    """Training sequences after which to evaluate, instead of steps."""
    time_share: float | None = None
    """Evaluations after the first take at most this share of the training time, in (0, 1]: of a
    fixed subsample, and not each time, if the whole takes longer. None: what they take."""
    off: bool = False
    """Do not watch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every_n_steps", "every_n_tokens"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "1 or more", value)
        ascending = self.at_samples == sorted({number for number in self.at_samples if number >= 0})
        valid = ascending and self.at_samples != [0]
        check(valid, "at_samples", "ascending, the last above 0", self.at_samples)
        names = ("every_n_steps", "every_n_tokens", "at_samples")
        given = [name for name in names if getattr(self, name)]
        expected = "given at most one of every_n_steps, every_n_tokens and at_samples"
        check(len(given) <= 1, "watch", expected, given)
        share = self.time_share is None or 0 < self.time_share <= 1
        check(share, "time_share", "above 0 and at most 1", self.time_share)


@dataclass
class Freezing:
    """How a region is frozen."""

    clamp: float | None = None
    """Set the region to this value first; 0 is the paper's second variant. None: as it is."""
    first_step: int = 0
    """Optimizer steps before the freeze begins."""
    last_step: int | None = None
    """Optimizer steps after which the freeze ends. None: it lasts."""
    audit_every: int = 100
    """Optimizer steps between checks that nothing frozen moved; the first step is checked too.
    0: only when a checkpoint is written and at the end."""

    def __post_init__(self) -> None:
        check(self.clamp is None or math.isfinite(self.clamp), "clamp", "finite", self.clamp)
        check(self.first_step >= 0, "first_step", "0 or more", self.first_step)
        after = self.last_step is None or self.last_step > self.first_step
        check(after, "last_step", "after first_step", self.last_step)
        check(self.audit_every >= 0, "audit_every", "0 or more", self.audit_every)

    def check_steps(self, steps: int) -> None:
        """UserError unless a run of ``steps`` optimizer steps reaches the beginning and the end."""
        first, last = self.first_step, self.last_step
        expected = f"below the {steps} steps of the run: nothing would be frozen"
        check(first < steps, "freeze.first_step", expected, first)
        expected = f"below the {steps} steps of the run, or left out to freeze to the end"
        check(last is None or last < steps, "freeze.last_step", expected, last)


@dataclass
class Lora:
    """Train low-rank adapters of linear layers alone, and add them to the weights at the end.

    A layer computes W x + alpha / rank x B A x, with W the base's and B zero at first: Hu et al.
    2021, arXiv 2106.09685. Embeddings, head, norms and biases stay the base's.
    """

    rank: int = 16
    """Rows of A, columns of B."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank. None: twice the rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training, in [0, 1)."""
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers, or how they end, that get one: q_proj, mlp.down_proj. Empty: all
    in the decoder blocks (fused experts are none)."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", "1 or more", self.rank)
        good = self.alpha is None or (math.isfinite(self.alpha) and self.alpha > 0)
        check(good, "lora.alpha", "a number above 0", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass
class Penalty:
    """Pull the weights back to the base's: strength / 2 x sum of F (weight - base's)^2 is added to
    the loss (nats per token), so its gradient passes through clipping and AdamW.

    Without fisher F is 1 for every trainable weight: L2-SP, Li et al. 2018, arXiv 1802.01483. With
    it F is the weight's Fisher information: EWC, Kirkpatrick et al. 2017, arXiv 1612.00796.
    """

    strength: float
    """0 or more. F is 1 on average, so that it means about the same with and without fisher: where
    each of N weights has moved by d, the loss rises by strength / 2 x N x d^2 nats per token."""
    fisher: LocalPath | None = None
    """Folder of scores made by `freezetrain score` with method fisher: F is their sum over the
    languages, divided by its mean over all scored weights. Weights that were not scored (by
    default embeddings, last norm and head) are not pulled. None: F is 1 for all, these too."""

    languages: list[Name] | None = None
    """Languages whose fisher scores are summed: those to keep. None: all in the folder."""

    def __post_init__(self) -> None:
        good = math.isfinite(self.strength) and self.strength >= 0
        check(good, "penalty.strength", "a number, 0 or more", self.strength)
        alone = self.fisher is not None or self.languages is None
        check(alone, "penalty.languages", "left out where fisher is not given", self.languages)


@dataclass
class Pull:
    """Pull the weights to the base's after each optimizer step: weight - min(1, learning rate x
    strength) x (weight - base's). Weight decay towards the base, decoupled as AdamW's is: it passes
    through neither clipping nor AdamW. Works on every engine, beside a frozen region too.
    """

    strength: float
    """0 or more, of all weights that no region names. At a learning rate of 1e-3 a strength of 20
    takes each weight 2% of its way back in a step, at 1e-4 0.2%."""
    regions: dict[LocalPath, float] = field(default_factory=dict)
    """Region file to the strength of its entries; of an entry in several the largest counts."""
    fisher: LocalPath | None = None
    """Folder of scores made by `freezetrain score` with method fisher: a weight's strength is
    multiplied by their sum over the languages, divided by its mean over all scored weights
    (decoupled EWC). Weights that were not scored are not pulled. None: all alike."""
    languages: list[Name] | None = None
    """Languages whose fisher scores are summed: those to keep. None: all in the folder."""
    on_cpu: bool = False
    """Keep the base's weights in CPU memory: less on the GPU, more time a step."""
    log_every: int = 100
    """Optimizer steps between two looks at how far the weights are from the base's."""

    def __post_init__(self) -> None:
        for name, value in {"strength": self.strength, **self.regions}.items():
            where = "pull.strength" if name == "strength" else f"pull.regions: {name}"
            check(math.isfinite(value) and value >= 0, where, "a number, 0 or more", value)
        alone = self.fisher is not None or self.languages is None
        check(alone, "pull.languages", "left out where fisher is not given", self.languages)
        expected = "left out where fisher is given: both say what is pulled more"
        check(self.fisher is None or not self.regions, "pull.regions", expected, self.regions)
        check(self.log_every >= 1, "pull.log_every", "1 or more", self.log_every)


@dataclass
class TrainRecipe:
    """Further pre-train a model, with a region frozen and other languages watched."""

    model: ModelSource
    """The base."""
    texts: TextSource = field(default_factory=TextSource)
    """Texts trained on: their training documents."""
    languages: list[Name] = field(default_factory=list)
    """Languages trained on. Empty: all that the texts hold."""
    weights: dict[Name, float] = field(default_factory=dict)
    """Share of each language, sum 1. Empty: by temperature."""
    temperature: float = 1.0
    """A language's share is proportional to its tokens to the power 1/temperature: 1 by size,
    more evens languages out."""
    replay: Replay | None = None
    """Texts of languages to keep, mixed in. None: none."""
    rehearse: Rehearse | None = None
    """What the base itself has drawn, mixed in. None: none."""
    region: LocalPath | None = None
    """Region file; the region is frozen. None: plain full training."""
    freeze: Freezing = field(default_factory=Freezing)
    """How it is frozen."""
    pull: Pull | None = None
    """What pulls the weights to the base's after each step. None: nothing."""
    penalty: Penalty | None = None
    """What pulls them through the loss instead, on one device and under ddp. None: nothing."""
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
    brake: Brake | None = None
    """How much may be forgotten, and what follows. None: any amount."""
    logger: Annotated[list[Kind], WordOrList()] = field(default_factory=lambda: ["tensorboard"])
    """Where the course of the run goes: one of these, as csv, or several, as [tensorboard, wandb].
    wandb and mlflow are extras: pip install 'freezetrain[wandb]'."""
    wandb: Wandb = field(default_factory=Wandb)
    """Where in Weights & Biases."""
    mlflow: Mlflow = field(default_factory=Mlflow)
    """Where in MLflow."""
    checkpoint_every: int = 100
    """Optimizer steps between checkpoints; a run that was stopped resumes from the last one."""
    export_dtype: Dtype = "stored"
    """Type that the exported weights are rounded to; stored: the one that the base was saved in."""
    export_tied_head: bool = False
    """Write the weights of a head that is tied to the embedding under its own name too, for tools
    that look for them there. transformers loads the model either way."""
    push: str | None = None
    """Repository on the hub, OWNER/NAME, that the model is uploaded to in the end; one that is not
    there is made before training, private. None: it is not uploaded."""
    from_scratch: bool = False
    """Pre-train with random weights: model.path needs only a configuration and a tokenizer."""
    cache: LocalPath | None = None
    """Folder of tokenized texts, which runs share. None: FREEZETRAIN_CACHE, or freezetrain in the
    user's cache."""
    workers: int | None = None
    """Processes that tokenize. None: one for each core."""

    @property
    def changeable(self) -> tuple[str, ...]:
        """Fields that may be others when a run is resumed: they do not change what is trained."""
        names = (
            *("engine.devices", "engine.gradient_checkpointing", "workers", "cache", "push"),
            *("logger", "wandb", "mlflow"),
        )
        if self.optimization.batch_tokens is None:  # the micro-batch is the optimizer step
            return names
        return (*names, "optimization.micro_batch")

    def __post_init__(self) -> None:
        check(self.checkpoint_every >= 1, "checkpoint_every", "1 or more", self.checkpoint_every)
        check(self.workers is None or self.workers >= 1, "workers", "1 or more", self.workers)
        check_temperature("temperature", self.temperature, self.weights)
        check_shares("weights", self.weights)
        check_loggers(self.logger, self.wandb, self.mlflow)
        check_repository("push", self.push)
        expected = "float32, bfloat16 or stored: float16 overflows in training"
        check(self.model.dtype != "float16", "model.dtype", expected, self.model.dtype)
        self._check_streams()
        if not self.watch.off:
            check_held_out(self.texts, self.watch.texts, "texts", "watch.texts")
            if self.replay is not None:
                check_held_out(self.replay.texts, self.watch.texts, "replay.texts", "watch.texts")
        if self.replay is not None:
            both = [name for name in self.replay.languages if name in self.languages]
            expected = "left out of replay.languages: it is trained on"
            check(not both, "a language", expected, both[:1])
        if self.rehearse is not None:
            self._check_rehearse(self.rehearse)
        if self.from_scratch:
            check(self.region is None, "region", "left out when from_scratch is set", self.region)
        if self.region is None:
            expected = "left out where no region is given"
            check(self.freeze == Freezing(), "freeze", expected, self.freeze)
        if self.optimization.max_steps is not None:
            self.freeze.check_steps(self.optimization.max_steps)
        if self.brake is not None:
            self._check_brake(self.brake)
        self._check_engine()
        self._check_base()

    def _check_streams(self) -> None:
        """What needs the size of texts, which is not known of those that have no end."""
        settings = self.optimization
        limited = settings.max_steps is not None or settings.max_tokens is not None
        expected = "given, or max_tokens, where texts are streamed: they have no end"
        check(not self.texts.endless or limited, "optimization.max_steps", expected, None)
        for name, part in (("", self), ("replay.", self.replay)):
            expected = f"left out where texts are streamed: give {name}weights"
            even = part is None or part.temperature == 1 or not part.texts.endless
            check(even, f"{name}temperature", expected, getattr(part, "temperature", 1.0))
        expected = "given where watch.texts are streamed: held-out documents are a whole"
        endless = self.watch.texts.endless and not self.watch.off
        check(not endless, "watch.texts.documents", expected, None)

    def _check_rehearse(self, rehearse: Rehearse) -> None:
        expected = "left out when from_scratch is set: there is no base"
        check(not self.from_scratch, "rehearse", expected, rehearse)
        share = rehearse.share + (0.0 if self.replay is None else self.replay.share)
        check(share < 1, "replay.share + rehearse.share", "below 1", share)
        kind = self.engine.kind
        expected = f"stored under {kind}: model works on one device and under ddp"
        fits = rehearse.teacher == "stored" or kind in ("auto", "ddp")
        check(fits, "rehearse.teacher", expected, rehearse.teacher)

    def _check_engine(self) -> None:
        """What only some engines can do."""
        kind, settings = self.engine.kind, self.optimization
        check_engine(settings.optimizer, kind)
        expected = f"left out under {kind}: DeepSpeed steps by itself"
        for name, default in (("bad_steps", "stop"), ("spike_factor", None)):
            value = getattr(settings, name)
            allowed = value == default or not kind.startswith("zero")
            check(allowed, f"optimization.{name}", expected, value)
        expected = f"left out under {kind}: it works on one device and under ddp"
        for name, value in {
            "penalty": self.penalty,
            "average_with_base": self.average_with_base,
            "lora": self.lora,
            "optimization.ema_decay": settings.ema_decay,
        }.items():
            check(value is None or kind in ("auto", "ddp"), name, expected, value)

    def _check_base(self) -> None:
        """What needs the base's weights, and what goes with it."""
        expected = "left out where pull is given: both keep the weights near the base's"
        check(self.pull is None or self.penalty is None, "penalty", expected, self.penalty)
        for name in ("pull", "penalty", "average_with_base", "lora"):
            value = getattr(self, name)
            expected = "left out when from_scratch is set: there is no base"
            check(value is None or not self.from_scratch, name, expected, value)
        averaged, share = self.optimization.ema_decay, self.average_with_base
        if share is not None:
            check(0 < share < 1, "average_with_base", "in (0, 1)", share)
            expected = "left out where average_with_base is given: one of them is exported"
            check(averaged is None, "optimization.ema_decay", expected, averaged)
            why = "the base's entries are not those that are frozen"
            self._check_frozen_as_base(f"left out where average_with_base is given: {why}")
        if self.lora is not None:
            expected = "left out where lora is given: it trains adapters, and no weight of the base"
            for name in ("region", "pull", "penalty", "average_with_base"):
                check(getattr(self, name) is None, name, expected, getattr(self, name))
            check(averaged is None, "optimization.ema_decay", expected, averaged)

    def _check_brake(self, brake: Brake) -> None:
        """The brake needs evaluations, and, to go back, weights that those are of."""
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
        self._check_frozen_as_base(expected + why)

    def _check_frozen_as_base(self, expected: str) -> None:
        for name, default in (("clamp", None), ("first_step", 0)):
            value = getattr(self.freeze, name)
            check(value == default, f"freeze.{name}", expected, value)
