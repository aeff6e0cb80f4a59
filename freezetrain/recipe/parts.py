"""The parts of recipes. Fields, defaults and docstrings are the command line's help."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freezetrain.errors import UserError

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true"]
Dtype = Literal["float32", "bfloat16", "float16", "stored"]


def check(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise UserError(f"{name} must be {expected}, got {value!r}; change it in the recipe")


@dataclass
class ModelSource:
    """A Hugging Face causal language model."""

    path: str
    """Folder in Hugging Face format, or an id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Type that the weights are held in; stored: the one they were saved in."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


@dataclass
class TextSource:
    """Texts of several languages: a folder with one file a language."""

    folder: str | None = None
    """Folder of <language>.jsonl, .txt or .parquet, also .gz, .xz, .bz2. None: the Universal
    Declaration of Human Rights in 30 languages, which comes with freezetrain."""
    text_field: str = "text"
    """Field of the text in JSONL and Parquet files."""
    key_field: str | None = None
    """Field that names a document, the same in parallel languages; decides the split into train
    and test. None: the text itself."""
    test_one_in: int = 4
    """One document in this many is held out for evaluation. 0: none, all are for training."""

    def __post_init__(self) -> None:
        valid = self.test_one_in == 0 or self.test_one_in >= 2
        check(valid, "test_one_in", "0, or 2 or more", self.test_one_in)

    def same_folder(self, other: "TextSource") -> bool:
        """Whether both read the same files."""
        if self.folder is None or other.folder is None:
            return self.folder == other.folder
        return Path(self.folder).resolve() == Path(other.folder).resolve()

    @property
    def split(self) -> tuple[str, str | None, int]:
        """What decides which documents are held out."""
        return self.text_field, self.key_field, self.test_one_in


@dataclass
class Optimization:
    """AdamW with warm-up and cosine decay."""

    steps: int = 1000
    """Optimizer steps."""
    sequence_length: int = 512
    """Tokens in a sequence."""
    micro_batch: int = 8
    """Sequences in one forward and backward pass on each device."""
    accumulate: int = 1
    """Micro-batches in an optimizer step."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    min_learning_rate_ratio: float = 0.0
    """Learning rate that the cosine ends at, as a share of the peak."""
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up."""
    weight_decay: float = 0.001
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""
    beta1: float = 0.9
    """AdamW's first beta."""
    beta2: float = 0.95
    """AdamW's second beta."""
    clip_norm: float = 1.0
    """Largest gradient norm; frozen entries do not count in it."""
    precision: Precision = "auto"
    """auto: bf16-mixed on a GPU that has it, 32-true elsewhere."""
    seed: int = 0
    """Seed of the data order, of dropout and of new weights."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch", "accumulate"):
            check(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, "a number above 0", value)
        check(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        check(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        ratio = self.min_learning_rate_ratio
        check(0 <= ratio <= 1, "min_learning_rate_ratio", "in [0, 1]", ratio)


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


@dataclass
class EvaluationTexts:
    """Held-out documents to evaluate languages on."""

    texts: TextSource = field(default_factory=TextSource)
    """Texts whose held-out documents are evaluated."""
    languages: list[str] = field(default_factory=list)
    """Languages to evaluate. Empty: all that the texts hold."""
    max_length: int = 0
    """Tokens of context; longer documents are cut into windows. 0: the model's context, at most
    2048."""
    batch_tokens: int = 4096
    """Tokens in one evaluation batch."""

    def __post_init__(self) -> None:
        valid = self.max_length == 0 or self.max_length >= 2
        check(valid, "max_length", "0, or 2 or more", self.max_length)
        check(self.batch_tokens >= 2, "batch_tokens", "2 or more", self.batch_tokens)


@dataclass
class Watch(EvaluationTexts):
    """Which languages are watched for forgetting, and how often."""

    every_n_steps: int = 100
    """Optimizer steps between evaluations; also before the first step and at the end."""
    off: bool = False
    """Do not watch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.every_n_steps >= 1, "every_n_steps", "1 or more", self.every_n_steps)
