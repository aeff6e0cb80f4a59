"""When an evaluation is due, of which documents, and whether there is time."""

import random
from itertools import pairwise

import pytest

from freezetrain.errors import UserError
from freezetrain.evaluation import PAPER_SAMPLES, Document
from freezetrain.evaluation.schedule import Schedule, TimeShare, Trained, subsample

COUNTS = [0, 3, 4, 5, 19, 20, 47, 48, 60, 61, 200, 203]  # jumps over marks, and onto them


def due(schedule: Schedule, **names: int) -> list[int]:
    """The counts, of one name, at which an evaluation is due."""
    (name,) = names
    course = [Trained(**{"step": step, name: count}) for step, count in enumerate(COUNTS)]
    return [getattr(now, name) for before, now in pairwise(course) if schedule.due(before, now)]


def expected(marks: range | tuple[int, ...]) -> list[int]:
    """Those that are the first to reach some mark."""
    return [now for before, now in pairwise(COUNTS) if any(before < m <= now for m in marks)]


def test_samples_and_tokens_are_due_at_the_first_step_that_reaches_a_mark():
    marks = (4, 50, 200, 60)
    assert due(Schedule(at_samples=marks), samples=0) == expected(marks) == [4, 60, 200]
    every = Schedule(every_n_tokens=20)
    assert due(every, tokens=0) == expected(range(20, 300, 20)) == [20, 47, 60, 200]


@pytest.mark.parametrize(("schedule", "every"), [(Schedule(every_n_steps=3), 3), (Schedule(), 100)])
def test_steps(schedule, every):
    steps = [Trained(step) for step in range(305)]
    found = [now.step for before, now in pairwise(steps) if schedule.due(before, now)]
    assert found == list(range(every, 305, every))


def test_the_papers_samples():
    schedule = Schedule(at_samples=PAPER_SAMPLES)
    steps = [Trained(step, samples=step * 256) for step in range(1000)]  # 2 x 16 x 8 GPUs
    found = [now.step for before, now in pairwise(steps) if schedule.due(before, now)]
    assert found == [8, 20, 40, 79, 196, 782]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be 1 or more, got 0"),
        ({"every_n_tokens": -1}, "every_n_tokens must be 1 or more, got -1"),
        ({"at_samples": (0,)}, r"one of them above 0, got \(0,\)"),
        ({"at_samples": (-1, 4)}, "numbers of training samples"),
        (
            {"every_n_steps": 5, "at_samples": (4,)},
            "expected one of .* got every_n_steps, at_samples; leave the others out",
        ),
        ({"every_n_steps": 5, "every_n_tokens": 5}, "got every_n_steps, every_n_tokens;"),
    ],
)
def test_schedules_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Schedule(**options)


@pytest.mark.parametrize("options", [{"every_n_tokens": 5}, {"at_samples": (5,)}])
def test_what_nobody_counts_is_refused(options):
    with pytest.raises(UserError, match=r"not counted; pass (tokens|samples)=, over all ranks"):
        Schedule(**options).due(Trained(0, 0, 0), Trained(1))


def documents(count: int, seed: int = 0) -> list[Document]:
    draw = random.Random(seed)
    return [
        Document([draw.randrange(50) for _ in range(draw.randrange(2, 40))], 9)
        for _ in range(count)
    ]


def ids(texts: dict[str, list[Document]], chosen: dict[str, list[int]]) -> dict[str, list]:
    return {name: sorted(texts[name][n].ids for n in numbers) for name, numbers in chosen.items()}


def tokens(texts: dict[str, list[Document]]) -> int:
    return sum(document.tokens for found in texts.values() for document in found)


@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.9])
def test_a_subsample_is_fixed_and_fills_the_part(part):
    texts = {"en": documents(50), "de": documents(80, 1), "sw": documents(1, 2)}
    chosen = subsample(texts, part)
    assert all(numbers == sorted(numbers) for numbers in chosen.values())
    mixed = {name: random.Random(1).sample(found, len(found)) for name, found in texts.items()}
    assert ids(mixed, subsample(mixed, part)) == ids(texts, chosen), "whatever the order"
    larger = ids(texts, subsample(texts, part + 0.1))
    assert all(one in larger[name] for name, found in ids(texts, chosen).items() for one in found)
    some = {name: [texts[name][n] for n in numbers] for name, numbers in chosen.items()}
    if part == 0.01:
        assert {name: len(found) for name, found in some.items()} == {"en": 2, "de": 2, "sw": 1}
        return
    assert part * tokens(texts) - 39 < tokens(some) <= part * tokens(texts), "one more is 38 more"
    for name in ("en", "de"):  # as large a share of each language, to a document
        share = tokens({name: some[name]}) / tokens({name: texts[name]})
        assert share == pytest.approx(part, abs=0.07)


def test_all_or_at_least_two():
    texts = {"en": documents(5), "de": documents(1, 1)}
    assert subsample(texts, 1.0) == {"en": [0, 1, 2, 3, 4], "de": [0]}
    chosen = subsample(texts, 1e-9)
    assert {name: len(numbers) for name, numbers in chosen.items()} == {"en": 2, "de": 1}


def share_of(tokens: int = 10, count: int = 10, **settings) -> TimeShare:
    share = TimeShare(0.1)
    for name, value in settings.items():
        setattr(share, name, value)
    texts = [Document([number] * (tokens + 1), 9) for number in range(count)]
    share.choose({"en": texts}, trained=20.0, last=False)
    return share


def test_decisions():
    # 10% of 20 s leave 1 s for this evaluation and 1 s for the last: 2 of 10 documents of 0.5 s.
    share = share_of(base_seconds=5.0)
    assert len(share.chosen["en"]) == 2
    assert share.cost == pytest.approx(1.0)
    assert share.allows(20.0)
    assert not share.allows(19.9)
    share.record(0.5)  # faster than expected: what was measured counts
    assert share.cost == 0.5
    assert share.allows(15.0)
    assert not share.allows(14.9)
    share.record(1.5)
    share.record(0.5)  # the most that one took is what the next may take
    assert (share.spent, share.cost) == (2.5, 1.5)
    assert share.allows(55.0)
    assert not share.allows(54.9)


def test_all_documents_where_they_fit():
    assert len(share_of(base_seconds=1.0).chosen["en"]) == 10
    assert len(share_of(base_seconds=1.01).chosen["en"]) == 9
    share = TimeShare(0.1)  # a last evaluation may take all that is left
    share.base_seconds = 2.0
    share.choose({"en": documents(10)}, trained=20.0, last=True)
    assert len(share.chosen["en"]) == 10


def test_the_fewest_documents_wait_for_their_time():
    share = share_of(base_seconds=100.0)  # two documents take 20 s
    assert len(share.chosen["en"]) == 2
    assert share.cost == pytest.approx(20.0)
    assert [share.allows(trained) for trained in (20.0, 399.0, 401.0)] == [False, False, True]


@pytest.mark.parametrize("seed", range(20))
def test_share_is_never_exceeded(seed):
    draw = random.Random(seed)
    share, rate = TimeShare(draw.choice([0.01, 0.05, 0.3, 1.0])), 10 ** draw.uniform(-3, 0)
    texts = {"en": documents(40, seed), "de": documents(7, seed + 1)}
    share.base_seconds = rate * tokens(texts)
    trained, made, steps = 0.0, 0, draw.randrange(20, 400)
    for step in range(1, steps + 1):
        trained += draw.uniform(0.5, 1.5)
        if step % 10 and step < steps:
            continue
        if share.chosen is None:
            share.choose(texts, trained, last=step == steps)
        some = {name: [texts[name][n] for n in found] for name, found in share.chosen.items()}
        cost = rate * tokens(some)
        if step == steps:
            if made or 2 * cost <= share.share * trained:
                assert share.spent + cost <= share.share * trained * (1 + 1e-9)
        elif share.allows(trained):
            share.record(cost)
            made += 1
            assert share.spent + cost <= share.share * trained * (1 + 1e-9)
    # Used, not only kept: unless even two documents of each language take long, half of the
    # evaluations that are due, or more, are made.
    if max(map(len, share.chosen.values())) > 2:
        assert made >= (steps - 1) // 10 / 2


def test_state():
    share, other = share_of(base_seconds=5.0), TimeShare(0.1)
    share.record(0.5)
    other.load_state_dict(share.state_dict())
    assert other.state_dict() == share.state_dict()
    assert other.allows(15.0)
    assert not other.allows(14.9)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_shares_that_cannot_be_are_refused(share):
    with pytest.raises(UserError, match="above 0 and at most 1 of the training time"):
        TimeShare(share)
