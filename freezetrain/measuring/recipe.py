"""The recipe of `freezetrain forgetting`."""

from dataclasses import dataclass, field
from typing import ClassVar

from freezetrain.recipe.check import check
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import EvaluationTexts, ModelSource
from freezetrain.recipe.text_types import LocalPath, Name


@dataclass
class Benchmarks:
    """Tasks of lm-evaluation-harness, which `pip install 'freezetrain[benchmarks]'` installs."""

    tasks: list[str] = field(default_factory=list)
    """Names of tasks, groups or tags: its own, or those in folder. Empty: none are run."""
    folder: LocalPath | None = None
    """Folder with task files (YAML) of your own."""
    run_functions: bool = False
    """Run Python functions that task files of folder name, and what their templates call. Only for
    task files that you have read."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Metric that counts for a task, where that is not the first that the task has."""
    num_fewshot: int | None = None
    """Solved examples before each question. None: as many as each task says."""
    limit: int | None = None
    """Questions of each task, the first ones. None: all."""
    batch: int = 8
    """Requests in one forward pass."""
    seed: int = 0
    """Seed of the choice of solved examples, and of what else is drawn."""

    def __post_init__(self) -> None:
        for name in ("folder", "run_functions", "metrics", "num_fewshot", "limit"):
            given = getattr(self, name)
            used = bool(self.tasks) or not given
            check(used, f"benchmarks.{name}", "left out where benchmarks.tasks is", given)
        shots = self.num_fewshot is None or self.num_fewshot >= 0
        check(shots, "benchmarks.num_fewshot", "0 or more", self.num_fewshot)
        some = self.limit is None or self.limit >= 1
        check(some, "benchmarks.limit", "1 or more", self.limit)
        check(self.batch >= 1, "benchmarks.batch", "1 or more", self.batch)
        check(0 <= self.seed < 2**32, "benchmarks.seed", "from 0 to 2**32 - 1", self.seed)


@dataclass
class GenerationProbe:
    """What the models put after the first words of held-out documents, and in which language, which
    py3langid tells; `pip install 'freezetrain[generation]'` installs it."""

    documents: int = 0
    """Held-out documents of each language of which the first tokens are a prompt, chosen by a hash:
    the same ones for all models. 0: nothing is generated."""
    prompt_tokens: int = 16
    """Tokens of a prompt, as the base's tokenizer counts them."""
    new_tokens: int = 32
    """Tokens that a model puts after a prompt, the likeliest one each time; fewer where it ends the
    text. Documents that have fewer than prompt_tokens and new_tokens together give no prompt."""
    languages: list[Name] = field(default_factory=list)
    """Languages of the prompts. Empty: all that are evaluated."""
    codes: dict[Name, str] = field(default_factory=dict)
    """Code (ISO 639) by which py3langid knows a language whose name here does not say it."""
    batch: int = 8
    """Prompts in one forward pass, all of as many tokens."""

    def __post_init__(self) -> None:
        check(self.documents >= 0, "generation.documents", "0 or more", self.documents)
        expected = "left out where generation.documents is 0"
        for name in ("languages", "codes"):
            given = getattr(self, name)
            check(bool(self.documents) or not given, f"generation.{name}", expected, given)
        for name in ("prompt_tokens", "new_tokens", "batch"):
            number = getattr(self, name)
            check(number >= 1, f"generation.{name}", "1 or more", number)
        twice = len(set(self.languages)) < len(self.languages)
        check(not twice, "generation.languages", "each language once", self.languages)


@dataclass
class ForgettingRecipe:
    """Compare models with a base: what did each forget, and gain on the target language?"""

    # Models given later, with the same base, texts and settings, stand beside the earlier ones.
    changeable: ClassVar = ("engine.devices",)
    grows: ClassVar = ("models",)
    collects: ClassVar = ("models",)

    base: ModelSource
    """Model before further pre-training."""
    models: list[ModelSource]
    """Models after it, each with its own tokenizer. In a folder that holds such a comparison, those
    to add."""
    target: Name | None = None
    """Target language; all others are held out. None: all are held out."""
    evaluation: EvaluationTexts = field(default_factory=EvaluationTexts)
    """What is evaluated."""
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    """Which tasks of lm-evaluation-harness are run as well."""
    generation: GenerationProbe = field(default_factory=GenerationProbe)
    """What is generated as well."""
    engine: Engine = field(default_factory=Engine)
    """On how many devices; each holds the whole model and evaluates its share of all texts."""

    def __post_init__(self) -> None:
        check(bool(self.models), "models", "one or more", self.models)
        conversations = self.evaluation.texts.messages_field
        expected = "left out where generation.documents asks for prompts of plain texts"
        plain = conversations is None or not self.generation.documents
        check(plain, "messages_field", expected, conversations)
        self.engine.require_whole_untrained()
