"""Random scores: what is selected by them is an even draw of whole units."""

import pytest
import torch
from scored_models import build

from freezetrain.regions import block_parameters
from freezetrain.regions.base import base_of
from freezetrain.scoring import select
from freezetrain.scoring.without_text import random_scores

CONV = "transformer.h.0.mlp.c_fc.weight"  # [8, 32], stored as [in, out]


def test_the_same_for_a_seed_and_others_for_another_seed_or_name() -> None:
    model = build("llama")
    first, same, other = (random_scores(model, seed) for seed in (0, 0, 1))
    assert set(first) == set(block_parameters(model, norms=True))
    assert first.base == base_of(model)
    up, gate = (f"model.layers.0.mlp.{leaf}_proj.weight" for leaf in ("up", "gate"))
    assert torch.equal(first[up], same[up])
    assert torch.equal(first[up], first[up])
    assert not torch.equal(first[up], other[up])
    assert not torch.equal(first[up], first[gate])


@pytest.mark.parametrize(("unit", "dim"), [("row", 0), ("column", 1)])
def test_all_of_a_unit_share_a_draw_also_where_weights_are_transposed(unit: str, dim: int) -> None:
    scores = random_scores(build("gpt2"), 0, unit)
    values = scores[CONV]
    assert torch.equal(values, values.select(dim, 0).unsqueeze(dim).expand_as(values))
    assert len(values.select(dim, 0).unique()) == values.shape[1 - dim]
    assert scores["transformer.h.0.mlp.c_fc.bias"].unique().numel() == 32  # which has no such unit


@pytest.mark.exhaustive
def test_tensors_of_all_sizes_are_drawn_alike() -> None:
    """Matrices as often as biases, whose means of many draws would be further from 1/2."""
    model, seeds = build("gpt2"), 300
    drawn = dict.fromkeys(block_parameters(model), 0)
    for seed in range(seeds):
        scores = random_scores(model, seed, "tensor")
        region = select(scores, 2 / len(drawn), per="model", unit="tensor")
        for name, entries in region.items():
            assert entries.count in (0, entries.numel)
            drawn[name] += entries.count > 0
    assert sum(drawn.values()) == 2 * seeds
    expected = 2 * seeds / len(drawn)
    # Five standard deviations of a count.
    assert max(abs(count - expected) for count in drawn.values()) < 5 * expected**0.5
