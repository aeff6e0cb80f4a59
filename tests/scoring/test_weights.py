"""Single weights: the highest scores by a plain sort, and the region that they make."""

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Region
from freezetrain.scoring import Scores
from freezetrain.scoring.weights import Weight, region_of, top_weights


def made_scores():
    torch.manual_seed(0)
    tensors = {
        "b.weight": torch.randint(0, 6, (3, 4)).float(),  # many ties
        "a.weight": torch.randint(0, 6, (5,)).float(),
        "n.weight": torch.tensor([9.0, 5.0]),
    }
    return Scores(tensors, made={"norms": ["n.weight"]})


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("count", [1, 4, 7, 19, 100])
def test_against_a_plain_sort(count, norms):
    scores = made_scores()
    every = [
        (-scores[name][tuple(place)].item(), name, tuple(place.tolist()))
        for name in scores
        for place in torch.ones(scores[name].shape).nonzero()
        if norms or name != "n.weight"
    ]
    expected = [(name, index, -minus) for minus, name, index in sorted(every)[:count]]
    top = top_weights(scores, count, norms)
    assert [(weight.name, weight.index, score) for weight, score in top] == expected


def test_no_weight_is_refused():
    with pytest.raises(UserError, match="1 or more, got 0"):
        top_weights(made_scores(), 0)


def test_region_of_weights(model):
    name = "model.layers.1.mlp.up_proj.weight"
    norm = "model.layers.0.input_layernorm.weight"
    weights = [Weight(name, (3, 5)), Weight(norm, (7,)), Weight(name, (0, 1))]
    region = region_of(model, weights)
    mask = torch.zeros(24, 16, dtype=torch.bool)
    mask[3, 5] = mask[0, 1] = True
    assert region == Region.from_masks({name: mask, norm: torch.arange(16) == 7})
    assert str(weights[0]) == f"{name}[3, 5]"


@pytest.mark.parametrize(
    ("name", "index", "sentence"),
    [
        ("model.layers.1.mlp.up_prj.weight", (0, 0), "no parameter .*did you mean"),
        ("model.layers.1.mlp.up_proj.weight", (0,), "within the shape .*got .0."),
        ("model.layers.1.mlp.up_proj.weight", (24, 0), r"within the shape \[24, 16\]"),
        ("model.layers.1.mlp.up_proj.weight", (0, -1), "counted from 0"),
    ],
)
def test_refusals(model, name, index, sentence):
    with pytest.raises(UserError, match=sentence):
        region_of(model, [Weight(name, index)])


def test_a_weight_named_twice_is_refused(model):
    twice = [Weight("lm_head.weight", (0, 0))] * 2
    with pytest.raises(UserError, match="must not repeat"):
        region_of(model, twice)
