"""A signal saves and stops; the run that goes on is the one that was never stopped."""

import os
import signal
import time

import lightning as L
import pytest
import torch
from extras_module import ACCUMULATE, STEPS, EachStep, Module, fit
from forked_ranks import run_ranks
from frozen_reference import TinyLM, mixed_region
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from freezetrain.callbacks import RegionFreeze, StopOnSignal, TimeLimit
from freezetrain.errors import Interrupted, Preempted, UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Checkpoint directory",
)

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Signals(Module):
    """Sends its own process a signal in the midst of a batch."""

    def __init__(self, batch: int, number: int) -> None:
        super().__init__()
        self.batch, self.number = batch, number

    def training_step(self, batch, batch_idx):
        if batch_idx == self.batch:
            os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)


def region():
    return RegionFreeze(mixed_region(TinyLM()), check_base=False)


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Who starts the tests in the background may have SIGINT ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are started: the same sums, to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted():
    return fit(region()).weights()


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize(
    ("number", "batch"),  # the first and the last micro-batch of a step
    [
        (signal.SIGTERM, 2),
        (signal.SIGTERM, 5),
        (signal.SIGUSR1, 2),
        (signal.SIGUSR2, 5),
        (signal.SIGINT, 2),
    ],
)
def test_stops_after_the_step_and_goes_on_from_there(tmp_path, uninterrupted, batch, number):
    step = batch // ACCUMULATE + 1
    save, module = EachStep(tmp_path), Signals(batch, number)
    name, kind = signal.Signals(number).name, Preempted
    if number == signal.SIGINT:
        name, kind = "Ctrl-C", Interrupted
    with pytest.raises(kind, match=rf"^stopped by {name} after step {step}, .*step={step}\."):
        fit(StopOnSignal(), region(), save, module=module)
    assert module.seen == list(range(step * ACCUMULATE)), "the step is finished, none is begun"
    assert save.saved == [step]
    again = fit(StopOnSignal(), region(), save, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert again.seen == list(range(step * ACCUMULATE, STEPS * ACCUMULATE))
    assert_equal(again.weights(), uninterrupted)


@pytest.mark.parametrize("order", [1, -1])
def test_a_step_that_was_just_saved_is_not_saved_twice(tmp_path, order):
    save = EachStep(tmp_path, every=2)
    with pytest.raises(Preempted, match=r"after step 4, .*step=4\.ckpt"):
        fit(*[save, StopOnSignal()][::order], module=Signals(7, signal.SIGTERM))
    assert save.saved == [2, 4]
    assert os.listdir(tmp_path) == ["step=4.ckpt"]


def test_what_others_say_about_the_step_is_in_its_checkpoint(tmp_path):
    class Counts(L.Callback):
        steps = 0

        def on_train_batch_end(self, trainer, *_):
            self.steps = trainer.global_step

        def state_dict(self):
            return {"steps": self.steps}

    save = EachStep(tmp_path)
    with pytest.raises(Preempted):
        fit(save, StopOnSignal(), Counts(), module=Signals(4, signal.SIGUSR1))
    (path,) = tmp_path.iterdir()
    states = torch.load(path, weights_only=False)["callbacks"]
    assert [state for key, state in states.items() if "Counts" in key] == [{"steps": 3}]


def test_the_handlers_that_were_there_come_back(tmp_path):
    got = []

    def mine(number, _):
        got.append(number)

    class Looks(Module):
        def on_train_batch_start(self, *_):
            self.during = [signal.getsignal(number) for number in HANDLED]

    before = [signal.signal(number, mine) for number in HANDLED]
    try:
        stop = StopOnSignal()
        module = fit(stop, EachStep(tmp_path), module=Looks())
        assert module.during == [stop._receive] * 4, "neither Lightning's nor those before it"
        assert [signal.getsignal(number) for number in HANDLED] == [mine] * 4
        with pytest.raises(Preempted):
            fit(stop, EachStep(tmp_path), module=Signals(3, signal.SIGTERM))
        assert [signal.getsignal(number) for number in HANDLED] == [mine] * 4
        assert not got
    finally:
        for number, handler in zip(HANDLED, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_before_training_stops_after_its_first_step(tmp_path, monkeypatch, number):
    """As while the base is evaluated, by ranks that take part in collective operations then."""

    def broadcasts(*_):
        raise AssertionError("a collective operation, from within a handler")

    class Early(L.Callback):
        def on_train_start(self, *_):
            assert signal.getsignal(number) != signal.SIG_DFL, "it would end the process"
            os.kill(os.getpid(), number)

    monkeypatch.setattr(_SignalConnector, "_sigterm_notifier_fn", broadcasts)
    save = EachStep(tmp_path)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    with pytest.raises(Preempted, match=f"stopped by {name} after step 1"):
        fit(Early(), StopOnSignal(), save)
    assert save.saved == [1]


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    class Twice(Signals):
        pause = 0.4

        def training_step(self, batch, batch_idx):
            result = super().training_step(batch, batch_idx)
            if batch_idx == self.batch:
                time.sleep(self.pause)
                os.kill(os.getpid(), self.number)
            return result

    before, save = signal.getsignal(signal.SIGINT), EachStep(tmp_path)
    with pytest.raises(SystemExit) as error:
        fit(StopOnSignal(), save, module=Twice(2, signal.SIGINT))
    assert isinstance(error.value.__context__, KeyboardInterrupt)
    assert save.saved == []
    assert signal.getsignal(signal.SIGINT) == before
    monkeypatch.setattr(Twice, "pause", 0)  # the same press, passed on by torchrun
    with pytest.raises(Interrupted, match="stopped by Ctrl-C after step 2"):
        fit(StopOnSignal(), save, module=Twice(2, signal.SIGINT))


def test_ctrl_c_after_the_last_step_ends_at_once(tmp_path):
    class Late(L.Callback):
        def on_train_end(self, *_):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as error:
        fit(Late(), StopOnSignal(), EachStep(tmp_path))
    assert isinstance(error.value.__context__, KeyboardInterrupt)


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path):
    """As in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        module = fit(StopOnSignal(), EachStep(tmp_path), module=Signals(2, signal.SIGINT))
        assert module.seen == list(range(STEPS * ACCUMULATE))
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handlers_come_back_where_nothing_is_left_to_train(tmp_path):
    before = [signal.getsignal(number) for number in HANDLED]
    fit(EachStep(tmp_path, every=6))
    fit(StopOnSignal(), EachStep(tmp_path), ckpt_path=tmp_path / "step=6.ckpt")
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_needs_a_checkpoint_that_saves_any_step(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    best = ModelCheckpoint(dirpath=tmp_path, monitor="train/loss")
    none = ModelCheckpoint(dirpath=tmp_path, save_top_k=0)
    for callback in (best, none):
        with pytest.raises(UserError, match="found none without monitor"):
            fit(StopOnSignal(), callback)


@pytest.mark.parametrize(
    "engine",
    ["ddp", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("fsdp2", "zero-2"))],
)
def test_ranks_stop_together_when_one_is_told_to(tmp_path, engine):
    ranks = run_ranks("two_rank_fits:stop_and_go_on", tmp_path, engine, group=False)
    for rank, result in enumerate(ranks):
        name = "SIGUSR2" if rank else "a signal that another rank received"
        assert result["said"].startswith(f"stopped by {name} after step 3, "), result["said"]
        assert result["seen"] == list(range(6))
        assert result["saved"] == [3]
        assert result["seen again"] == list(range(6, STEPS * ACCUMULATE))
        assert result["differ"] == [], "the run that goes on is the one that was never stopped"


class Clock:
    """Seconds that pass only in training steps: ``each`` of them."""

    def __init__(self, monkeypatch, each: float) -> None:
        self.now, self.each = 1000.0, each
        monkeypatch.setattr("time.monotonic", lambda: self.now)


class Ticks(Module):
    clock: Clock

    def training_step(self, batch, batch_idx):
        self.clock.now += self.clock.each
        return super().training_step(batch, batch_idx)


def test_time_limit_ends_after_the_step_in_which_it_is_used_up(tmp_path, monkeypatch):
    Ticks.clock = Clock(monkeypatch, each=100.0)
    limit, save = TimeLimit(500 / 3600), EachStep(tmp_path, every=1)
    module = fit(limit, save, module=Ticks())
    assert module.seen == list(range(6)), "500 s are reached in the fifth micro-batch"
    assert limit.time_elapsed() == pytest.approx(600)


def test_time_limit_counts_over_all_starts(tmp_path, monkeypatch):
    Ticks.clock = Clock(monkeypatch, each=100.0)
    save = EachStep(tmp_path, every=1)

    class Stopped(Signals, Ticks):
        pass

    with pytest.raises(Preempted):
        fit(TimeLimit(700 / 3600), StopOnSignal(), save, module=Stopped(3, signal.SIGTERM))
    Ticks.clock.now += 1e6  # the machine was someone else's
    path = tmp_path / "step=2.ckpt"
    limit = TimeLimit(700 / 3600)
    again = fit(limit, save, module=Ticks(), ckpt_path=path)
    assert again.seen == [4, 5, 6, 7]
    assert limit.time_elapsed() == pytest.approx(800)
    over = fit(TimeLimit(700 / 3600), save, module=Ticks(), ckpt_path=tmp_path / "step=4.ckpt")
    assert over.seen == [], "none is left"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["TimeLimit"] = {"seconds": 600.0}  # as before it was Lightning's Timer
    torch.save(checkpoint, path)
    assert fit(TimeLimit(700 / 3600), module=Ticks(), ckpt_path=path).seen == [4, 5]


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_time_limit_refuses_what_is_no_time(hours):
    with pytest.raises(UserError, match="must be above 0"):
        TimeLimit(hours)
