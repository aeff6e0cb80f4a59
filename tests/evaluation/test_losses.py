import json
import math
import zlib

import numpy as np
import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import DocumentSums, Figures, Forgetting, forgetting, forgetting_table
from freezetrain.evaluation.ratio import Resampled, bootstrap_ratios, interval, standard_error

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
        (BEFORE, {**AFTER, "en": Figures(1.0, 50, 201)}, None, "200 bytes and 201 bytes of 'en'"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, target, message):
    with pytest.raises(UserError, match=message):
        forgetting(before, after, target)


def by_document(seed, rises, count=40):
    """Sums of documents of which some are far harder than others, for base and adapted alike."""
    random = np.random.default_rng(seed)
    size = random.integers(100, 900, size=count)
    hard = size * random.uniform(0.5, 3.0, size=count)
    rise = size * random.normal(rises, 0.01, size=count)
    counts = (size // 4, size, size // 9)
    return DocumentSums(hard, *counts), DocumentSums(hard + rise, *counts)


def test_paired_differences_tell_what_two_standard_errors_do_not():
    before, after = by_document(0, 0.02)
    other, same = by_document(1, 0.0)
    change = forgetting({"en": before, "de": other}, {"en": after, "de": same}).languages
    apart = before.figures().standard_errors.nll_per_byte
    assert change["en"].delta_nll_per_byte < apart / 3, "unpaired, it would drown"
    assert change["en"].standard_error == pytest.approx(
        standard_error(after.nll - before.nll, before.bytes), rel=1e-12
    )
    low, high = change["en"].interval
    assert 0 < low < change["en"].delta_nll_per_byte < high
    assert high - low == pytest.approx(2 * 1.96 * change["en"].standard_error, rel=0.25)
    low, high = change["de"].interval
    assert low < 0 < high
    assert change["en"].relative == pytest.approx(
        after.figures().nll_per_byte / before.figures().nll_per_byte - 1
    )


def test_intervals_of_mean_and_gain():
    pairs = {"en": by_document(0, 0.02), "de": by_document(1, 0.05), "sw": by_document(2, -0.3)}
    found = forgetting(
        {name: before for name, (before, _) in pairs.items()},
        {name: after for name, (_, after) in pairs.items()},
        "sw",
    )
    drawn = []
    for name, (before, after) in pairs.items():
        change, sizes = after.nll - before.nll, before.bytes
        ratios = bootstrap_ratios(change, sizes, seed=zlib.crc32(name.encode()))
        # As a difference of two ratios, which rounding makes another than that of the difference.
        ratio = after.figures().nll_per_byte - before.figures().nll_per_byte
        assert ratio == pytest.approx(change.sum() / sizes.sum(), rel=1e-9)
        drawn.append(Resampled(ratio, 40, ratios))
    assert found.mean_interval == interval(drawn[:2])
    assert found.languages["en"].interval == interval(drawn[:1])
    assert found.target_gain_interval == tuple(-end for end in reversed(interval(drawn[2:])))
    assert found.target_gain_interval[0] < found.target_gain < found.target_gain_interval[1]
    assert found.relative_mean == pytest.approx(
        sum(found.languages[name].relative for name in ("en", "de")) / 2
    )
    bases = [pairs[name][0].figures().nll_per_byte for name in ("en", "de")]
    shares = [
        Resampled(one.ratio / base, 40, one.drawn / base)
        for one, base in zip(drawn, bases, strict=False)
    ]
    assert found.relative_mean_interval == pytest.approx(interval(shares), rel=1e-9)
    assert Forgetting.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_sums_alone_or_one_document_give_no_interval():
    before, after = by_document(0, 0.02)
    one = {"en": before.take([0])}, {"en": after.take([0])}
    for base, adapted in (one, ({"en": before.figures()}, {"en": after})):
        found = forgetting(base, adapted)
        assert found.mean_interval is None
        assert found.relative_mean_interval is None
        assert found.languages["en"].interval is None
        assert found.languages["en"].standard_error is None


def test_tokenizers_that_agree_in_the_sum_alone_have_no_ratio():
    before, after = by_document(0, 0.02)
    tokens = after.tokens.copy()
    tokens[:2] += (1, -1)
    after = DocumentSums(after.nll, tokens, after.bytes, after.correct)
    change = forgetting({"en": before}, {"en": after}).languages["en"]
    assert change.perplexity_ratio is None
    assert change.interval is not None


def test_documents_in_another_order_are_refused():
    before, after = by_document(0, 0.02)
    with pytest.raises(UserError, match=r"bytes in 40 documents and .* in the same order"):
        forgetting({"en": before}, {"en": after.take(range(39, -1, -1))})
    with pytest.raises(UserError, match=r"bytes in 40 documents and .* bytes in 39 documents"):
        forgetting({"en": before}, {"en": after.take(range(39))})


TABLE_BEFORE = {name: Figures(100.0, 50, 100) for name in ("en", "de", "fr", "sw")}
TABLE_AFTER = {
    name: Figures(nll, 50, 100)
    for name, nll in (("en", 110.0), ("de", 130.0), ("fr", 95.0), ("sw", 60.0))
}


def test_the_table_has_the_target_then_the_most_forgotten_then_the_mean():
    table = forgetting_table(TABLE_BEFORE, TABLE_AFTER, "sw")
    rows = {cells[0].text: [cell.text for cell in cells[1:]] for cells in table.cells()}
    assert list(rows) == ["sw (target)", "de", "en", "fr"]
    # exp(130 / 50); 130 / 100; their difference; exp(30 / 50)
    assert rows["de"] == ["13.5", "1.3000", "+0.3000", "1.822"]
    foot = [cell.text for cell in table.foot_cells()]
    # (0.3 + 0.1 - 0.05) / 3, the target left out
    assert foot == ["mean of 3 held out", "", "", "+0.1167", ""]


def test_rows_that_the_table_leaves_out_are_counted_and_stay_in_the_mean():
    table = forgetting_table(TABLE_BEFORE, TABLE_AFTER, "sw", rows=1)
    assert [cells[0].text for cells in table.cells()] == ["sw (target)", "de"]
    assert table.foot_cells()[3].text == "+0.1167"
    assert table.note == "2 less forgotten languages are not shown"


def test_the_table_marks_what_may_be_chance():
    counts = np.full(20, 50), np.full(20, 100), np.full(20, 9)
    base = np.linspace(80.0, 120.0, 20)
    rises = {"en": np.tile([1.0, -1.0], 10), "de": np.tile([1.0, 3.0], 10), "sw": np.full(20, -9.0)}
    before = {name: DocumentSums(base, *counts) for name in rises}
    after = {name: DocumentSums(base + rise, *counts) for name, rise in rises.items()}
    change = forgetting(before, after, "sw")
    figures = [{name: sums.figures() for name, sums in of.items()} for of in (before, after)]
    table = forgetting_table(*figures, "sw", result=change)
    rows = {cells[0].text: cells[3].text for cells in [*table.cells(), table.foot_cells()]}
    assert rows == {
        "sw (target)": "−0.0900",
        "de": "+0.0200",
        "en": "≈ 0.0000",
        "mean of 2 held out": "+0.0100",
    }
    assert "≈" in table.note
    assert "≈" not in forgetting_table(*figures, "sw").note  # nothing is known there
