import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from freezetrain.recipe import Optimization
from freezetrain.training.optimizer import build_optimizer, learning_rate_factor, parameter_groups


def test_only_matrices_outside_embeddings_decay(model):
    decayed, spared = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}

    def of(group):
        return {names[id(parameter)] for parameter in group["params"]}

    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert of(spared) == {n for n in names.values() if "norm" in n or "embed" in n}
    assert of(decayed) | of(spared) == set(names.values())


def test_tied_head_does_not_decay_with_its_embedding(make_model):
    tied = make_model(tie_word_embeddings=True)
    decayed, _ = parameter_groups(tied, 0.1)
    assert all(p is not tied.lm_head.weight for p in decayed["params"])


def test_constant_parameters_are_left_out():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    (group,) = parameter_groups(layer, 0.1)
    assert group["params"] == [layer.bias]


def test_schedule_against_transformers():
    settings = Optimization(steps=50, warmup_steps=10)
    reference_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_cosine_schedule_with_warmup(reference_optimizer, 10, 50)
    theirs = []
    for _ in range(50):
        theirs.append(reference.get_last_lr()[0])
        reference_optimizer.step()
        reference.step()
    ours = [learning_rate_factor(step, settings) for step in range(50)]
    # Theirs warms up from 0, a step that does nothing; ours is one tick ahead there.
    assert ours == pytest.approx([*theirs[1:11], *theirs[10:]])
    assert min(ours) > 0


def test_schedule_ends_at_the_ratio_and_never_divides_by_zero():
    settings = Optimization(steps=20, warmup_steps=0, min_learning_rate_ratio=0.1)
    assert learning_rate_factor(20, settings) == pytest.approx(0.1)
    assert learning_rate_factor(0, Optimization(steps=1, warmup_steps=100)) == 1.0


def test_optimizer_takes_the_recipe(model):
    settings = Optimization(learning_rate=3e-4, beta1=0.8, beta2=0.9, warmup_steps=2)
    optimizer, _ = build_optimizer(model, settings)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.5e-4)
