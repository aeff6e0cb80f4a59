"""The gradient of an embedding that is tied to the head, against autograd's own, in fp64."""

import pytest
import torch
from called_operators import Called
from heads import VOCABULARY
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from freezetrain.head.find import find_head
from freezetrain.head.inside import inside, joined
from freezetrain.head.loss import label_loss
from freezetrain.head.tied import sparse_lookups

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


def backward(model, passes):
    head = find_head(model)
    for seed in range(passes):
        ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))
        ids[0, 2:4] = SIZES["pad_token_id"]

        def compute(hidden, labels=ids):
            return label_loss(hidden, head, labels)

        with inside(head, compute) as losses:
            output = model(input_ids=ids, use_cache=False)
        joined(losses[0], output).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("config", [LlamaConfig, Gemma3TextConfig])
def test_gradients_are_autograds_own_without_one_of_the_whole_embedding(config, passes):
    tied = config(**SIZES, tie_word_embeddings=True)
    expected = backward(model_of(tied), passes)
    model = model_of(tied)
    with Called() as called, sparse_lookups(model, find_head(model)):
        mine = backward(model, passes)
    assert "embedding_dense_backward" not in called.names
    assert not model.get_input_embeddings().sparse
    assert mine.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-12, atol=1e-14)


def test_an_embedding_of_its_own_keeps_a_dense_gradient():
    model = model_of(LlamaConfig(**SIZES, tie_word_embeddings=False))
    with sparse_lookups(model, find_head(model)):
        gradients = backward(model, 1)
    assert not any(gradient.is_sparse for gradient in gradients.values())
