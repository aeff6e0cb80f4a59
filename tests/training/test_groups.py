"""Groups of parameters: weight decay, learning rates by pattern and by block, matrices for Muon."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization
from freezetrain.training.groups import learning_rate_factors, parameter_groups

SETTINGS = Optimization()


def factors(model, **settings):
    """Name of each parameter -> factor of its learning rate."""
    named = dict(model.named_parameters())
    return learning_rate_factors(model, named, Optimization(**settings))


def test_only_matrices_outside_embeddings_decay(model):
    decayed, spared = parameter_groups(model, SETTINGS)
    names = {id(p): n for n, p in model.named_parameters()}

    def of(group):
        return {names[id(parameter)] for parameter in group.parameters}

    assert decayed.decays
    assert not spared.decays
    assert of(spared) == {n for n in names.values() if "norm" in n or "embed" in n}
    assert of(decayed) | of(spared) == set(names.values())


def test_tied_head_does_not_decay_with_its_embedding(make_model):
    tied = make_model(tie_word_embeddings=True)
    decayed, _ = parameter_groups(tied, SETTINGS)
    assert all(p is not tied.lm_head.weight for p in decayed.parameters)


def test_constant_parameters_are_left_out():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    (group,) = parameter_groups(layer, SETTINGS)
    assert group.parameters == [layer.bias]


def test_groups_of_partitioned_parameters_are_those_of_the_whole(make_model):
    # ZeRO-3 leaves an empty vector of each parameter, with the shape beside it.
    whole, partitioned = make_model(), make_model()
    for parameter in partitioned.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    names = [{id(p): n for n, p in m.named_parameters()} for m in (whole, partitioned)]
    of_whole, of_partitioned = (
        [[known[id(p)] for p in group.parameters] for group in parameter_groups(m, SETTINGS)]
        for m, known in zip((whole, partitioned), names, strict=True)
    )
    assert of_partitioned == of_whole
    assert all(len(group) > 1 for group in of_whole)


def test_groups_of_dtensors_are_those_of_the_whole(tmp_path, make_model):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = make_model()
        sizes = [len(group.parameters) for group in parameter_groups(model, SETTINGS)]
        fully_shard(model, mesh=mesh)
        groups = parameter_groups(model, SETTINGS)
        assert all(isinstance(p, DTensor) for group in groups for p in group.parameters)
        assert [len(group.parameters) for group in groups] == sizes
    finally:
        destroy_process_group()


def test_rates_fall_from_block_to_block_before_the_head(model):
    found = factors(model, layer_decay=0.5)
    assert found.keys() == dict(model.named_parameters()).keys()
    powers = {"model.embed_tokens": 3, "model.layers.0": 2, "model.layers.1": 1}
    for name, factor in found.items():
        power = next((p for start, p in powers.items() if name.startswith(start)), 0)
        assert factor == 0.5**power, name


def test_rates_by_block_where_names_are_others_and_the_head_is_tied():
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2)
    found = factors(GPT2LMHeadModel(config), layer_decay=0.1)
    assert found["transformer.wte.weight"] == found["transformer.wpe.weight"] == 0.1**4
    assert found["transformer.h.0.attn.c_attn.weight"] == 0.1**3
    assert found["transformer.h.2.ln_1.bias"] == 0.1
    assert found["transformer.ln_f.weight"] == 1
    assert "lm_head.weight" not in found


def test_the_first_pattern_that_fits_counts_and_not_the_block(model):
    patterns = {"*.0.*q_proj*": 3.0, "*q_proj*": 0.5, "lm_head.weight": 0.25}
    found = factors(model, learning_rate_factors=patterns, layer_decay=0.5)
    assert found["model.layers.0.self_attn.q_proj.weight"] == 3.0
    assert found["model.layers.1.self_attn.q_proj.weight"] == 0.5
    assert found["lm_head.weight"] == 0.25
    assert found["model.layers.0.self_attn.k_proj.weight"] == 0.25
    swapped = factors(model, learning_rate_factors=dict(reversed(list(patterns.items())[1:])))
    assert swapped["model.layers.0.self_attn.q_proj.weight"] == 0.5


@pytest.mark.parametrize(
    ("patterns", "complaint"),
    [
        (
            ["*embed_token.*"],
            r"'\*embed_token.\*', which fits the name of no .* mean 'embed_tokens'",
        ),
        (
            ["model.layers.0.self_attn.q_proj"],
            r"did you mean 'model.layers.0.self_attn.q_proj.weig",
        ),
        (["lm_head"], r"did you mean 'lm_head.weight'\?"),
        (["*", "lm_head*"], r"'lm_head\*', whose parameters, first 'lm_head.weight', all fit a"),
    ],
)
def test_patterns_that_do_nothing_are_refused(model, patterns, complaint):
    with pytest.raises(UserError, match=complaint):
        factors(model, learning_rate_factors=dict.fromkeys(patterns, 0.5))


def test_patterns_are_of_what_is_trained(model):
    model.lm_head.weight.requires_grad_(False)
    settings = Optimization(learning_rate_factors={"lm_head*": 0.5})
    with pytest.raises(UserError, match="fits the name of no trained parameter"):
        parameter_groups(model, settings)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_parameter_is_in_one_group_and_the_recipe_s_rate_comes_first(model, optimizer):
    settings = Optimization(
        optimizer=optimizer, learning_rate_factors={"*q_proj*": 2.0, "*norm*": 0.5}, layer_decay=0.5
    )
    groups = parameter_groups(model, settings)
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert len(set(groups)) == len(groups)
    assert [group.factor for group in groups][:2] == [1, 2]
    rates = [group.factor for group in groups[1:]]
    assert rates == sorted(rates, reverse=True)


def test_muon_has_matrices_of_the_blocks(model):
    groups = parameter_groups(model, Optimization(optimizer="muon"))
    names = {id(p): n for n, p in model.named_parameters()}
    inner = {names[id(p)] for group in groups if group.inner for p in group.parameters}
    assert inner == {n for n in names.values() if "layers" in n and "norm" not in n}
    assert groups[0].inner
    assert not any(group.inner for group in parameter_groups(model, SETTINGS))
