import json
import math

import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import Figures


@pytest.mark.parametrize("vocabulary", [2, 50, 152_064])
def test_a_uniform_model_has_the_vocabulary_as_perplexity(vocabulary):
    tokens = 37
    figures = Figures(nll=tokens * math.log(vocabulary), tokens=tokens, bytes=100)
    assert figures.perplexity == pytest.approx(vocabulary, rel=1e-12)
    assert figures.bits_per_byte == pytest.approx(tokens * math.log2(vocabulary) / 100, rel=1e-12)
    assert figures.nll_per_byte == pytest.approx(math.log(2) * figures.bits_per_byte, rel=1e-12)


def test_one_bit_a_byte():
    figures = Figures(nll=8 * math.log(2), tokens=2, bytes=8)
    assert figures.bits_per_byte == pytest.approx(1.0, rel=1e-15)
    assert figures.perplexity == pytest.approx(16.0, rel=1e-15)


def test_json_gives_the_sums_back_exactly():
    figures = Figures(nll=0.1 + 0.2, tokens=3, bytes=7)
    data = json.loads(json.dumps(figures.to_dict()))
    assert Figures.from_dict(data) == figures
    assert data["perplexity"] == figures.perplexity
    assert data["bits_per_byte"] == figures.bits_per_byte


def test_a_perplexity_past_the_float_range_is_infinite_and_absent_in_json():
    figures = Figures(nll=10_000.0, tokens=1, bytes=1)
    assert figures.perplexity == math.inf
    assert figures.to_dict()["perplexity"] is None


@pytest.mark.parametrize(("tokens", "size"), [(0, 5), (5, 0), (-1, 5)])
def test_no_tokens_or_no_bytes_are_refused(tokens, size):
    with pytest.raises(UserError, match=f"got {tokens} tokens and {size} bytes"):
        Figures(nll=1.0, tokens=tokens, bytes=size)


@pytest.mark.parametrize("nll", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(nll):
    with pytest.raises(CheckError, match="not a finite number"):
        Figures(nll=nll, tokens=1, bytes=1)
