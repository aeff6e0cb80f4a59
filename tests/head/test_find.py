"""Which heads are found, and which models are left to give their logits whole."""

import warnings

import pytest
import torch
from heads import HEADS, model_with
from torch import nn

from freezetrain.head.find import Head, find_head

WHAT_FOLLOWS = {"gemma2": (1.0, 0.5), "granite": (1 / 8, None), "cohere": (0.25, None)}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_found_with_what_the_model_does_after_it(name):
    model = model_with(name)
    head = find_head(model)
    assert head.module is model.get_output_embeddings()
    assert (head.scale, head.cap) == WHAT_FOLLOWS.get(name, (1.0, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", *WHAT_FOLLOWS])
def test_it_is_found_in_any_precision(name, dtype):
    head = find_head(model_with(name, dtype))
    assert (head.scale, head.cap) == WHAT_FOLLOWS.get(name, (1.0, None))


def test_looking_leaves_modes_and_random_numbers_as_they_were():
    model = model_with("gpt2").train()
    model.transformer.h[0].eval()
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    find_head(model)
    assert [m.training for m in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    head = model.get_output_embeddings()
    assert not head._forward_hooks
    assert "forward" not in vars(head)


def test_a_model_is_looked_at_once_and_again_when_its_head_is_another():
    model, calls = model_with("llama"), []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    first = find_head(model)
    assert find_head(model) is first
    assert len(calls) == 1
    model.lm_head = nn.Linear(16, 61, bias=False).double()
    assert find_head(model).module is model.lm_head


class Doubled(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def with_a_head_of_its_own(model):
    model.lm_head = Doubled(16, 61, bias=False).double()


def with_a_forward_of_its_own(model):
    model.lm_head.forward = lambda hidden: hidden @ model.lm_head.weight.T


def without_the_method(model):
    model.get_output_embeddings = None


@pytest.mark.parametrize(
    "change", [with_a_head_of_its_own, with_a_forward_of_its_own, without_the_method]
)
def test_a_layer_that_is_no_plain_linear_one_is_left_alone(change):
    model = model_with("llama")
    change(model)
    assert find_head(model) is None


def with_logits_that_follow_otherwise(model):
    def doubled(_, __, output):
        output.logits = output.logits * 2
        return output

    model.register_forward_hook(doubled)


def with_fewer_logits(model):
    def cut(_, __, output):
        output.logits = output.logits[..., :50]
        return output

    model.register_forward_hook(cut)


def with_a_head_called_twice(model):
    model.register_forward_hook(lambda *_: (model.lm_head(torch.zeros(1, 1, 16).double()), None)[1])


@pytest.mark.parametrize(
    "change", [with_logits_that_follow_otherwise, with_fewer_logits, with_a_head_called_twice]
)
def test_what_a_head_does_not_explain_is_said_once(change):
    model = model_with("llama")
    change(model)
    with pytest.warns(UserWarning, match="LlamaForCausalLM does more to its logits than"):
        assert find_head(model) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_head(model) is None


def test_weights_do_not_matter_also_where_they_are_not_finite():
    model = model_with("gemma2")
    model.lm_head.weight.data.fill_(torch.nan)
    assert find_head(model) == Head(model.lm_head, 1.0, 0.5)


def test_a_cap_that_the_configuration_names_and_the_model_does_not_use_is_not_believed():
    model = model_with("llama")
    model.config.final_logit_softcapping = 30.0
    model.config.logits_scaling = 8.0
    assert find_head(model) == Head(model.lm_head)
