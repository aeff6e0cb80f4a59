"""A quickstart that fits into the time that it may take."""

from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from freezetrain.errors import UserError
from freezetrain.evaluation import Document
from freezetrain.quickstart.work import (
    Sizes,
    Speed,
    Work,
    fit,
    left_out,
    measure,
    plan_line,
    seconds_of,
)

ALL = Work(sequences=40, documents=8, languages=30, evaluations=4, seeds=3, steps=40)
SIZES = Sizes(
    scored=[40] * 6,
    sequence_length=128,
    step_tokens=1024,
    held_out={f"l{n}": [100] * 8 for n in range(30)},
)
FAST = Speed(evaluated=1e-5, trained=3e-5, step=0.01, loading=0.1)


def slower(factor):
    return Speed(factor * 1e-5, factor * 3e-5, factor * 0.01, loading=1.0)


def test_the_time_is_that_of_the_parts():
    parts = seconds_of(ALL, SIZES, FAST)
    evaluation = 30 * 8 * 100 * 1e-5
    assert parts == pytest.approx(
        {
            "score": 6 * 40 * 128 * 3e-5 + 0.2,
            "zero": 4 * evaluation,
            "train": 9 * (40 * (1024 * 3e-5 + 0.01) + 0.6),
            "watch": 9 * 5 * evaluation,
        }
    )


def test_what_fits_is_done_whole():
    assert fit(ALL, SIZES, FAST, 900, 7) == ALL
    assert left_out(ALL, ALL) == []
    assert plan_line([], 147, 15) == "this will take about 2 min"


@pytest.mark.parametrize("factor", [10, 50, 100, 300])
def test_a_slow_model_gets_less_of_what_takes_longest(factor):
    work = fit(ALL, SIZES, slower(factor), 900, 7)
    assert sum(seconds_of(work, SIZES, slower(factor)).values()) <= 0.8 * 900
    faster = fit(ALL, SIZES, slower(factor / 2), 900, 7)
    spent = [sum(seconds_of(w, SIZES, FAST).values()) for w in (work, faster)]
    assert spent[0] <= spent[1]
    assert work.languages >= 7
    if factor >= 50:
        assert (work.seeds, work.steps >= 10) == (1, True)
        words = left_out(ALL, work)
        assert "1 of 3 runs of a variant" in words
        assert "; more with --minutes" in plan_line(words, 800, 15)


@pytest.mark.parametrize("factor", [30, 100, 300])
def test_nothing_more_would_fit(factor):
    work = fit(ALL, SIZES, slower(factor), 900, 7)
    omitted = {name: now for name, now in asdict(work).items() if now < getattr(ALL, name)}
    assert omitted
    for name, now in omitted.items():
        more = replace(work, **{name: now + 1})
        assert sum(seconds_of(more, SIZES, slower(factor)).values()) > 0.8 * 900


def test_a_model_that_is_too_slow_is_refused_with_the_time_that_it_takes():
    with pytest.raises(UserError, match=r"take about \d+ .* got 15 that are left") as raised:
        fit(ALL, SIZES, slower(5000), 900, 7)
    minutes = int(str(raised.value).split("--minutes ")[1].split(",")[0])
    assert fit(ALL, SIZES, slower(5000), 60 * minutes, 7).steps >= 10


def test_a_measurement_leaves_the_model_as_it_is(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    documents = {name: [Document(list(range(40)), 60)] * 2 for name in ("en", "zh", "de")}
    speed = measure(model, documents, 64, 32, loading=0.5)
    assert min(speed.evaluated, speed.trained, speed.step) > 0
    assert speed.loading == 0.5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
