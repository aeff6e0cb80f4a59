import json
import math

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import Figures, forgetting

BEFORE = {
    "en": Figures(nll=100.0, tokens=50, bytes=200),
    "de": Figures(nll=300.0, tokens=100, bytes=400),
    "sw": Figures(nll=500.0, tokens=100, bytes=250),
}
AFTER = {
    "en": Figures(nll=120.0, tokens=50, bytes=200),  # +0.1 nats a byte, +0.4 a token
    "de": Figures(nll=280.0, tokens=100, bytes=400),  # −0.05 nats a byte, −0.2 a token
    "sw": Figures(nll=300.0, tokens=100, bytes=250),  # −0.8 nats a byte
}


def test_hand_computed():
    result = forgetting(BEFORE, AFTER, target="sw")
    assert list(result.languages) == ["en", "de"]
    assert result.languages["en"].delta_nll_per_byte == pytest.approx(0.1)
    assert result.languages["en"].perplexity_ratio == pytest.approx(math.exp(0.4))
    assert result.languages["de"].delta_nll_per_byte == pytest.approx(-0.05)
    assert result.languages["de"].perplexity_ratio == pytest.approx(math.exp(-0.2))
    assert result.mean == pytest.approx(0.025)
    assert result.backward_transfer == pytest.approx(-0.025)
    assert result.worst == ("en", pytest.approx(0.1))
    assert result.target_gain == pytest.approx(0.8)


def test_the_ratio_is_that_of_the_perplexities():
    result = forgetting(BEFORE, AFTER)
    for language, change in result.languages.items():
        ratio = AFTER[language].perplexity / BEFORE[language].perplexity
        assert change.perplexity_ratio == pytest.approx(ratio, rel=1e-12)


def test_without_a_target_all_languages_are_held_out():
    result = forgetting(BEFORE, AFTER)
    assert result.target is None
    assert result.target_gain is None
    assert result.mean == pytest.approx((0.1 - 0.05 - 0.8) / 3)


def test_the_worst_is_named_even_where_nothing_was_forgotten():
    held_out = ("de", "sw")
    result = forgetting({k: BEFORE[k] for k in held_out}, {k: AFTER[k] for k in held_out})
    assert result.worst == ("de", pytest.approx(-0.05))


def test_a_model_against_itself_forgot_nothing():
    result = forgetting(BEFORE, BEFORE, target="sw")
    assert result.mean == 0.0
    assert result.target_gain == 0.0
    assert math.copysign(1.0, result.backward_transfer) == 1.0, "not −0.0"
    assert {change.perplexity_ratio for change in result.languages.values()} == {1.0}


def test_other_tokens_leave_the_figures_per_byte_and_no_ratio():
    after = {**AFTER, "en": Figures(nll=120.0, tokens=40, bytes=200)}
    change = forgetting(BEFORE, after, target="sw").languages["en"]
    assert change.delta_nll_per_byte == pytest.approx(0.1)
    assert change.perplexity_ratio is None


def test_json():
    after = {**AFTER, "en": Figures(nll=1e6, tokens=50, bytes=200)}
    data = json.loads(json.dumps(forgetting(BEFORE, after, "sw").to_dict(), allow_nan=False))
    assert data["worst"] == {"language": "en", "delta_nll_per_byte": (1e6 - 100.0) / 200}
    assert data["languages"]["en"]["perplexity_ratio"] is None  # infinite
    assert data["languages"]["de"]["perplexity_ratio"] == pytest.approx(math.exp(-0.2))
    assert data["target"] == "sw"
    assert data["target_gain"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("before", "after", "target", "message"),
    [
        (BEFORE, {"en": AFTER["en"]}, None, "only one of the two has de, sw"),
        (BEFORE, AFTER, "swa", "target language 'swa' is not among .* mean 'sw'"),
        ({"sw": BEFORE["sw"]}, {"sw": AFTER["sw"]}, "sw", "at least one held-out language"),
        ({}, {}, None, "at least one held-out language"),
        (BEFORE, {**AFTER, "en": Figures(1.0, 50, 201)}, None, "200 and 201 bytes of 'en'"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, target, message):
    with pytest.raises(UserError, match=message):
        forgetting(before, after, target)
