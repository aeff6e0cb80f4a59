"""ForgettingWatch within a share of the training time, by a clock that the tests move."""

import json
from types import SimpleNamespace

import pytest
from watched_loop import Loop, Toy, documents

from freezetrain.evaluation import ForgettingWatch, evaluate_documents, forgetting

TEXTS = documents(more=60)
TOKENS = sum(document.tokens for texts in TEXTS.values() for document in texts)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("freezetrain.evaluation.watch.time.perf_counter", lambda: clock.now)
    return clock


class Timed(Toy):
    """Training takes 1 s a batch, evaluation ``rate`` s a token."""

    def __init__(self, clock, rate: float) -> None:
        super().__init__()
        self.clock, self.rate = clock, rate

    def forward(self, input_ids):
        self.clock.now += 1.0 if self.training else self.rate * input_ids.numel()
        return super().forward(input_ids)


def timed(clock, rate: float) -> Loop:
    loop = Loop()
    model = Timed(clock, rate)
    model.load_state_dict(loop.model.state_dict())
    loop.model = model
    return loop


def watch(share: float, **options) -> ForgettingWatch:
    settings = {"target": "sw", "every_n_steps": 10, "max_length": 32, "table": False}
    # A window is a batch of its own, so that no padding takes time.
    settings |= {"time_share": share, "batch_tokens": 1}
    return ForgettingWatch(TEXTS, **{**settings, **options})


def steps(watch: ForgettingWatch) -> list[int]:
    return [evaluation.step for evaluation in watch.history.evaluations]


def test_all_documents_where_the_share_allows_for_them(clock):
    watched, loop = watch(0.2), timed(clock, 1.0 / TOKENS)  # 1 s of the 2 s that 10 steps allow for
    watched.start(loop.model)
    assert watched.seconds == pytest.approx(1.0)
    loop.train(watched, 45)
    assert steps(watched) == [0, 10, 20, 30, 40, 45]
    assert all(e.figures["en"].documents == 62 for e in watched.history.evaluations)
    assert watched.seconds - 1.0 == pytest.approx(5.0)
    assert watched.state_dict()["seconds_trained"] == pytest.approx(45.0)
    watched.start(loop.model)
    assert watched.seconds == pytest.approx(1.0)
    assert watched.state_dict()["seconds_trained"] == pytest.approx(0.0)


def test_a_fixed_subsample_where_it_does_not(clock):
    watched, loop = watch(0.2), timed(clock, 20.0 / TOKENS)
    watched.start(loop.model)
    base = evaluate_documents(Loop().model, TEXTS, max_length=32)
    loop.train(watched, 45)
    assert steps(watched) == [0, 10, 20, 30, 40, 45]
    chosen = watched._share.chosen
    tokens = sum(TEXTS[name][n].tokens for name, found in chosen.items() for n in found)
    assert TOKENS / 20 - 20 < tokens <= TOKENS / 20, "1 s of the 2 s that 10 steps allow for"
    some = {name: [TEXTS[name][n] for n in found] for name, found in chosen.items()}
    before = {name: sums.take(chosen[name]) for name, sums in base.items()}
    after = evaluate_documents(loop.model, some, max_length=32)
    for evaluation in watched.history.evaluations[1:]:
        assert evaluation.figures["en"].documents == len(chosen["en"])
    assert watched.history.last.forgetting == forgetting(before, after, "sw")
    mine = watched.base_of(watched.history.last)
    assert mine == {name: sums.figures() for name, sums in before.items()}
    assert watched.base_of(watched.history.base) == watched.history.base.figures


@pytest.mark.parametrize(
    ("share", "seconds"), [(0.02, 1.0), (0.02, 30.0), (0.1, 10.0), (0.1, 100.0), (0.5, 100.0)]
)
def test_the_share_is_never_exceeded(clock, share, seconds):
    watched, loop = watch(share), timed(clock, seconds / TOKENS)
    watched.start(loop.model)
    based = watched.seconds
    for end in range(7, 250, 31):
        loop.train(watched, end, end=False)
        assert watched.seconds - based <= share * loop.step
    watched.end(loop.model, loop.step)
    assert len(watched.history.evaluations) > 2
    assert watched.seconds - based <= share * loop.step
    assert all(step % 10 == 0 for step in steps(watched)[:-1]), "what is left out is not made later"


def test_evaluations_that_the_share_has_no_time_for_are_left_out(clock):
    # The fewest documents, two of each language, take more than 5 s.
    watched, loop = watch(0.1), timed(clock, 5.0)
    watched.start(loop.model)
    base = watched.seconds
    loop.train(watched, 50)
    assert steps(watched) == [0, 50], "the last is always made"
    assert watched.seconds - base > 5.0, "which is all that 50 steps allow for"


def test_a_last_evaluation_alone_may_take_the_whole_share(clock):
    watched, loop = watch(0.2, every_n_steps=1000), timed(clock, 20.0 / TOKENS)
    watched.start(loop.model)
    loop.train(watched, 10)
    assert steps(watched) == [0, 10]
    assert 1.0 < watched.seconds - 20.0 <= 2.0


def test_a_resumed_run_keeps_the_subsample_and_its_accounts(clock):
    def whole() -> ForgettingWatch:
        clock.now = 1000.0
        watched, loop = watch(0.05), timed(clock, 20.0 / TOKENS)
        watched.start(loop.model)
        loop.train(watched, 65)
        return watched

    expected = whole()
    assert len(steps(expected)) < 8, "some are left out"
    clock.now = 1000.0
    first, loop = watch(0.05), timed(clock, 20.0 / TOKENS)
    first.start(loop.model)
    loop.train(first, 33, end=False)
    kept = json.loads(json.dumps(first.state_dict()))
    clock.now = 1.0  # another machine, whose clock started later
    again = watch(0.05)
    again.load_state_dict(kept)
    again.start(loop.model, 33)
    loop.train(again, 65)
    assert again.history.evaluations == expected.history.evaluations
    assert again._share.chosen == expected._share.chosen
    assert again._share.spent == pytest.approx(expected._share.spent)
    assert again.state_dict()["seconds_trained"] == pytest.approx(65.0)


def test_the_table_says_so(clock):
    watched, loop = watch(0.2), timed(clock, 100.0 / TOKENS)
    watched.start(loop.model)
    assert "documents" not in watched.latest_table().title
    loop.train(watched, 10)
    taken = sum(map(len, watched._share.chosen.values()))
    every = sum(map(len, TEXTS.values()))
    assert watched.latest_table().title.endswith(f", both of {taken} of {every} documents")


def test_the_results_file_says_so(clock, tmp_path):
    watched, loop = watch(0.2, results_path=tmp_path / "f.json"), timed(clock, 100.0 / TOKENS)
    watched.start(loop.model)
    assert json.loads((tmp_path / "f.json").read_text())["subsample"] is None
    loop.train(watched, 10)
    results = json.loads((tmp_path / "f.json").read_text())
    assert results["time_share"] == 0.2
    assert results["subsample"] == {
        name: figures.documents for name, figures in watched.history.last.figures.items()
    }
