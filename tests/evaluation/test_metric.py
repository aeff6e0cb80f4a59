import numpy as np
import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.evaluation import LanguageNLL

pytestmark = pytest.mark.filterwarnings("error")


def test_sums_over_updates_equal_numpy():
    random = np.random.default_rng(0)
    metric = LanguageNLL(["en", "de", "sw"])
    language = random.integers(0, 3, size=200)
    nll = random.uniform(1e-3, 1e6, size=200)
    tokens = random.integers(1, 1000, size=200)
    size = random.integers(0, 1000, size=200)
    for part in np.array_split(np.arange(200), 7):
        metric.update(*(torch.from_numpy(values[part]) for values in (language, nll, tokens, size)))
    for index, figures in enumerate(metric.figures().values()):
        mine = language == index
        assert figures.nll == pytest.approx(nll[mine].sum(), rel=1e-12)
        assert figures.tokens == tokens[mine].sum()
        assert figures.bytes == size[mine].sum()


def test_counts_past_the_precision_of_floats_are_exact():
    metric = LanguageNLL(["en"])
    for count in (2**53, 1):
        metric.update(*(torch.tensor([value]) for value in (0, 1.0, count, count)))
    assert metric.figures()["en"].tokens == 2**53 + 1
    assert metric.figures()["en"].bytes == 2**53 + 1


def test_reset_forgets_and_a_language_without_tokens_is_refused():
    metric = LanguageNLL(["en"])
    metric.update(*(torch.tensor([value]) for value in (0, 1.0, 1, 1)))
    metric.reset()
    metric.update(*(torch.zeros(0, dtype=torch.int64) for _ in range(4)))
    with pytest.raises(UserError, match="got 0 tokens"):
        metric.figures()
