"""Models that are called in other ways than those of transformers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, ForgettingWatch, evaluate

VOCABULARY = 17
DOCUMENTS = {"en": [Document([1, 5, 2, 9, 3], 9)], "de": [Document([3, 3, 4], 5)]}


class LM(nn.Module):
    """Called with ``input_ids``; gives plain logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def logits(self, ids):
        return self.head(self.embed(ids))

    def forward(self, input_ids):
        return self.logits(input_ids)


class AsTransformers(LM):
    def forward(self, input_ids, attention_mask=None, use_cache=True):
        assert not use_cache
        return SimpleNamespace(logits=self.logits(input_ids))


class Litgpt(LM):
    """As litgpt's GPT: ``idx``, and the length in the configuration's ``block_size``."""

    config = SimpleNamespace(block_size=64)

    def forward(self, idx, input_pos=None):
        return self.logits(idx)


class Torchtune(LM):
    def forward(self, tokens, *, mask=None, input_pos=None):
        return self.logits(tokens)


class Nanochat(LM):
    """As nanochat's GPT: with targets it gives a loss."""

    def forward(self, idx, targets=None, loss_reduction="mean"):
        assert targets is None
        return self.logits(idx)


def expected():
    return evaluate(AsTransformers(), DOCUMENTS, max_length=8)


def test_plain_logits_are_taken():
    assert evaluate(LM(), DOCUMENTS, max_length=8) == expected()


@pytest.mark.parametrize("kind", [Litgpt, Torchtune, Nanochat])
def test_a_model_of_another_signature(kind):
    with pytest.raises(UserError, match=rf"{kind.__name__} takes .*, not input_ids; give forward="):
        evaluate(kind(), DOCUMENTS, max_length=8)

    def forward(model, ids):
        return model(ids)

    assert evaluate(kind(), DOCUMENTS, max_length=8, forward=forward) == expected()
    watch = ForgettingWatch(DOCUMENTS, max_length=8, table=False, forward=forward)
    assert watch.start(kind()).figures == expected()


def test_the_length_stands_in_the_configuration():
    with pytest.raises(UserError, match="has 64 positions"):
        evaluate(Litgpt(), DOCUMENTS, max_length=65, forward=lambda model, ids: model(ids))


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda model, ids: model(ids).mean(), r"got \[\]"),
        (lambda model, ids: (model(ids), None), "got tuple"),
        (lambda model, ids: SimpleNamespace(logits=None), "got NoneType"),
        (lambda model, ids: model(ids)[0], r"got \[4, 17\]"),
    ],
)
def test_what_is_no_logits_is_refused(forward, got):
    with pytest.raises(UserError, match=rf"expected logits of shape .*{got}; give forward="):
        evaluate(LM(), DOCUMENTS, max_length=8, forward=forward)
