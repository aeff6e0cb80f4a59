"""Results of the quickstart, made up: sizes as measured on small bases."""

import math

import numpy as np
from made_runs import CODES, evaluation, figures

from freezetrain.analysis.dimensions import MatrixPicture
from freezetrain.evaluation import History
from freezetrain.quickstart.observations import Adaptation, Observation, Variant, Verified
from freezetrain.quickstart.page import CoreRegion, ModelFacts, QuickstartResults
from freezetrain.report.run import Run

MATRICES = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


def adaptation(
    name: str, *points: tuple[float, float], moved: int = 0, checked: int = 8
) -> Adaptation:
    """A run whose evaluations, 10 steps apart, have these (gain, mean loss), nats per byte."""
    base = {code: figures(2.0) for code in ("de", "en", "zh")}
    steps = []
    for number, (gain, loss) in enumerate(points):
        rises = {"de": loss, "en": loss, "zh": -gain}
        now = {code: figures(2.0 + rise / math.log(2)) for code, rise in rises.items()}
        steps.append(evaluation(10 * number, now if number else base, base, "zh"))
    run = Run(name, History("zh", steps))
    return Adaptation(run, 0, 3.25, Verified(checked, moved, 1000), f"{name}/model")


def make_quickstart(
    languages: list[str] | None = None, layers: int = 4, target: str | None = None
) -> QuickstartResults:
    draw = np.random.default_rng(3)
    codes = languages or CODES
    target = target or codes[-1]
    level = {code: float(draw.uniform(1.4, 2.6)) for code in codes}
    base = {code: figures(value) for code, value in level.items()}
    rise = {
        "core": {code: float(draw.uniform(0.2, 0.6)) for code in codes},
        "random": {code: float(draw.normal(0.002, 0.0008)) for code in codes},
        "bottom": {code: float(draw.normal(0, 1e-6)) for code in codes},
    }
    ablation = {"nothing": base} | {
        name: {code: figures(level[code] + by[code]) for code in codes} for name, by in rise.items()
    }
    cost = {code: float(draw.uniform(0.02, 0.25)) for code in codes}
    variants = []
    for name, factor in (("core frozen", 0.95), ("plain", 1.0)):
        steps = []
        for step in range(0, 61, 10):
            share = factor * (step / 60) ** 0.7
            now = {
                code: figures(level[code] + share * (-0.9 if code == target else cost[code]))
                for code in codes
            }
            steps.append(evaluation(step, now if step else base, base, target))
        run = Run(name, History(target, steps))
        moved = 0 if name == "core frozen" else 17_681
        verified = Verified(17_695, moved, 4_111_023)
        model = f"{name.replace(' ', '-')}/model"
        variants.append(Variant(name, [Adaptation(run, 0, 3.2581, verified, model)]))

    def shares(strong: str) -> dict[int, dict[str, float]]:
        return {
            layer: {
                matrix: float(draw.uniform(0.3, 0.6) if matrix.split(".")[1][0] in strong else 0.1)
                for matrix in MATRICES
            }
            for layer in range(layers)
        }

    flat = np.unique(draw.choice(192 * 512, 980, replace=False))
    return QuickstartResults(
        model=ModelFacts("base-30", 4_128_960, layers, True, "my bases/base"),
        target=target,
        languages=codes,
        score_languages=codes[:6],
        settings={"ratio": 0.01, "max_steps": 60, "learning_rate": 1e-3, "seeds": 1},
        region=CoreRegion(
            entries=17_695,
            share=0.0043,
            file="core.safetensors",
            layers=list(range(layers)),
            matrices=MATRICES,
            even={"rows": 0.083, "columns": 0.071},
            rows=shares("od"),
            columns=shares("qkvgu"),
            picture=MatrixPicture(
                "model.layers.1.mlp.down_proj",
                [192, 512],
                (flat // 512).tolist(),
                (flat % 512).tolist(),
            ),
        ),
        ablation=ablation,
        variants=variants,
        seconds={"total": 252.4, "score": 31.2},
        left_out=["1 of 3 runs of a variant"],
        expected_seconds=260.0,
        observations=[
            Observation("Zeroing the core costs more than random weights", True, "0.41, 0.002"),
            Observation("With the core frozen less is forgotten", False, "5% less, & gained less"),
        ],
    )
