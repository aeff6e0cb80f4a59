import json
import math

import numpy as np
import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import DocumentSums
from freezetrain.evaluation.ratio import standard_error


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
