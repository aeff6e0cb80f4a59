"""Figures and sums of documents, by hand and through JSON."""

import json
import math

import numpy as np
import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import DocumentSums, Figures
from freezetrain.evaluation.ratio import standard_error


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


def sums(nll=(1.5, 2.0, 4.0), tokens=(3, 1, 4), size=(10, 2, 8), correct=(1, 1, 0)):
    return DocumentSums(*(np.array(values) for values in (nll, tokens, size, correct)))


def test_figures_are_ratios_of_sums():
    found = sums().figures()
    assert (found.nll, found.tokens, found.bytes) == (7.5, 8, 20)
    assert (found.correct, found.documents, found.accuracy) == (2, 3, 0.25)
    assert found.nll_per_byte == 0.375
    assert found.byte_perplexity == math.exp(0.375)
    errors = found.standard_errors
    assert errors.nll_per_byte == standard_error([1.5, 2.0, 4.0], [10, 2, 8])
    assert errors.nll_per_token == standard_error([1.5, 2.0, 4.0], [3, 1, 4])
    assert errors.accuracy == standard_error([1, 1, 0], [3, 1, 4])
    data = found.to_dict()["standard_errors"]
    assert data["bits_per_byte"] == pytest.approx(errors.nll_per_byte / math.log(2))
    assert data["perplexity"] == pytest.approx(math.exp(7.5 / 8) * errors.nll_per_token)


def test_a_subsample():
    found = sums().take([2, 0])
    assert found.to_dict() == {
        "nll": [4.0, 1.5], "tokens": [4, 3], "bytes": [8, 10], "correct": [0, 1]
    }  # fmt: skip
    assert len(found) == 2
    assert found.take([1]).figures().standard_errors is None


def test_json_gives_it_back():
    found = DocumentSums.from_dict(json.loads(json.dumps(sums().to_dict())))
    assert found.figures() == sums().figures()
    assert found.nll.dtype == np.float64
    assert found.tokens.dtype == np.int64


def test_the_sum_does_not_depend_on_the_order_of_documents():
    ones = np.ones(3, int)
    for nll in ([1e16, 1.0, 1.0], [1.0, 1.0, 1e16]):
        assert DocumentSums(np.array(nll), ones, ones, ones).figures().nll == 1e16 + 2


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="a number for each document in every array"):
        sums(tokens=(1, 2))
    with pytest.raises(UserError, match="a number for each document"):
        sums((), (), (), ())
    with pytest.raises(CheckError, match="not a finite number"):
        sums(nll=(math.nan, 1.0, 1.0)).figures()
