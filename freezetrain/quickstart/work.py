"""How much a quickstart does: all of its recipe, or what fits into the time that it may take."""

import time
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import torch
from transformers import PreTrainedModel

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, evaluate
from freezetrain.formats import count
from freezetrain.log_lines import duration
from freezetrain.scoring.compute import Scoring

MODELS = 3  # trained with nothing, the core, and the core and vocabulary frozen

ZEROED = 4  # evaluations with a region zeroed: nothing, the core, and its controls

_MEASURED_TOKENS = 1024  # evaluated, to learn how long it takes

_MEASURED_ROWS = 4  # sequences of a training pass, for the same

_MARGIN = 0.8  # of the time is planned for: what was measured in seconds is not exact

_FILES = 6  # times that loading takes: the base is loaded, fingerprinted, exported and compared

# A quickstart with less than that shows nothing.
_LEAST = {"sequences": 16, "documents": 2, "evaluations": 1, "seeds": 1, "steps": 10}

# What is taken back first, of what was cut, if there is time left.
_TAKEN_BACK = ("seeds", "steps", "languages", "documents", "evaluations", "sequences")


@dataclass(frozen=True)
class Work:
    """What is done."""

    sequences: int
    """Of each language that is scored, at most."""
    documents: int
    """Held-out documents of each language, at most."""
    languages: int
    """That are evaluated."""
    evaluations: int
    """Of each training run, the one before the first step not counted."""
    seeds: int
    """Runs of each variant."""
    steps: int
    """Optimizer steps of a run."""


@dataclass(frozen=True)
class Sizes:
    """What the work is done on."""

    scored: Sequence[int]
    """Sequences that there are of each language that is scored."""
    sequence_length: int
    """Tokens."""
    step_tokens: int
    """Tokens of an optimizer step."""
    held_out: Mapping[str, Sequence[int]]
    """Language → tokens of each of its documents; those evaluated in any case first."""

    def evaluated(self, work: Work) -> float:
        """Tokens of one evaluation."""
        languages = list(self.held_out.values())[: work.languages]
        return sum(sum(t) * min(1.0, work.documents / len(t)) for t in languages)


@dataclass(frozen=True)
class Speed:
    """Seconds, measured on the model."""

    evaluated: float
    """Of a token in evaluation."""
    trained: float
    """Of a token in a forward and backward pass."""
    step: float
    """Of an optimizer's step."""
    loading: float
    """Of loading the model."""


def seconds_of(work: Work, sizes: Sizes, speed: Speed) -> dict[str, float]:
    """How long each part of ``work`` takes: score, zero, train, watch."""
    scored = sum(min(work.sequences, there) for there in sizes.scored) * sizes.sequence_length
    evaluation = sizes.evaluated(work) * speed.evaluated
    step = sizes.step_tokens * speed.trained + speed.step
    runs = MODELS * work.seeds
    return {
        "score": scored * speed.trained + 2 * speed.loading,
        "zero": ZEROED * evaluation,
        "train": runs * (work.steps * step + _FILES * speed.loading),
        "watch": runs * (1 + work.evaluations) * evaluation,
    }


def fit(work: Work, sizes: Sizes, speed: Speed, seconds: float, least_languages: int) -> Work:
    """As much of ``work`` as takes at most ``seconds`` by what was measured.

    The part that takes longest is cut down first; then as much of what was cut is taken back as
    fits. ``least_languages`` are evaluated in any case. UserError where even the least takes
    longer, with the time that it takes.
    """
    asked = work

    def too_long(work: Work) -> bool:
        return sum(seconds_of(work, sizes, speed).values()) > _MARGIN * seconds

    while too_long(work):
        parts = seconds_of(work, sizes, speed)
        ranked = sorted(parts, key=lambda name: -parts[name])
        smaller = (_smaller(work, part, least_languages) for part in ranked)
        found = next((less for less in smaller if less is not None), None)
        if found is None:
            needed = 1 + ceil(sum(parts.values()) / _MARGIN / 60)  # 1 to measure it again
            raise UserError(
                "expected minutes for at least a few steps and documents, which take about "
                f"{needed} with this model on this machine, got {seconds / 60:.3g} that are left; "
                f"give --minutes {needed}, or a smaller model"
            )
        work = found

    for name in _TAKEN_BACK:
        values = range(getattr(work, name), getattr(asked, name) + 1)
        fitting = bisect(values, False, key=lambda value: too_long(replace(work, **{name: value})))
        work = replace(work, **{name: values[fitting - 1]})
    return work


def _smaller(work: Work, part: str, least_languages: int) -> Work | None:
    """``work`` with less of ``part``; None where there is no less of it."""
    ways: dict[str, list[tuple[str, int]]] = {
        "score": [("sequences", work.sequences // 2)],
        "zero": [("documents", work.documents // 2), ("languages", work.languages - 5)],
        "train": [("seeds", work.seeds - 1), ("steps", work.steps * 3 // 4)],
        "watch": [
            ("seeds", work.seeds - 1),
            ("documents", work.documents // 2),
            ("evaluations", work.evaluations - 1),
            ("languages", work.languages - 5),
        ],
    }
    least = _LEAST | {"languages": least_languages}
    for name, value in ways[part]:
        now = getattr(work, name)
        if (value := max(value, least[name])) < now:
            return replace(work, **{name: value})
    return None


def left_out(asked: Work, done: Work) -> list[str]:
    """What was not done of what was ``asked`` for, in words."""
    words = {
        "sequences": "scored sequences of a language",
        "documents": "held-out documents of a language",
        "languages": "languages evaluated",
        "evaluations": "evaluations of a run",
        "seeds": "runs of a variant",
        "steps": "steps of a run",
    }
    was, now = asdict(asked), asdict(done)
    return [
        f"{count(now[name])} of {count(was[name])} {text}"
        for name, text in words.items()
        if now[name] < was[name]
    ]


def plan_line(omitted: Sequence[str], seconds: float, minutes: float | None) -> str:
    """What will be done, in a sentence for the beginning."""
    about = f"this will take about {duration(seconds)}"
    if not omitted:
        return about
    return (
        f"{about}, so that it fits into {minutes:g} minutes: {', '.join(omitted)}; more with "
        "--minutes"
    )


def measure(
    model: PreTrainedModel,
    documents: Mapping[str, Sequence[Document]],
    max_length: int,
    sequence_length: int,
    loading: float,
) -> Speed:
    """How fast ``model`` is here; its weights do not change. ``loading``: seconds that it took."""
    first = _first(documents, _MEASURED_TOKENS)
    evaluate(model, _first(documents, 1), max_length=max_length)  # the first pass allocates
    evaluated = _timed(lambda: evaluate(model, first, max_length=max_length))
    tokens = sum(len(document.ids) for texts in first.values() for document in texts)
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    shape = (_MEASURED_ROWS, sequence_length)
    rows = torch.randint(len(embeddings.weight), shape, generator=generator)
    with Scoring(model, ["taylor"], dict(model.named_parameters())) as scoring:
        scoring.add(rows[:1])
        trained = _timed(lambda: scoring.add(rows))
    return Speed(evaluated / tokens, trained / rows.numel(), _optimizer_step(model), loading)


def _first(
    documents: Mapping[str, Sequence[Document]], tokens: int
) -> dict[str, Sequence[Document]]:
    """The first document of each language, of as many languages as hold so many ``tokens``."""
    found: dict[str, Sequence[Document]] = {}
    for name, texts in documents.items():
        if tokens > 0:
            found[name] = texts[:1]
            tokens -= len(texts[0].ids)
    return found


def _optimizer_step(model: PreTrainedModel) -> float:
    """Seconds that AdamW takes for all parameters, by those of the largest one."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    largest = max(model.parameters(), key=lambda parameter: parameter.numel())
    copy = torch.nn.Parameter(largest.detach().clone())
    copy.grad = torch.zeros_like(copy)
    optimizer = torch.optim.AdamW([copy])
    optimizer.step()  # makes its moments
    return _timed(optimizer.step) * sum(sizes) / max(sizes)


def _timed(run: Callable[[], object]) -> float:
    """Seconds that ``run`` takes."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
