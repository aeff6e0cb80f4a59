"""Runs and results of `freezetrain compare`, made up of curves that are known."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from freezetrain.compare.frontier import compare_variants
from freezetrain.compare.results import CompareResults, ModelFacts, RunResult, VariantFacts

RATES = (3e-4, 1e-3, 2e-3)
SEEDS = (0, 1, 2)
HELD_OUT = ("de", "en", "es", "ru")


def made_run(
    variant: str, rate: float, seed: int, gain: float, loss: float, **more: Any
) -> RunResult:
    values = {
        "gain": gain,
        "mean": loss,
        "worst": 2 * loss,
        "worst_language": "de",
        "languages": {"de": 2 * loss, "en": 0.0},
        "seconds": 10.0,
        "tokens": 1000,
    }
    return RunResult(variant, rate, seed, **{**values, **more})


def failed_run(variant: str, rate: float, seed: int) -> RunResult:
    return RunResult(variant, rate, seed, failed="loss became NaN at step 2")


def grid(
    variant: str,
    a: float = 0.02,
    b: float = 3.0,
    *,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    gains: Sequence[float] = (0.4, 0.6, 0.8),
    of_seed: Callable[[int], float] = lambda seed: 0.0,  # in ln loss
    noise: Callable[[], float] = lambda: 0.0,  # in ln loss, of each run
    **more: Any,
) -> list[RunResult]:
    """A run at every rate and seed, loss = a · exp(b · gain); a seed shifts the gains a little."""
    return [
        made_run(
            variant,
            rate,
            seed,
            gain + 0.01 * seed,
            a * math.exp(b * (gain + 0.01 * seed) + of_seed(seed) + noise()),
            **more,
        )
        for rate, gain in zip(rates, gains, strict=True)
        for seed in seeds
    ]


# loss and gain against plain's, region, share replayed, whether old text is read
MadeVariant = tuple[float, float, str | None, float, bool]

VARIANTS: dict[str, MadeVariant] = {
    "plain": (1.0, 1.0, None, 0.0, False),
    "core 1%": (0.98, 1.0, "core_1", 0.0, True),
    "random 5%": (1.0, 0.99, "random_5", 0.0, False),
    "columns + vocabulary": (0.5, 0.93, "columns | vocabulary", 0.0, True),
    "vocabulary": (0.7, 0.96, "vocabulary", 0.0, False),
    "replay 5%": (0.45, 0.98, None, 0.05, False),
    "everything": (0.22, 0.92, "columns | vocabulary", 0.05, True),
    "clamp": (1.6, 0.97, "core_1", 0.0, True),
}


def make_compare(
    variants: Mapping[str, MadeVariant] = VARIANTS,
    seeds: Sequence[int] = SEEDS,
    rates: Sequence[float] = RATES,
    noise: float = 0.03,
    change: Callable[[RunResult], RunResult] = lambda run: run,
) -> CompareResults:
    """Curves like those measured on a small base: ln loss is linear in the gain, with noise by
    seed and by run; ``change`` is done to each run."""
    draw = np.random.default_rng(7)
    of_seed = {seed: float(draw.normal(0, 0.05)) for seed in seeds}
    runs = []
    for name, (factor, speed, *_) in variants.items():
        for rate in rates:
            for seed in seeds:
                gain = speed * 0.22 * math.log(rate / 6e-5) + 0.05 * of_seed[seed]
                loss = 0.025 * factor * math.exp(3 * gain + of_seed[seed])
                loss *= math.exp(float(draw.normal(0, noise)))
                spread = dict(zip(HELD_OUT, (1.6, 1.1, 0.8, 0.5), strict=True))
                languages = {code: share * loss for code, share in spread.items()}
                run = RunResult(
                    variant=name,
                    learning_rate=rate,
                    seed=seed,
                    gain=gain,
                    mean=sum(languages.values()) / len(languages),
                    worst=languages["de"],
                    worst_language="de",
                    languages=languages,
                    seconds=31.0 + 3 * len(name) / 10,
                    tokens=307_200,
                    machine="2 CPU cores",
                )
                runs.append(change(run))
    facts = {
        name: VariantFacts(
            region=region,
            frozen=None if region is None else 0.4231,
            changes={"replay": {"share": replayed}} if replayed else {},
            trained_on_old=replayed,
            reads_old=reads_old,
        )
        for name, (_, _, region, replayed, reads_old) in variants.items()
    }
    return CompareResults(
        model=ModelFacts("base-9lang", 3_342_144, 4),
        target="zh",
        languages=[*HELD_OUT, "zh"],
        learning_rates=list(rates),
        seeds=list(seeds),
        variants=facts,
        runs=runs,
        base=dict.fromkeys((*HELD_OUT, "zh"), 0.9),
        comparison=compare_variants(runs, variants=facts),
        settings={"train": {"optimization": {"max_steps": 150}}, "variants": {"plain": {}}},
    )


def many_variants(count: int = 45) -> dict[str, MadeVariant]:
    """So many variants, one of a very long name."""
    draw = np.random.default_rng(2)
    variants = {"plain": VARIANTS["plain"]}
    for place in range(1, count):
        name = f"{'core_5 | a_very_long_region_name | ' * (3 if place == 7 else 0)}variant {place}"
        loss, speed = float(draw.uniform(0.2, 1.5)), float(draw.uniform(0.75, 1.05))
        variants[name] = (loss, speed, "core", 0.05 * (place % 3 == 0), place % 2 == 0)
    return variants
