"""Results of `freezetrain compare`, made up: curves like those measured on a small base."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from freezetrain.compare.frontier import compare_variants

RATES = (3e-4, 1e-3, 2e-3)
HELD_OUT = ("de", "en", "es", "ru")
# name → (loss and gain against plain's, region, share replayed, whether old text is read)
VARIANTS: dict[str, tuple[float, float, str | None, float, bool]] = {
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
    variants: Mapping[str, tuple[float, float, str | None, float, bool]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    rates: Sequence[float] = RATES,
    gain: float | None = None,
    noise: float = 0.03,
) -> dict[str, Any]:
    """ln loss is linear in the gain, with noise by seed and by run."""
    draw = np.random.default_rng(7)
    variants = VARIANTS if variants is None else variants
    of_seed = {seed: float(draw.normal(0, 0.05)) for seed in seeds}
    runs = []
    for name, (factor, speed, _, _, _) in variants.items():
        for rate in rates:
            for seed in seeds:
                gained = speed * 0.22 * math.log(rate / 6e-5) + 0.05 * of_seed[seed]
                loss = 0.025 * factor * math.exp(3 * gained + of_seed[seed])
                loss *= math.exp(float(draw.normal(0, noise)))
                spread = dict(zip(HELD_OUT, (1.6, 1.1, 0.8, 0.5), strict=True))
                languages = {code: share * loss for code, share in spread.items()}
                runs.append(
                    {
                        "variant": name,
                        "learning_rate": rate,
                        "seed": seed,
                        "gain": gained,
                        "mean": sum(languages.values()) / len(languages),
                        "worst": {"language": "de", "delta_nll_per_byte": languages["de"]},
                        "languages": languages,
                        "seconds": 31.0 + 3 * len(name) / 10,
                        "tokens": 307_200,
                        "failed": None,
                    }
                )
    facts = {
        name: {
            "region": region,
            "frozen": None if region is None else 0.4231,
            "changes": {"replay": {"share": trained}} if trained else {},
            "trained_on_old": trained,
            "reads_old": reads,
        }
        for name, (_, _, region, trained, reads) in variants.items()
    }
    return {
        "model": {"name": "base-9lang", "parameters": 3_342_144, "layers": 4},
        "target": "zh",
        "languages": [*HELD_OUT, "zh"],
        "learning_rates": list(rates),
        "seeds": list(seeds),
        "variants": facts,
        "runs": runs,
        "base": dict.fromkeys((*HELD_OUT, "zh"), 0.9),
        "comparison": compare_variants(runs, gain=gain),
        "settings": {"train": {"optimization": {"max_steps": 150}}, "variants": {"plain": {}}},
        "machine": "2 CPU cores",
        "seconds": 2511.4,
    }


def many_variants(count: int = 45) -> dict[str, tuple[float, float, str | None, float, bool]]:
    """So many variants, one of a very long name."""
    draw = np.random.default_rng(2)
    found = {"plain": VARIANTS["plain"]}
    for place in range(1, count):
        name = f"{'core_5 | a_very_long_region_name | ' * (3 if place == 7 else 0)}variant {place}"
        loss, speed = float(draw.uniform(0.2, 1.5)), float(draw.uniform(0.75, 1.05))
        found[name] = (loss, speed, "core", 0.05 * (place % 3 == 0), place % 2 == 0)
    return found
