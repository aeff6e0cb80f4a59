"""The gradient of an embedding that is tied to the head, against autograd's own, in fp64."""

from contextlib import nullcontext

import pytest
import torch
from called_operators import Called
from heads import VOCABULARY
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from freezetrain.head.find import find_head
from freezetrain.head.inside import inside, joined
from freezetrain.head.loss import LabelLoss, Term, head_loss
from freezetrain.head.tied import shared_gradient

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 3,
}


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64)


def backward(model, passes, sharing=True):
    head = find_head(model)
    for seed in range(passes):
        ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))
        ids[0, 2:4] = SIZES["pad_token_id"]

        with shared_gradient(model, head) if sharing else nullcontext() as shared:
            terms = [Term(LabelLoss(ids.flatten()))]

            def compute(hidden, terms=terms, shared=shared):
                return head_loss(hidden, head, terms, shared)[0]

            with inside(head, compute) as losses:
                output = model(input_ids=ids, use_cache=False)
        joined(losses[0], output).backward()
        assert shared is None or shared.gradient is None, "handed on"
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("config", [LlamaConfig, Gemma3TextConfig])
def test_gradients_are_autograds_own_without_one_of_the_whole_embedding(config, passes):
    tied = config(**SIZES, tie_word_embeddings=True)
    expected = backward(model_of(tied), passes, sharing=False)
    model = model_of(tied)
    find_head(model)  # which looks at what the model makes of known values
    with Called() as called:
        mine = backward(model, passes)
    assert "embedding_dense_backward" not in called.names
    assert called.made[VOCABULARY * SIZES["hidden_size"]] == ["zeros_like"] * passes
    assert mine.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_embedding_of_its_own_and_one_that_is_not_trained_are_left_alone(frozen):
    expected, mine = (model_of(LlamaConfig(**SIZES, tie_word_embeddings=frozen)) for _ in range(2))
    for model in (expected, mine):
        model.get_input_embeddings().weight.requires_grad_(not frozen)
    theirs = backward(expected, 1, sharing=False)
    for name, gradient in backward(mine, 1).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-12, atol=1e-14)
