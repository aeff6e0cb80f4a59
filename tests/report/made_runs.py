"""Runs as `render_runs` takes them: figures made up, in the shape of `forgetting.json`."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

CODES = ["ar", "cs", "da", "de", "el", "en", "es", "fr", "it", "ja", "ko", "zh"]
REGION = {
    "entries": 17_695, "share": 0.0043, "file": "core.safetensors", "base": "base-30",
    "digest": "abcd", "made": {"languages": ["en", "es"], "ratio": 0.01},
    "frozen": "frozen: each has the bits that it had in the base",
    "coverage": {"mlp.up_proj": {"0": 0.02, "10": 0.25, "9": 0.125}},
    "elsewhere": {"lm_head.weight": 0.31},
}  # fmt: skip
BRAKE = {
    "limits": {"es": 0.03, "mean": 0.05}, "measure": "relative", "action": "roll_back",
    "breaches": [{"step": 40, "name": "es", "value": 0.0412, "limit": 0.03}],
    "ended_at_step": 40, "model_step": 30,
}  # fmt: skip
BENCHMARKS = {
    "tasks": {
        "arc": {
            "metric": "acc",
            "higher_is_better": True,
            "base": {"value": 0.4, "standard_error": 0.01},
            "models": {"plain": {"value": 0.38, "standard_error": 0.011, "relative_drop": 0.05}},
        }
    },
    "mean_relative_drop": {"plain": 0.05},
}


def figures(bits_per_byte: float, tokens: int = 2000, size: int = 5400) -> dict[str, Any]:
    nll = bits_per_byte * math.log(2) * size
    try:
        perplexity: float | None = math.exp(nll / tokens)
    except OverflowError:
        perplexity = None
    return {
        "nll": nll,
        "tokens": tokens,
        "bytes": size,
        "perplexity": perplexity,
        "bits_per_byte": bits_per_byte,
    }


def nats(after: dict[str, Any], before: dict[str, Any]) -> float:
    return (after["nll"] - before["nll"]) / before["bytes"]


def evaluation(
    step: int, now: dict[str, Any], before: dict[str, Any], target: str | None
) -> dict[str, Any]:
    deltas = {code: nats(now[code], before[code]) for code in now if code != target}
    worst = max(deltas, key=deltas.__getitem__)
    mean = sum(deltas.values()) / len(deltas)
    return {
        "step": step,
        "figures": now,
        "forgetting": {
            "languages": {
                code: {
                    "delta_nll_per_byte": delta,
                    "perplexity_ratio": math.exp(
                        (now[code]["nll"] - before[code]["nll"]) / before[code]["tokens"]
                    ),
                }
                for code, delta in deltas.items()
            },
            "mean": mean,
            "worst": {"language": worst, "delta_nll_per_byte": deltas[worst]},
            "backward_transfer": -mean,
            "target": target,
            "target_gain": None if target is None else nats(before[target], now[target]),
        },
    }


def make_run(
    name: str = "plain",
    languages: Sequence[str] = ("en", "es", "de", "zh"),
    target: str | None = "zh",
    steps: Sequence[int] = tuple(range(0, 61, 10)),
    factor: float = 1.0,
    noise: float = 0.004,
    seed: int = 3,
) -> dict[str, Any]:
    """A run that forgets more from step to step, all languages alike but two.

    ``noise``: half width of the intervals, nats per byte. The first held-out language improves, the
    second changes by less than its interval, all others lose.
    """
    draw = np.random.default_rng(seed)
    level = {code: float(draw.uniform(1.4, 2.6)) for code in languages}
    cost = {code: float(draw.uniform(0.05, 0.3)) for code in languages}
    held_out = [code for code in languages if code != target]
    cost[held_out[0]] = -0.05
    if len(held_out) > 2:
        cost[held_out[1]] = noise / 2
    base = {code: measured(value) for code, value in level.items()}
    evaluations = []
    for step in steps:
        share = factor * (step / steps[-1]) ** 0.7
        now = {
            code: measured(level[code] + share * (-0.8 if code == target else cost[code]))
            for code in languages
        }
        evaluations.append(compared(step, now, base, target, noise * (step > 0)))
    history = {"target": target, "max_length": 512, "overlap": 1, "evaluations": evaluations}
    return {"name": name, "history": history | {"time_share": None, "subsample": None}}


def measured(bits_per_byte: float) -> dict[str, Any]:
    return figures(bits_per_byte) | {
        "nll_per_byte": bits_per_byte * math.log(2),
        "correct": 700,
        "documents": 6,
        "accuracy": 0.9 - bits_per_byte / 5,
        "standard_errors": {"nll_per_byte": 0.01, "nll_per_token": 0.03, "accuracy": 0.004},
    }


def compared(
    step: int, now: dict[str, Any], base: dict[str, Any], target: str | None, noise: float
) -> dict[str, Any]:
    def around(value: float) -> list[float]:
        return [value - noise, value + noise]

    found = evaluation(step, now, base, target) | {"tokens": step * 4096, "samples": step * 8}
    change = found["forgetting"]
    for code, language in change["languages"].items():
        delta = language["delta_nll_per_byte"]
        language["relative"] = delta * base[code]["bytes"] / base[code]["nll"]
        language |= {"standard_error": noise / 1.96, "interval": around(delta)}
    relative = [language["relative"] for language in change["languages"].values()]
    change |= {"mean_interval": around(change["mean"]), "relative_mean": fmean(relative)}
    change["relative_mean_interval"] = [end / 2 for end in around(2 * fmean(relative))]
    gain = change["target_gain"]
    change["target_gain_interval"] = None if gain is None else around(gain)
    return found


def texts(languages: list[str]) -> list[dict[str, Any]]:
    read = {"documents": 6, "bytes": 5400, "tokens": 2000, "unknown": None, "byte_fallback": 0.125}
    return [{"language": code, **read} for code in languages]


def two() -> list[dict[str, Any]]:
    """A run with a brake and one with a region."""
    plain = make_run("plain", CODES) | {
        "settings": {"learning_rate": 1e-3, "region": None, "seed": 0},
        "texts": texts(CODES),
        "brake": BRAKE,
        "benchmarks": BENCHMARKS,
    }
    frozen = make_run("core frozen", CODES, factor=0.6) | {
        "settings": {"learning_rate": 1e-3, "region": "core.safetensors", "seed": 0},
        "region": REGION,
    }
    return [plain, frozen]
