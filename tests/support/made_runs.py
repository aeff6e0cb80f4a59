"""Runs with figures made up, as the report takes them."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from freezetrain.evaluation import Evaluation, Figures, Forgetting, History, LanguageForgetting
from freezetrain.evaluation.benchmarks import BenchmarkDrops, Score, compare_scores
from freezetrain.evaluation.brake import Brake
from freezetrain.evaluation.continuations import Continued, Generation, LanguageGeneration, Text
from freezetrain.evaluation.figures import StandardErrors, safe_exp
from freezetrain.evaluation.texts import TextFacts
from freezetrain.report.run import RegionFacts, Run

CODES = ["ar", "cs", "da", "de", "el", "en", "es", "fr", "it", "ja", "ko", "zh"]
REGION = RegionFacts(
    entries=17_695,
    share=0.0043,
    file="core.safetensors",
    base="base-30",
    digest="abcd",
    made={"languages": ["en", "es"], "ratio": 0.01},
    frozen="frozen: each has the bits that it had in the base",
    coverage={"mlp.up_proj": {"0": 0.02, "10": 0.25, "9": 0.125}},
    elsewhere={"lm_head.weight": 0.31},
)


def benchmarks(model: str) -> BenchmarkDrops:
    base = {"arc": {"acc": Score(0.4, 0.01, True, 5)}}
    return compare_scores(base, model, {"arc": {"acc": Score(0.38, 0.011, True, 5)}})


def generation(languages: Sequence[str] = ("en", "es"), words: str = "words") -> Generation:
    """Two prompts of each language; the model goes on in Chinese after one, or says nothing."""
    said = [
        Continued("a prompt", *(Text(words, code) for code in codes))
        for codes in (("en", "en", "zh"), ("en", None, "en"))
    ]
    silent = [Continued(words, Text("", None), Text(words, "en"), Text("", None))]
    found = [LanguageGeneration("en", said if n else silent) for n in range(len(languages))]
    return Generation(dict(zip(languages, found, strict=True)), "zh")


def figures(bits_per_byte: float, tokens: int = 2000, size: int = 5400) -> Figures:
    nll = bits_per_byte * math.log(2) * size
    correct = round((0.9 - bits_per_byte / 5) * tokens)
    return Figures(nll, tokens, size, correct, 6, StandardErrors(0.01, 0.03, 0.004))


def evaluation(
    step: int,
    now: Mapping[str, Figures],
    base: Mapping[str, Figures],
    target: str | None,
    noise: float | None = None,
) -> Evaluation:
    """``noise``: half width of the intervals, nats per byte; None: without intervals."""

    def around(value: float, half: float | None = noise) -> tuple[float, float] | None:
        return None if half is None else (value - half, value + half)

    languages = {}
    for code in now:
        if code != target:
            delta = now[code].nll_per_byte - base[code].nll_per_byte
            quotient = safe_exp((now[code].nll - base[code].nll) / base[code].tokens)
            relative = delta / base[code].nll_per_byte
            error = None if noise is None else noise / 1.96
            languages[code] = LanguageForgetting(delta, relative, quotient, error, around(delta))
    deltas = {code: change.delta_nll_per_byte for code, change in languages.items()}
    worst = max(deltas, key=deltas.__getitem__)
    mean = fmean(deltas.values())
    relative = fmean(change.relative for change in languages.values())
    gain = None if target is None else base[target].nll_per_byte - now[target].nll_per_byte
    found = Forgetting(
        languages=languages,
        mean=mean,
        mean_interval=around(mean),
        relative_mean=relative,
        relative_mean_interval=around(relative, None if noise is None else noise / 2),
        worst=(worst, deltas[worst]),
        backward_transfer=-mean,
        target=target,
        target_gain=gain,
        target_gain_interval=None if gain is None else around(gain),
    )
    return Evaluation(step, dict(now), found, step * 4096, step * 8)


def make_run(
    name: str = "plain",
    languages: Sequence[str] = ("en", "es", "de", "zh"),
    target: str | None = "zh",
    steps: Sequence[int] = tuple(range(0, 61, 10)),
    factor: float = 1.0,
    noise: float | None = 0.004,
    seed: int = 3,
    **more: Any,
) -> Run:
    """A run that forgets more from step to step, all languages alike but two.

    ``noise``: half width of the intervals, nats per byte. The first held-out language improves, the
    second changes by less than its interval, all others lose. ``more``: fields of ``Run``.
    """
    draw = np.random.default_rng(seed)
    level = {code: float(draw.uniform(1.4, 2.6)) for code in languages}
    cost = {code: float(draw.uniform(0.05, 0.3)) for code in languages}
    held_out = [code for code in languages if code != target]
    cost[held_out[0]] = -0.05
    if len(held_out) > 2:
        cost[held_out[1]] = (noise or 0.004) / 2
    base = {code: figures(value) for code, value in level.items()}
    evaluations = []
    for step in steps:
        share = factor * (step / steps[-1]) ** 0.7
        now = {
            code: figures(level[code] + share * (-0.8 if code == target else cost[code]))
            for code in languages
        }
        spread = None if noise is None else noise * (step > 0)
        evaluations.append(evaluation(step, now, base, target, spread))
    return Run(name, History(target, evaluations), **more)


def braked(name: str = "plain", after: int = 20, **options: Any) -> Run:
    """A run whose brake (relative, roll_back) limits German to what it has lost at step ``after``.

    ``options``: of ``make_run``.
    """
    run = make_run(name, **options)
    limits = {"de": loss_at(run, after, "de") * 1.001, "mean": 0.5}
    return make_run(name, **options, brake=Brake(limits, "roll_back"))


def loss_at(run: Run, step: int, language: str) -> float:
    """What ``language`` has lost, as a share of the base's loss."""
    (found,) = (e for e in run.evaluations if e.step == step)
    return found.loss(language, "relative").value


def texts(languages: Sequence[str], tokens: int = 2000) -> list[TextFacts]:
    return [TextFacts(code, 6, 5400, tokens, None, 0.125) for code in languages]


def two() -> list[Run]:
    """A run with a brake, which went back to step 20, and one with a region."""
    settings = {"learning_rate": 1e-3, "region": None, "seed": 0}
    plain = braked(
        "plain",
        languages=CODES,
        settings=settings,
        texts=texts(CODES),
        benchmarks=benchmarks("plain"),
        generation=generation(),
    )
    frozen = make_run(
        "core frozen",
        CODES,
        factor=0.6,
        settings={**settings, "region": "core.safetensors"},
        region=REGION,
    )
    return [plain, frozen]
