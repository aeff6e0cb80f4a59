import json

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation.benchmarks import (
    BenchmarkDrops,
    Score,
    benchmarks_table,
    compare_scores,
    main_metrics,
    relative_drop,
)

BASE = {
    "arc": {"acc": Score(0.5, 0.02, True, 5), "acc_norm": Score(0.6, 0.02, True, 5)},
    "wiki": {"perplexity": Score(10.0, None, False)},
}
ADAPTED = {
    "arc": {"acc": Score(0.4, 0.03, True), "acc_norm": Score(0.66, 0.02, True)},
    "wiki": {"perplexity": Score(15.0, None, False)},
}


def test_the_drop_is_the_share_of_the_bases_score_that_was_lost():
    assert relative_drop(Score(0.5, None, True), Score(0.4, None, True)) == pytest.approx(0.2)
    assert relative_drop(Score(0.5, None, True), Score(0.6, None, True)) == pytest.approx(-0.2)
    assert relative_drop(Score(10, None, False), Score(15, None, False)) == pytest.approx(0.5)


def drops_of(*scores):
    """As JSON, from which the same drops come back."""
    drops = compare_scores(*scores)
    data = json.loads(json.dumps(drops.to_dict(), allow_nan=False))
    assert BenchmarkDrops.from_dict(data) == drops
    return data


@pytest.mark.parametrize("base", [Score(0.0, None, True), Score(0.5, None, None)])
def test_no_drop_of_nothing_or_where_nobody_knows_which_is_better(base):
    assert relative_drop(base, Score(0.1, None, base.higher_is_better)) is None
    found = drops_of({"task": {"m": base}}, "a", {"task": {"m": base}})
    assert found["mean_relative_drop"] == {"a": None}


def test_no_drop_of_or_to_what_is_no_number():
    number, none = Score(0.5, 0.1, True), Score(None, None, True)
    for base, adapted in ((number, none), (none, number), (none, none)):
        assert relative_drop(base, adapted) is None
        found = drops_of(
            {"a": {"m": base}, "b": {"m": number}}, "x", {"a": {"m": adapted}, "b": {"m": number}}
        )
        assert found["mean_relative_drop"] == {"x": 0.0}, "of the other task alone"


def test_side_by_side():
    found = drops_of(BASE, "a", ADAPTED)
    assert found["tasks"]["arc"] == {
        "metric": "acc",
        "higher_is_better": True,
        "num_fewshot": 5,
        "base": {"value": 0.5, "standard_error": 0.02},
        "models": {
            "a": {"value": 0.4, "standard_error": 0.03, "relative_drop": pytest.approx(0.2)}
        },
        "other_metrics": {
            "acc_norm": {
                "higher_is_better": True,
                "num_fewshot": 5,
                "base": {"value": 0.6, "standard_error": 0.02},
                "models": {
                    "a": {
                        "value": 0.66,
                        "standard_error": 0.02,
                        "relative_drop": pytest.approx(-0.1),
                    }
                },
            }
        },
    }
    assert found["mean_relative_drop"] == {"a": pytest.approx((0.2 + 0.5) / 2)}


def test_another_metric_may_count():
    found = drops_of(BASE, "a", ADAPTED, {"arc": "acc_norm"})
    assert found["tasks"]["arc"]["metric"] == "acc_norm"
    assert found["tasks"]["arc"]["other_metrics"].keys() == {"acc"}
    assert found["mean_relative_drop"] == {"a": pytest.approx((-0.1 + 0.5) / 2)}


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"arcc": "acc"}, r"task 'arcc' that was not run \(did you mean 'arc'\?\)"),
        ({"arc": "acc_nrm"}, r"no metric 'acc_nrm' \(did you mean 'acc_norm'"),
    ],
)
def test_a_metric_or_task_that_there_is_none_of(chosen, complaint):
    with pytest.raises(UserError, match=complaint):
        main_metrics(BASE, chosen)


def test_the_table_has_a_row_a_task_and_the_mean_below():
    arc = {metric: Score(None, None, True) for metric in BASE["arc"]}
    odd = {"arc": arc, "wiki": BASE["wiki"]}
    table = benchmarks_table(
        [compare_scores(BASE, "a[b]", ADAPTED), compare_scores(BASE, "c", odd)]
    )
    assert [[cell.text for cell in cells] for cells in table.cells()] == [
        ["arc", "acc", "5", "0.5000", "0.4000", "+20.00%", "–", "–"],
        ["wiki", "perplexity", "–", "10.0000", "15.0000", "+50.00%", "10.0000", "0.00%"],
    ]
    assert [cell.text for cell in table.foot_cells()][4:] == ["", "+35.00%", "", "0.00%"]
    assert table.cells()[0][4].note == "± 0.0300"
