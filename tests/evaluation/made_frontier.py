"""Runs of `freezetrain compare` whose curves are known: loss = a · exp(b · gain)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

RATES, SEEDS = (3e-4, 1e-3, 2e-3), (0, 1, 2)
Noise = Callable[[], float]


def made_run(
    variant: str, rate: float, seed: int, gain: float, loss: float, **more: Any
) -> dict[str, Any]:
    return {
        "variant": variant,
        "learning_rate": rate,
        "seed": seed,
        "gain": gain,
        "mean": loss,
        "worst": {"language": "de", "delta_nll_per_byte": 2 * loss},
        "languages": {"de": 2 * loss, "en": 0.0},
        "seconds": 10.0,
        "tokens": 1000,
        "failed": None,
        **more,
    }


def failed_run(variant: str, rate: float, seed: int) -> dict[str, Any]:
    empty = dict.fromkeys(("gain", "mean", "worst"))
    return made_run(variant, rate, seed, 0.0, 0.0) | empty | {"failed": "loss became NaN at step 2"}


def grid(
    variant: str,
    a: float = 0.02,
    b: float = 3.0,
    *,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    gains: Sequence[float] = (0.4, 0.6, 0.8),
    of_seed: Callable[[int], float] = lambda seed: 0.0,  # in ln loss
    noise: Noise = lambda: 0.0,  # in ln loss, of each run
    **more: Any,
) -> list[dict[str, Any]]:
    """A run at every rate and seed; a seed shifts the gains a little."""
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
