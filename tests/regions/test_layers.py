"""Whole blocks against names written out by hand."""

import pytest
from scored_models import build

from freezetrain.errors import UserError
from freezetrain.regions import Region, layers_region


@pytest.mark.parametrize(
    ("first", "last", "patterns"),
    [
        (1, 0, ["transformer.h.0.attn.*", "transformer.h.0.mlp.*"]),
        (0, 1, ["transformer.h.1.attn.*", "transformer.h.1.mlp.*"]),
        (1, 1, ["transformer.h.*.attn.*", "transformer.h.*.mlp.*"]),
    ],
)
def test_first_and_last_blocks_with_their_biases(first: int, last: int, patterns: list) -> None:
    model = build("gpt2")
    assert layers_region(model, first, last) == Region.tensors(model, patterns)
    whole = [pattern.partition("attn")[0].partition("mlp")[0] + "*" for pattern in patterns]
    assert layers_region(model, first, last, norms=True) == Region.tensors(model, whole)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 0), (1, 2), (-1, 2)])
def test_refuses_blocks_that_are_not_there(first: int, last: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 2 decoder blocks in all"):
        layers_region(build("llama"), first, last)
