"""Vocabulary regions: the rows of rare tokens, in every tensor that has one row a token."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions import fingerprint, vocabulary_region

COUNTS = torch.tensor([9, 0, 2, 3, 1, 0, 7, 3])
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def llama(tied: bool, rows: int = 8) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=rows,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=tied,
        )
    )


def rows_of(mask: Tensor) -> list[int]:
    assert torch.equal(mask.all(-1), mask.any(-1))  # rows are whole
    return mask.all(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize(("min_count", "rare"), [(1, [1, 5]), (2, [1, 4, 5]), (3, [1, 2, 4, 5])])
def test_takes_the_rows_of_rare_tokens_in_embedding_and_head(min_count: int, rare: list) -> None:
    model = llama(tied=False)
    region = vocabulary_region(model, COUNTS, min_count)
    assert {name: rows_of(mask) for name, mask in region.masks().items()} == {
        EMBED: rare,
        HEAD: rare,
    }
    assert region.nbytes == 2 * 4 * len(rare) or region.nbytes == 2 * 4  # rows, or bits if smaller
    assert region.base is not None
    assert region.base.fingerprint == fingerprint(model)
    assert region.made == {
        "operation": "vocabulary",
        "min_count": min_count,
        "rows": len(rare),
        "tokens": 25,
    }


def test_a_tied_head_appears_once_and_resolves_to_both() -> None:
    model = llama(tied=True)
    region = vocabulary_region(model, COUNTS, 1)
    assert region.names == [EMBED]
    (target,) = region.resolve(model)
    assert target.parameter is model.lm_head.weight
    assert rows_of(region.masks()[EMBED]) == [1, 5]


def test_padded_rows_count_as_never_seen() -> None:
    region = vocabulary_region(llama(tied=False, rows=11), COUNTS, 1)
    assert rows_of(region.masks()[HEAD]) == [1, 5, 8, 9, 10]


def test_the_bias_of_a_head_is_held_with_its_rows() -> None:
    config = transformers.GPTJConfig(
        vocab_size=8, n_embd=4, n_layer=1, n_head=1, rotary_dim=4, bos_token_id=0, eos_token_id=0
    )
    region = vocabulary_region(transformers.GPTJForCausalLM(config), COUNTS, 1)
    assert region.names == ["lm_head.bias", HEAD, "transformer.wte.weight"]
    assert region.indices("lm_head.bias").tolist() == [1, 5]


@pytest.mark.parametrize(
    ("counts", "min_count", "message"),
    [
        (
            torch.ones(9, dtype=torch.int64),
            1,
            r"at most the embedding's 8 rows, got torch.int64 \[9\]",
        ),
        (torch.ones(8), 1, r"got torch.float32 \[8\]"),
        (torch.ones(2, 4, dtype=torch.int64), 1, r"got torch.int64 \[2, 4\]"),
        (COUNTS, 0, "min_count of 1 or more.*min_count=0"),
        (COUNTS - 1, 1, "smallest count of -1"),
        (COUNTS + 5, 5, "the rarest has 5: raise min_count"),
    ],
)
def test_refuses_unusable_counts(counts: Tensor, min_count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary_region(llama(tied=False), counts, min_count)


def test_refuses_a_head_with_other_rows() -> None:
    model = llama(tied=False)
    model.set_output_embeddings(nn.Linear(4, 9))
    with pytest.raises(UserError, match=r"expected 8 rows, one a token, in 'lm_head.weight'"):
        vocabulary_region(model, COUNTS, 1)
