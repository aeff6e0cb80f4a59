"""How a model is trained, and on what machines."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from freezetrain.errors import UserError
from freezetrain.recipe.check import check
from freezetrain.recipe.optimizers import OPTIMIZERS, check_optimizer

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true"]

Schedule = Literal["cosine", "wsd", "constant"]

MOST_SEQUENCES = 2**36
"""Of a run: what places each of them in memory, 1024 at a time, stays below a few gigabytes."""

_MOST_HOURS = 1e6

Kind = Literal["auto", "ddp", "fsdp2", "zero-1", "zero-2", "zero-3"]


@dataclass
class Optimization:
    """Optimizer, warm-up and schedule. A run ends at the first limit that it reaches."""

    max_steps: int | None = None
    """Optimizer steps. None: by max_tokens, or else one pass over the texts trained on."""
    max_tokens: int | None = None
    """Tokens trained on, replayed ones included; rounded up to whole steps. None: no limit."""
    max_hours: float | None = None
    """Hours of training, over all starts of the run. None: no limit."""
    sequence_length: int = 512
    """Tokens in a sequence."""
    document_mask: bool = False
    """Tokens attend to their own document only, with positions from its start, where a sequence
    holds several."""
    micro_batch: int = 8
    """Sequences in one forward and backward pass on each device."""
    batch_tokens: int | None = None
    """Tokens in an optimizer step, over all devices and accumulated micro-batches. None: one
    micro-batch on one device."""
    optimizer: str = "adamw"
    """adamw, adamw-8bit, adafactor, lion, muon (matrices of the decoder blocks; AdamW for the
    rest), or the import path of a class, as torch.optim.NAdam."""
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    """More arguments of the optimizer, by its own names, such as eps."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    learning_rate_factors: dict[str, float] = field(default_factory=dict)
    """Pattern of parameters' names, as "*embed_tokens*", to the factor of their learning rate; of
    several patterns that fit a name the first counts, and layer_decay does not."""
    layer_decay: float | None = None
    """Factor of the learning rate from each decoder block to the one before it, in (0, 1]: the
    last block has it once, the embeddings once more than the first block, last norm and head not
    at all. None: 1."""
    schedule: Schedule = "cosine"
    """After the warm-up: cosine falls to the end; wsd holds the peak and falls in a straight line
    over the last decay_ratio of the steps; constant holds it."""
    min_learning_rate_ratio: float = 0.0
    """Learning rate that cosine and wsd end at, as a share of the peak."""
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up; a pre-trained model needs it too, as the optimizer's
    moments start empty."""
    warmup_from: float = 0.0
    """Learning rate that the warm-up starts from, as a share of the peak."""
    decay_ratio: float = 0.2
    """Share of the steps in which wsd falls."""
    weight_decay: float = 0.001
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: float = 0.9
    """First beta of AdamW and Lion."""
    beta2: float = 0.95
    """Second beta of AdamW and Lion."""
    clip_norm: float = 1.0
    """Largest gradient norm; frozen entries do not count in it."""
    ema_decay: float | None = None
    """Decay, at each step, of an exponential moving average of the weights, which is then what is
    exported; evaluations on the way are of the weights themselves, a last one is of the average.
    On one device and under ddp. None: the last weights are exported."""
    bad_steps: Literal["stop", "skip"] = "stop"
    """What to do about a step whose loss or gradient norm is not finite or a spike: stop, or leave
    the update out and count it (not under DeepSpeed, which steps by itself)."""
    spike_factor: float | None = None
    """A gradient norm above this many times the median of the last 100 steps is a spike. None:
    only what is not finite is bad."""
    precision: Precision = "auto"
    """auto: bf16-mixed on a GPU that has it, 32-true elsewhere."""
    seed: int = 0
    """Seed of the data order, of dropout and of new weights."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_tokens", "batch_tokens"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "1 or more", value)
        only = self.max_steps is None or self.max_tokens is None
        check(only, "max_tokens", "left out where max_steps is given", self.max_tokens)
        check(self.micro_batch >= 1, "micro_batch", "1 or more", self.micro_batch)
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, "a number above 0", value)
        hours = self.max_hours
        expected = f"above 0 and at most {_MOST_HOURS:,.0f}"
        check(hours is None or 0 < hours <= _MOST_HOURS, "max_hours", expected, hours)
        check(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        check(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        for name in ("min_learning_rate_ratio", "warmup_from", "decay_ratio"):
            check(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name))
        self._check_optimizer()
        decay, factor = self.ema_decay, self.spike_factor
        check(decay is None or 0 < decay < 1, "ema_decay", "in (0, 1)", decay)
        check(factor is None or factor > 1, "spike_factor", "above 1", factor)
        tokens, unit = self.step_tokens, self.sequence_length * self.micro_batch
        expected = f"a multiple of micro_batch x sequence_length, {unit}"
        check(tokens % unit == 0, "batch_tokens", expected, tokens)
        for name in ("max_steps", "max_tokens"):
            value = getattr(self, name)
            sequences = 0 if value is None else self.steps(0) * self.step_sequences
            expected = f"less: a run has at most {MOST_SEQUENCES:,} sequences, and these would be "
            expected += f"{sequences:,}"
            check(sequences <= MOST_SEQUENCES, name, expected, value)

    def _check_optimizer(self) -> None:
        check_optimizer(self.optimizer, self.optimizer_args)
        known = OPTIMIZERS.get(self.optimizer)
        if known is not None and not known.betas:
            expected = f"left out where the optimizer is {self.optimizer}, which has none"
            for name, value in self.betas_given.items():
                check(False, name, expected, value)
        for pattern, factor in self.learning_rate_factors.items():
            name = f"learning_rate_factors.{pattern}"
            good = math.isfinite(factor) and factor > 0
            check(good, name, "above 0 (freeze a region to hold weights still)", factor)
        layer = self.layer_decay
        check(layer is None or 0 < layer <= 1, "layer_decay", "above 0 and at most 1", layer)

    @property
    def betas_given(self) -> dict[str, float]:
        """Those of the betas that are not the defaults."""
        defaults = {item.name: item.default for item in fields(self)}
        betas = {"beta1": self.beta1, "beta2": self.beta2}
        return {name: value for name, value in betas.items() if value != defaults[name]}

    @property
    def step_tokens(self) -> int:
        """Tokens in an optimizer step."""
        return self.batch_tokens or self.micro_batch * self.sequence_length

    @property
    def step_sequences(self) -> int:
        """Sequences in an optimizer step."""
        return self.step_tokens // self.sequence_length

    def accumulate(self, world: int) -> int:
        """Micro-batches of each of ``world`` ranks in a step; UserError unless they divide it."""
        together = self.micro_batch * world
        if self.step_sequences % together:
            raise UserError(
                f"{world} devices with micro_batch {self.micro_batch} take {together} sequences at "
                f"once, which do not divide the {self.step_sequences} of an optimizer step; give "
                f"optimization.batch_tokens a multiple of {together * self.sequence_length}, or "
                "another micro_batch"
            )
        return self.step_sequences // together

    def steps(self, sequences: int) -> int:
        """Optimizer steps of the run, where one pass over the texts has so many ``sequences``."""
        if self.max_steps is not None:
            return self.max_steps
        tokens = self.max_tokens or sequences * self.sequence_length
        return max(1, -(-tokens // self.step_tokens))


@dataclass
class Engine:
    """What trains the model, on how many devices."""

    kind: Kind = "auto"
    """auto: one device by itself, several by ddp. ddp: each holds all. zero-1, -2, -3 (DeepSpeed):
    the optimizer, gradients too, weights too are split over devices. fsdp2 (PyTorch): all three
    are."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep in CPU memory, under zero: the optimizer; at zero-3 also all: the weights too."""
    devices: int | None = None
    """Devices on this machine, unless torchrun or srun says it. None: all GPUs, else one CPU."""
    replicas: int = 1
    """Under fsdp2: groups of devices that weights are split over, each of which holds all of them
    (HSDP), as the GPUs of one machine; gradients are averaged over the groups. Divides the
    devices."""
    gradient_checkpointing: bool | int | None = None
    """Compute activations of the decoder blocks again in the backward pass: less memory, about a
    third more time, the same bits. A number n: of every n-th block, so that both are a part of
    that. None: of all where, as ``--dry_run`` estimates, a device would otherwise take more than
    nine tenths of a GPU's memory, or a third of a machine's without."""
    compile: bool = False
    """Run the decoder blocks as torch.compile makes them, in training; compiling takes a while at
    the start. The same to rounding. Not under zero-3."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """More entries for DeepSpeed's configuration, such as zero_optimization."""

    def __post_init__(self) -> None:
        check(self.devices is None or self.devices >= 1, "devices", "1 or more", self.devices)
        every = self.gradient_checkpointing
        expected = "true, false, or 1 or more: every how many blocks"
        valid = every is None or isinstance(every, bool) or every >= 1
        check(valid, "gradient_checkpointing", expected, every)
        if every == 1:
            self.gradient_checkpointing = True
        zero = self.kind.startswith("zero")
        check(zero or self.offload == "none", "offload", "none unless under zero", self.offload)
        deep = self.offload != "all" or self.kind == "zero-3"
        check(deep, "offload", "none or optimizer unless under zero-3", self.offload)
        expected = "false under zero-3, which gathers weights within a block"
        check(self.kind != "zero-3" or not self.compile, "compile", expected, self.compile)
        expected = "1 or more, and 1 unless under fsdp2"
        valid = self.replicas == 1 or (self.replicas > 1 and self.kind == "fsdp2")
        check(valid, "replicas", expected, self.replicas)
        expected = "left out unless the kind is a zero"
        check(zero or not self.deepspeed, "deepspeed", expected, self.deepspeed)

    def require_whole_untrained(self) -> None:
        """UserError unless each device holds the whole model, and nothing is of training alone."""
        expected = "auto or ddp: each device holds the whole model"
        check(self.kind in ("auto", "ddp"), "engine.kind", expected, self.kind)
        self.require_untrained()

    def require_untrained(self) -> None:
        """UserError for what is of training alone."""
        for name, default in (("replicas", 1), ("compile", False)):
            value = getattr(self, name)
            check(value == default, f"engine.{name}", "left out: it is for training", value)
        recomputes = self.gradient_checkpointing
        expected = "left out: nothing is trained"
        check(not recomputes, "engine.gradient_checkpointing", expected, recomputes)
