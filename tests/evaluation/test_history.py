import json

import numpy as np
import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import DocumentSums, Figures, History, forgetting


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


def by_document(rise):
    size = np.array([40, 60, 80])
    en = DocumentSums(size * 0.5 + np.array([1.0, 2.0, 3.0]) * rise, size // 4, size, size // 8)
    sw = DocumentSums(size * 0.9 - 5 * rise, size // 5, size, size // 9)
    return {"en": en, "sw": sw}


def test_a_subsample_is_compared_with_the_base_on_the_same_documents():
    whole = History(target="sw")
    whole.add(0, by_document(0.0), tokens=0, samples=0)
    chosen = {"en": np.array([2, 0]), "sw": np.array([1])}
    found = {name: sums.take(chosen[name]) for name, sums in by_document(1.0).items()}
    last = whole.add(4, found, tokens=640, samples=8, chosen=chosen)
    assert whole.last is last
    assert (last.tokens, last.samples) == (640, 8)
    assert last.figures["en"].documents == 2
    assert last.forgetting.languages["en"].delta_nll_per_byte == pytest.approx(4 / 120)
    assert last.forgetting.languages["en"].interval is not None
    assert last.forgetting.target_gain == pytest.approx(5 / 60)
    assert whole.base.figures["en"].documents == 3


def test_what_the_base_gave_on_each_document_is_in_the_state_alone():
    whole = History(target="sw")
    whole.add(0, by_document(0.0))
    whole.add(4, by_document(1.0))
    assert "base_documents" not in whole.to_dict()
    again = History.from_dict(json.loads(json.dumps(whole.state_dict())))
    assert again.evaluations == whole.evaluations
    both = [one.add(6, by_document(2.0)) for one in (whole, again)]
    assert both[0] == both[1]
    assert both[1].forgetting.mean_interval is not None


def test_a_subsample_of_a_base_of_sums_is_refused():
    whole = history()
    with pytest.raises(UserError, match="document by document"):
        whole.add(10, figures(1.0, 1.0), chosen={"en": [0], "sw": [0]})
