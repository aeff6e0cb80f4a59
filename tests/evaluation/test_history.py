import json

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import Figures, History, forgetting


def figures(en, sw):
    return {"en": Figures(en, 10, 40), "sw": Figures(sw, 20, 50)}


def history():
    result = History(target="sw")
    for step, en, sw in ((0, 10.0, 90.0), (5, 14.0, 70.0), (9, 12.0, 60.0)):
        result.add(step, figures(en, sw))
    return result


def test_the_first_is_the_base_of_all():
    whole = history()
    assert whole.forgetting() == forgetting(figures(10.0, 90.0), figures(12.0, 60.0), "sw")
    steps = [(e["step"], e["forgetting"]["mean"]) for e in whole.to_dict()["evaluations"]]
    assert steps == [(0, 0.0), (5, pytest.approx(0.1)), (9, pytest.approx(0.05))]


def test_scalars():
    assert history().scalars() == {
        "forgetting/mean": pytest.approx(0.05),
        "forgetting/worst": pytest.approx(0.05),
        "forgetting/backward_transfer": pytest.approx(-0.05),
        "forgetting/target_gain": pytest.approx(0.6),
        "forgetting/en/perplexity": pytest.approx(2.718281828**1.2),
        "forgetting/en/bits_per_byte": pytest.approx(12.0 / 40 / 0.693147181),
        "forgetting/en/delta_nll_per_byte": pytest.approx(0.05),
        "forgetting/sw/perplexity": pytest.approx(2.718281828**3),
        "forgetting/sw/bits_per_byte": pytest.approx(60.0 / 50 / 0.693147181),
    }


def test_json_gives_it_back():
    whole = history()
    assert History.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_an_evaluation_of_other_text_is_refused():
    whole = history()
    with pytest.raises(UserError, match="bytes of 'en'"):
        whole.add(10, {"en": Figures(1.0, 10, 41), "sw": Figures(1.0, 20, 50)})
    assert whole.last.step == 9


def test_an_empty_history_has_neither_base_nor_last():
    with pytest.raises(UserError, match="none so far"):
        History().forgetting()
