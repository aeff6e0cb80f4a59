"""Results as the quickstart leaves them: sizes as measured on small bases, values made up."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for helpers beside the tests

from made_runs import evaluation, figures

CODES = "ar cs da de el en es fa fi fr hu id it ja ko ml ms nl no pl pt ro ru sv sw ta tr uk vi zh"
MATRICES = [
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]


def make_results(
    languages: list[str] | None = None, layers: int = 4, target: str | None = None
) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    codes = languages or CODES.split()
    target = target or codes[-1]
    level = {code: float(draw.uniform(1.4, 2.6)) for code in codes}
    base = {code: figures(value) for code, value in level.items()}
    as_json = {code: of_base.to_dict() for code, of_base in base.items()}
    rise = {
        "core": {code: float(draw.uniform(0.2, 0.6)) for code in codes},
        "random": {code: float(draw.normal(0.002, 0.0008)) for code in codes},
        "bottom": {code: float(draw.normal(0, 1e-6)) for code in codes},
    }
    ablation = {"nothing": as_json} | {
        name: {code: figures(level[code] + by[code]).to_dict() for code in codes}
        for name, by in rise.items()
    }
    cost = {code: float(draw.uniform(0.02, 0.25)) for code in codes}
    runs = {}
    for name, factor in (("core frozen", 0.95), ("plain", 1.0)):
        steps = []
        for step in range(0, 61, 10):
            share = factor * (step / 60) ** 0.7
            now = {
                code: figures(
                    level[code]
                    + share * (-0.9 if code == target else cost[code] * (1 + draw.normal(0, 0.03)))
                )
                for code in codes
            }
            steps.append(evaluation(step, now if step else base, base, target).to_dict())
        moved = 0 if name == "core frozen" else 17_681
        runs[name] = {
            "target": target,
            "evaluations": steps,
            "verify": {"checked": 17_695, "moved": moved, "changed_elsewhere": 4_111_023},
            "final_loss": 3.2517 if moved else 3.2581,
            "model": name.replace(" ", "-"),
        }
    region = {
        "entries": 17_695,
        "share": 0.0043,
        "file": "core.safetensors",
        "layers": list(range(layers)),
        "matrices": MATRICES,
        "even": {"rows": 0.083, "columns": 0.071},
    }
    for direction, strong in (("rows", "od"), ("columns", "qkvgu")):
        region[direction] = {
            str(layer): {
                matrix: float(
                    draw.uniform(0.3, 0.6)
                    if matrix.split(".")[1][0] in strong
                    else draw.uniform(0.08, 0.2)
                )
                for matrix in MATRICES
            }
            for layer in range(layers)
        }
    spread = np.concatenate([draw.choice(192 * 512, 500, replace=False)])
    full = draw.choice([7, 40, 41, 130], 480) * 512 + draw.integers(0, 512, 480)
    flat = np.unique(np.concatenate([spread, full]))
    region["picture"] = {
        "name": "model.layers.1.mlp.down_proj.weight",
        "shape": [192, 512],
        "rows": (flat // 512).tolist(),
        "columns": (flat % 512).tolist(),
    }
    return {
        "model": {
            "name": "base-30",
            "parameters": 4_128_960,
            "layers": layers,
            "built_in": True,
            "folder": "my bases/base",
        },
        "target": target,
        "languages": codes,
        "score_languages": codes[: min(6, len(codes))],
        "settings": {
            "ratio": 0.01,
            "max_steps": 60,
            "learning_rate": 1e-3,
            "sequence_length": 128,
            "seed": 0,
        },
        "region": region,
        "ablation": ablation,
        "runs": runs,
        "observations": [
            {
                "claim": "Zeroing the core costs every language far more than zeroing as many "
                "random weights.",
                "holds": True,
                "seen": "0.41 bits per byte on average against 0.002; larger in 30 of 30.",
            },
            {
                "claim": "With the core frozen, the other languages are forgotten less at the same "
                "gain of the target.",
                "holds": False,
                "seen": "5% less forgotten on average, but the target gained 5% less, too.",
            },
            {
                "claim": "The frozen weights are the same, bit for bit, in the exported model.",
                "holds": True,
                "seen": "17,695 checked, 0 differ.",
            },
        ],
        "seconds": {"total": 252.4, "score": 31.2, "ablate": 8.14, "train core frozen": 70.9},
    }


@pytest.fixture(scope="session")
def make() -> Callable[..., dict[str, Any]]:
    """Makes results for any languages and number of layers."""
    return make_results


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()
