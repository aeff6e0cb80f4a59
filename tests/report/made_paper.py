"""Results of `freezetrain paper`, made up: of a model that shows nearly all that the paper says."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

import numpy as np
from made_runs import figures, texts

CODES = "ar cs da de el en es fa fi fr hu id it ja ko ml ms nl no pl pt ro ru sv sw ta tr uk vi zh"
READS = [*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.gate_proj", "mlp.up_proj"]
WRITES = ["self_attn.o_proj", "mlp.down_proj"]
MATRICES = [*READS[:3], WRITES[0], *READS[3:], WRITES[1]]
SEEDS = (0, 1, 2)
PROMPT = "There are 365 days in a year and 12"


def make_paper(
    languages: Sequence[str] = tuple(CODES.split()),
    layers: int = 4,
    ratios: Sequence[float] = (0.01, 0.03, 0.05),
) -> dict[str, Any]:
    draw = np.random.default_rng(5)
    codes = list(languages)
    before = {code: figures(float(draw.uniform(1.4, 2.6))).to_dict() for code in codes}
    return {
        "model": {
            "name": "base-30",
            "parameters": 4_128_960,
            "layers": layers,
            "folder": "my bases/base",
        },
        "settings": {"ratios": list(ratios), "engine": {"kind": "auto"}, "cache": None},
        "languages": {"scored": codes, "core": codes[:6], "evaluated": codes},
        "texts": [asdict(facts) for facts in texts(codes)],
        "scores": {
            code: {"method": "taylor", "sequences": 1200 + n, "tokens": 614_400, "loss": 3.25}
            for n, code in enumerate(codes)
        },
        "ablation": ablation(draw, before, ratios),
        "selectivity": selectivity(draw, codes),
        "dimensions": dimensions(draw, codes, layers, before),
        "weights": {
            "zero": weights(draw, before, "zero", None, 1.4),
            "scale": weights(draw, before, "scale", 4.0, 0.3),
        },
        "overlap": {
            "languages": overlap(draw, codes, layers),
            "samples": overlap(draw, ["1,000 sequences", "10,000 sequences", "all"], layers, 0.6),
            "methods": overlap(draw, ["taylor", "taylor-abs", "magnitude"], layers),
            "halves": {
                "names": codes,
                "jaccard": [float(draw.uniform(0.6, 0.8)) for _ in codes],
                "expected": [0.005] * len(codes),
            },
            "whole model": overlap(draw, ["core", *codes[:6]], layers, 0.3, vary=True),
        },
        "seconds": {"scores": 252.4, "ablation": 31.2},
    }


def after(before: dict[str, Any], rise: dict[str, float]) -> dict[str, Any]:
    """Figures of each language whose loss has risen by ``rise`` nats per byte."""
    return {
        code: figures(one["bits_per_byte"] + rise[code] / math.log(2)).to_dict()
        for code, one in before.items()
    }


def rises(before: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    return {code: (now[code]["nll"] - one["nll"]) / one["bytes"] for code, one in before.items()}


def effect(found: dict[str, Any], names: list[str]) -> dict[str, Any]:
    before = found["nothing"]
    by_name = [rises(before, found[name]) for name in names]
    means = [fmean(rise.values()) for rise in by_name]
    several = len(names) > 1
    return {
        "mean_rise": fmean(means),
        "spread": stdev(means) if several else None,
        "languages": {
            code: {
                "rise": fmean(rise[code] for rise in by_name),
                "spread": stdev(rise[code] for rise in by_name) if several else None,
                "perplexity": fmean(found[name][code]["perplexity"] for name in names),
            }
            for code in before
        },
    }


def ablation(
    draw: np.random.Generator, before: dict[str, Any], ratios: Sequence[float]
) -> dict[str, Any]:
    found, regions, summary = {"nothing": before}, {}, []
    for ratio in ratios:
        share = f"{100 * ratio:g}%"
        level = {"top": 12 * ratio, "bottom": 1e-6, "random": 0.2 * ratio}
        groups = {
            "top": [f"top {share}"],
            "bottom": [f"bottom {share}"],
            "random": [f"random {share}, seed {seed}" for seed in SEEDS],
        }
        for kind, names in groups.items():
            for name in names:
                rise = {code: level[kind] * float(draw.uniform(0.6, 1.6)) for code in before}
                found[name] = after(before, rise)
                seed = int(name[-1]) if kind == "random" else None
                like = f"top {share}" if kind == "random" else None
                regions[name] = {"kind": kind, "ratio": ratio, "seed": seed, "like": like}
                regions[name] |= {"entries": 17_695, "share": 0.0043}
            one = {"kind": kind, "ratio": ratio, "regions": names}
            summary.append(one | {"like": groups["top"][0] if kind == "random" else None})
            summary[-1] |= effect(found, names)
    said = {name: " months, and" if "top" not in name else " 12 12 \u3042<12" for name in found}
    return {
        "regions": regions,
        "figures": found,
        "summary": summary,
        "texts": [{"prompt": PROMPT, "texts": said}],
    }


def selectivity(draw: np.random.Generator, codes: list[str]) -> dict[str, Any]:
    rise = {
        own: {
            code: float(draw.uniform(0.3, 0.9) if code == own else draw.uniform(-0.01, 0.2))
            for code in codes
        }
        for own in codes
    }
    languages: dict[str, Any] = {}
    for own in codes:
        others = {code: value for code, value in rise[own].items() if code != own}
        worst = max(others, key=others.__getitem__, default=None)
        languages[own] = {
            "own": rise[own][own],
            "largest_other": None if worst is None else others[worst],
            "other": worst,
            "mean_other": fmean(others.values()) if others else None,
        }
    several = len(codes) > 1
    own = fmean(one["own"] for one in languages.values())
    other = fmean(one["mean_other"] for one in languages.values()) if several else None
    return {
        "ratio": 0.05,
        "languages": codes,
        "evaluated": codes,
        "entries": dict.fromkeys(codes, 12_345),
        "rise": rise,
        "control": {one: {code: float(draw.normal(0, 0.001)) for code in codes} for one in codes},
        "dominance": {
            "rows": sum(rise[o][o] == max(rise[o].values()) for o in codes),
            "columns": sum(rise[c][c] == max(rise[o][c] for o in codes) for c in codes),
            "of": len(codes),
            "own": own,
            "other": other,
            "ratio": None if other is None else own / other,
            "languages": languages,
        },
    }


def dimensions(
    draw: np.random.Generator, codes: list[str], layers: int, before: dict[str, Any]
) -> dict[str, Any]:
    def table(strong: list[str]) -> dict[str, dict[str, float]]:
        return {
            str(layer): {
                kind: float(draw.uniform(0.2, 0.6) if kind in strong else draw.uniform(0.02, 0.06))
                for kind in MATRICES
            }
            for layer in range(layers)
        }

    def place() -> dict[str, Any]:
        return {name: table(WRITES if "rows" in name else READS) for name in even}

    even = {"rows": 0.021, "columns": 0.018, "gini_rows": 0.11, "gini_columns": 0.09}
    random = [{code: float(draw.uniform(0.01, 0.1)) for code in codes} for _ in SEEDS]
    fullest = {code: float(draw.uniform(0.5, 1.5)) for code in codes}
    found = {"nothing": before, "fullest": after(before, fullest)}
    found |= {f"random {seed}": after(before, random[seed]) for seed in SEEDS}
    return {
        "top": 0.01,
        "matrices": MATRICES,
        "directions": dict.fromkeys(WRITES, "rows") | dict.fromkeys(READS, "columns"),
        "layers": list(range(layers)),
        "regions": {name: place() for name in ("core", *codes[:2])},
        "even": even,
        "recurring": [
            {
                "dimension": dimension,
                "times": 80 - 3 * n,
                "kinds": MATRICES[: 7 - n],
                "layers": list(range(layers)),
                "regions": ["core", *codes[:2]],
            }
            for n, dimension in enumerate((2100, 14, 7))
        ],
        "possible": 84,
        "expected": 0.84,
        "ablated": {
            "entries": 40_000,
            "fullest": effect(found, ["fullest"]),
            "random": [effect(found, [f"random {seed}"]) for seed in SEEDS],
        },
    }


def weights(
    draw: np.random.Generator, before: dict[str, Any], change: str, by: float | None, most: float
) -> dict[str, Any]:
    def rows(largest: float, scored: bool) -> list[dict[str, Any]]:
        found = []
        for n in range(10):
            rise = {code: largest / (n + 1) ** 2 * float(draw.uniform(0.5, 1.5)) for code in before}
            name = f"model.layers.{n % 4}.input_layernorm.weight"
            found.append(
                {
                    "what": f"{name}[{2100 + n}]",
                    "name": name,
                    "index": [2100 + n],
                    "dimension": None if by is None else 2100 + n,
                    "entries": 1,
                    "value": 0.0123,
                    "score": 0.05 / (n + 1) if scored else None,
                    "mean_rise": fmean(rise.values()),
                    "rise": rise,
                    "perplexity": {c: one["perplexity"] for c, one in after(before, rise).items()},
                }
            )
        return sorted(found, key=lambda one: -one["mean_rise"])

    return {
        "change": change,
        "by": by,
        "before": {code: one["perplexity"] for code, one in before.items()},
        "weights": rows(most, True),
        "random": rows(1e-4, False),
    }


def overlap(
    draw: np.random.Generator,
    names: list[str],
    layers: int,
    least: float = 0.1,
    vary: bool = False,
) -> dict[str, Any]:
    half = np.triu(draw.uniform(least, least + 0.3, (len(names),) * 2), 1)
    shares = draw.uniform(0.004, 0.03, (len(names), layers + len(MATRICES)))
    if not vary:
        shares[:] = 0.01
    return {
        "names": names,
        "jaccard": (half + half.T + np.eye(len(names))).tolist(),
        "expected": np.full((len(names),) * 2, 0.005).tolist(),
        "by_layer": {
            name: {str(layer): float(shares[n, layer]) for layer in range(layers)}
            for n, name in enumerate(names)
        },
        "by_kind": {
            name: {kind: float(shares[n, layers + k]) for k, kind in enumerate(MATRICES)}
            for n, name in enumerate(names)
        },
    }
