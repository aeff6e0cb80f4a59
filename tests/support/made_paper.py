"""Results of `freezetrain paper`, made up: of a model that shows nearly all that the paper says."""

import math
from collections.abc import Sequence

import numpy as np
from made_runs import figures, texts

from freezetrain.analysis.ablate import Ablation, Continuations, RemovalEffect, ZeroedRegion
from freezetrain.analysis.dimensions import FIGURES, Concentration, Dimensions, ZeroedDimensions
from freezetrain.analysis.effects import LanguageFigures, Rises, dominance, mean_effect
from freezetrain.analysis.overlap import Overlap
from freezetrain.analysis.perturb import Damage, Perturbations
from freezetrain.paper.results import (
    Halves,
    ModelFacts,
    MonolingualSelectivity,
    Overlaps,
    PaperLanguages,
    PaperResults,
)
from freezetrain.regions.slices import Recurring

LANGUAGES = ("en", "es", "ja", "zh")
READS = [*(f"self_attn.{name}_proj" for name in "qkv"), "mlp.gate_proj", "mlp.up_proj"]
WRITES = ["self_attn.o_proj", "mlp.down_proj"]
MATRICES = [*READS[:3], WRITES[0], *READS[3:], WRITES[1]]
SEEDS = (0, 1, 2)
PROMPT = "There are 365 days in a year and 12"


def make_paper(
    languages: Sequence[str] = LANGUAGES,
    layers: int = 4,
    ratios: Sequence[float] = (0.01, 0.03, 0.05),
) -> PaperResults:
    draw = np.random.default_rng(5)
    codes = list(languages)
    before = {code: figures(float(draw.uniform(1.4, 2.6))) for code in codes}
    return PaperResults(
        model=ModelFacts("base-30", 4_128_960, layers, "my bases/base"),
        settings={"ratios": list(ratios), "engine": {"kind": "auto"}, "cache": None},
        languages=PaperLanguages(codes, codes[:6], codes),
        texts=texts(codes),
        scores={
            code: {"method": "taylor", "sequences": 1200 + n, "tokens": 614_400, "loss": 3.25}
            for n, code in enumerate(codes)
        },
        seconds={"scores": 252.4, "ablation": 31.2},
        ablation=_ablation(draw, before, ratios),
        selectivity=_selectivity(draw, codes),
        dimensions=_dimensions(draw, codes, layers, before),
        weights={
            "zero": _perturbations(draw, before, "zero", None, 1.4),
            "scale": _perturbations(draw, before, "scale", 4.0, 0.3),
        },
        overlap=Overlaps(
            languages=_overlap(draw, codes, layers),
            samples=_overlap(draw, ["1,000 sequences", "10,000 sequences", "all"], layers, 0.6),
            methods=_overlap(draw, ["taylor", "taylor-abs", "magnitude"], layers),
            halves=Halves(
                codes, [float(draw.uniform(0.6, 0.8)) for _ in codes], [0.005] * len(codes)
            ),
            whole_model=_overlap(draw, ["core", *codes[:6]], layers, 0.3, vary=True),
        ),
    )


def risen(before: LanguageFigures, rise: Rises) -> LanguageFigures:
    """Figures of each language whose loss has risen by ``rise`` nats per byte."""
    return {
        code: figures(one.bits_per_byte + rise[code] / math.log(2)) for code, one in before.items()
    }


def _ablation(
    draw: np.random.Generator, before: LanguageFigures, ratios: Sequence[float]
) -> Ablation:
    by_region, regions, summary = {"nothing": before}, {}, []
    for ratio in ratios:
        share = f"{100 * ratio:g}%"
        level = {"top": 12 * ratio, "bottom": 1e-6, "random": 0.2 * ratio}
        groups = {
            "top": [f"top {share}"],
            "bottom": [f"bottom {share}"],
            "random": [f"random {share}, seed {seed}" for seed in SEEDS],
        }
        for kind, names in groups.items():
            like = f"top {share}" if kind == "random" else None
            for name in names:
                rise = {code: level[kind] * float(draw.uniform(0.6, 1.6)) for code in before}
                by_region[name] = risen(before, rise)
                seed = int(name[-1]) if kind == "random" else None
                regions[name] = ZeroedRegion(kind, ratio, seed, like, 17_695, 0.0043)
            effect = mean_effect(by_region, names)
            summary.append(
                RemovalEffect(kind=kind, ratio=ratio, like=like, regions=names, **vars(effect))
            )
    said = {name: " months, and" if "top" not in name else " 12 12 あ<12" for name in by_region}
    return Ablation(regions, by_region, summary, [Continuations(PROMPT, said)])


def _selectivity(draw: np.random.Generator, codes: list[str]) -> MonolingualSelectivity:
    rise = {
        own: {
            code: float(draw.uniform(0.3, 0.9) if code == own else draw.uniform(-0.01, 0.2))
            for code in codes
        }
        for own in codes
    }
    control = {own: {code: float(draw.normal(0, 0.001)) for code in codes} for own in codes}
    entries = dict.fromkeys(codes, 12_345)
    return MonolingualSelectivity(codes, codes, entries, rise, control, dominance(rise), 0.05)


def _dimensions(
    draw: np.random.Generator, codes: list[str], layers: int, before: LanguageFigures
) -> Dimensions:
    even = {"rows": 0.021, "columns": 0.018, "gini_rows": 0.11, "gini_columns": 0.09}

    def by_matrix(strong: list[str]) -> dict[int, dict[str, float]]:
        return {
            layer: {
                kind: float(draw.uniform(0.2, 0.6) if kind in strong else draw.uniform(0.02, 0.06))
                for kind in MATRICES
            }
            for layer in range(layers)
        }

    def concentration() -> Concentration:
        shares = {name: by_matrix(WRITES if "rows" in name else READS) for name in FIGURES}
        return Concentration(**shares, mean=even, even=even)

    fullest = {code: float(draw.uniform(0.5, 1.5)) for code in codes}
    by_region = {"nothing": before, "fullest": risen(before, fullest)}
    for seed in SEEDS:
        rise = {code: float(draw.uniform(0.01, 0.1)) for code in codes}
        by_region[f"random {seed}"] = risen(before, rise)
    regions = ["core", *codes[:2]]
    return Dimensions(
        top=0.01,
        matrices=MATRICES,
        directions=dict.fromkeys(WRITES, "rows") | dict.fromkeys(READS, "columns"),
        layers=list(range(layers)),
        regions={name: concentration() for name in regions},
        even=even,
        recurring=[
            Recurring(dimension, 80 - 3 * n, MATRICES[: 7 - n], list(range(layers)), regions)
            for n, dimension in enumerate((2100, 14, 7))
        ],
        possible=84,
        expected=0.84,
        ablated=ZeroedDimensions(
            40_000,
            mean_effect(by_region, ["fullest"]),
            [mean_effect(by_region, [f"random {seed}"]) for seed in SEEDS],
        ),
    )


def _perturbations(
    draw: np.random.Generator, before: LanguageFigures, change: str, by: float | None, most: float
) -> Perturbations:
    def damages(largest: float, scored: bool) -> list[Damage]:
        rows = []
        for n in range(10):
            rise = {code: largest / (n + 1) ** 2 * float(draw.uniform(0.5, 1.5)) for code in before}
            name = f"model.layers.{n % 4}.input_layernorm.weight"
            after = risen(before, rise)
            rows.append(
                Damage(
                    what=f"{name}[{2100 + n}]",
                    name=name,
                    index=[2100 + n],
                    dimension=None if by is None else 2100 + n,
                    entries=1,
                    value=0.0123,
                    score=0.05 / (n + 1) if scored else None,
                    mean_rise=sum(rise.values()) / len(rise),
                    rise=rise,
                    perplexity={code: one.perplexity for code, one in after.items()},
                )
            )
        return sorted(rows, key=lambda damage: -damage.mean_rise)

    perplexities = {code: one.perplexity for code, one in before.items()}
    return Perturbations(change, by, perplexities, damages(most, True), damages(1e-4, False))


def _overlap(
    draw: np.random.Generator,
    names: list[str],
    layers: int,
    least: float = 0.1,
    vary: bool = False,
) -> Overlap:
    half = np.triu(draw.uniform(least, least + 0.3, (len(names),) * 2), 1)
    shares = draw.uniform(0.004, 0.03, (len(names), layers + len(MATRICES)))
    if not vary:
        shares[:] = 0.01
    return Overlap(
        names=names,
        jaccard=(half + half.T + np.eye(len(names))).tolist(),
        expected=np.full((len(names),) * 2, 0.005).tolist(),
        by_layer={
            name: {layer: float(shares[n, layer]) for layer in range(layers)}
            for n, name in enumerate(names)
        },
        by_kind={
            name: {kind: float(shares[n, layers + k]) for k, kind in enumerate(MATRICES)}
            for n, name in enumerate(names)
        },
    )
