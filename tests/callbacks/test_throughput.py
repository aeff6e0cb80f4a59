"""Figures against a clock that passes only where the test says; FLOPs against PyTorch's counter."""

from types import SimpleNamespace

import pytest
import torch
from extras_module import ACCUMULATE, STEPS, EachStep, Module, Stream, fit, make_trainer
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from freezetrain.callbacks import ForgettingTracker, RegionFreeze, Throughput, TimeLimit
from freezetrain.callbacks.throughput import flops_per_token
from freezetrain.evaluation import Document
from freezetrain.freezing import audit, freeze, hooks

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Checkpoint directory",
)

TOKENS = ACCUMULATE * 4 * 7  # of a step
TRAINING, WAITING, EVALUATING = 3.0, 1.0, 50.0  # seconds of a micro-batch, and of an evaluation


class Notes(Logger):
    """What was logged of speed, by step; the module's loss is none of it."""

    name, version = "notes", "0"

    def __init__(self):
        super().__init__()
        self.steps = {}

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        if "train/loss" not in metrics:
            self.steps.setdefault(step, {}).update(metrics)


class Evaluates(ForgettingTracker):
    """Takes its time before the first step and after step 2."""

    def __init__(self, clock):
        super().__init__({"sw": [Document([1, 2], 2)]}, table=False)
        self.clock = clock

    def _take_time(self):
        self.clock.now += EVALUATING
        self.seconds += EVALUATING

    def setup(self, *_, **__):
        self.seconds = 0.0

    def on_train_start(self, *_):
        self._take_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 2 * ACCUMULATE - 1:
            self._take_time()

    def on_train_end(self, *_):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


class Timed(Module):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += TRAINING
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        clock = self.clock

        class Slow(Stream):
            def __iter__(self):
                for batch in super().__iter__():
                    clock.now += WAITING
                    yield batch

        return Slow()


def run(clock, *callbacks, **options):
    notes, speed = Notes(), Throughput()
    trainer = make_trainer(*callbacks, speed, logger=notes, log_every_n_steps=2, **options)
    trainer.fit(Timed(clock))
    return notes.steps, speed, trainer


def test_figures_of_a_clock_that_is_known(clock):
    logged, speed, trainer = run(clock, Evaluates(clock))
    step = ACCUMULATE * (TRAINING + WAITING)
    steps = [logged[key] for key in sorted(logged)]
    assert sorted(logged) == list(range(2, STEPS + 1, 2))
    wall = 0.0
    for number, values in enumerate(steps, 1):
        # The two evaluations are over when step 2 is logged.
        wall = 2 * EVALUATING + 2 * number * step
        rate = TOKENS / step
        assert values["train/tokens_per_second"] == pytest.approx(rate)
        assert values["train/tokens_per_second_per_device"] == pytest.approx(rate)
        assert values["time/data"] == pytest.approx(2 * number * ACCUMULATE * WAITING / wall)
        assert values["time/evaluation"] == pytest.approx(2 * EVALUATING / wall)
        assert values["time/freezing"] == 0.0
        made = 2 * number - 1  # since the first, with one evaluation
        left = (made * step + EVALUATING) / made * (STEPS - 2 * number)
        assert values["train/hours_left"] == pytest.approx(left / 3600)
        assert "train/flops_utilization" not in values
        assert 0.05 < values["train/memory_peak_gib"] < 100
    summary = speed.summary(trainer)
    assert summary["seconds"] == pytest.approx(wall)
    assert (summary["tokens"], summary["steps"]) == (STEPS * TOKENS, STEPS)
    assert summary["tokens_per_second"] == pytest.approx(TOKENS / step)
    assert summary["time/evaluation"] == pytest.approx(2 * EVALUATING / wall)
    assert summary["time/data"] == pytest.approx(STEPS * ACCUMULATE * WAITING / wall)
    assert summary["memory_peak_gib"] >= steps[-1]["train/memory_peak_gib"]


def test_resumed_runs_count_what_they_train(clock, tmp_path):
    fit(EachStep(tmp_path, every=2), max_steps=2)
    notes, speed = Notes(), Throughput()
    trainer = make_trainer(speed, logger=notes, log_every_n_steps=2)
    trainer.fit(Timed(clock), ckpt_path=tmp_path / "step=2.ckpt")
    step = ACCUMULATE * (TRAINING + WAITING)
    summary = speed.summary(trainer)
    assert (summary["tokens"], summary["steps"]) == ((STEPS - 2) * TOKENS, STEPS - 2)
    assert summary["tokens_per_second"] == pytest.approx(TOKENS / step)
    assert min(notes.steps.values(), key=lambda v: v["train/hours_left"])["train/hours_left"] == 0
    trainer.fit(Timed(clock), ckpt_path=tmp_path / "step=2.ckpt")
    again = speed.summary(trainer)
    assert again == {**summary, "memory_peak_gib": again["memory_peak_gib"]}, "counted anew"


def test_a_limit_of_time_shortens_what_is_left(clock):
    step = ACCUMULATE * (TRAINING + WAITING)
    logged, _, _ = run(clock, TimeLimit(3.5 * step / 3600))
    first = logged[min(logged)]
    assert first["train/hours_left"] == pytest.approx(1.5 * step / 3600)


def test_nothing_to_train_gives_no_summary(clock, tmp_path):
    speed = Throughput()
    trainer = make_trainer(speed, max_steps=0)
    trainer.fit(Timed(clock))
    assert speed.summary(trainer) == {}


def test_flops_utilization_where_the_peak_is_known(clock, monkeypatch, make_model):
    asked = []

    def peak(device, dtype):
        asked.append(dtype)
        return 1_000_000_000

    monkeypatch.setattr("freezetrain.callbacks.throughput.get_available_flops", peak)

    class OfLlama(Timed):
        def __init__(self, clock):
            super().__init__(clock)
            self.wrapped = make_model().train()

        def training_step(self, batch, batch_idx):
            self.clock.now += TRAINING
            return loss_of(self.wrapped(input_ids=batch).logits, batch)

    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        notes, speed = Notes(), Throughput(dtype)
        trainer = make_trainer(speed, logger=notes, log_every_n_steps=2)
        trainer.fit(module := OfLlama(clock))
        rate = TOKENS / (ACCUMULATE * (TRAINING + WAITING))
        utilization = rate * flops_per_token(module.wrapped, 7) / 1e9
        for values in notes.steps.values():
            assert values["train/flops_utilization"] == pytest.approx(utilization)
        assert speed.summary(trainer)["flops_utilization"] == pytest.approx(utilization)
        assert asked.pop() == expected


def gpt2(**changes):
    settings = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**{**settings, **changes}))


def qwen3():
    config = Qwen3Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


@pytest.mark.parametrize("make", [gpt2, qwen3], ids=["tied", "wide heads, untied"])
@pytest.mark.parametrize("length", [8, 64])
def test_flops_against_the_counter_of_torch(make, length):
    model = make()
    model.set_attn_implementation("eager")
    ids = torch.arange(2 * length).view(2, length) % 50
    with FlopCounterMode(display=False) as counter:
        loss_of(model(input_ids=ids).logits, ids).backward()
    counted = counter.get_total_flops() / ids.numel()
    # Vectors, which are added or multiplied one by one, count in the formula alone.
    vectors = 6 * sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert flops_per_token(model, length) - vectors == pytest.approx(counted, rel=2e-3)


def test_flops_are_those_of_the_whole_model_where_it_is_partitioned():
    whole, partitioned = qwen3(), qwen3()
    for parameter in partitioned.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert flops_per_token(partitioned, 8) == flops_per_token(whole, 8)


def test_flops_that_are_not_known():
    config = MixtralConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    assert flops_per_token(MixtralForCausalLM(config), 8) is None
    assert flops_per_token(nn.Linear(2, 2), 8) is None


def test_freezing_is_its_share(clock, monkeypatch):
    """Time passes in the guard alone, a second before and after each step."""

    def passes():
        clock.now += 0.5
        return clock.now

    monkeypatch.setattr(hooks, "perf_counter", passes)
    unseen = property(lambda mask: 0.0, lambda mask, seconds: None)
    monkeypatch.setattr(hooks.GradientMask, "seconds", unseen, raising=False)
    monkeypatch.setattr(audit, "perf_counter", lambda: 0.0)
    region = mixed_region(TinyLM())
    _, speed, trainer = run(clock, RegionFreeze(region, check_base=False, last_step=5))
    summary = speed.summary(trainer)
    # The clock passes before each reading, so that half of what passes is between two.
    assert summary["time/freezing"] == pytest.approx(5 * 2 * 0.5 / summary["seconds"])


def test_seconds_of_a_freeze(monkeypatch):
    """Every reading of the clock is a second after the last: each timed piece takes one."""
    readings = iter(range(10**6))
    for module in (hooks, audit):
        monkeypatch.setattr(module, "perf_counter", lambda: float(next(readings)))
    model, steps = TinyLM(), steps_of_batches(3)
    region, optimizer = mixed_region(model), adamw(model.parameters())
    with freeze(model, optimizer, region, audit_every=2) as handle:
        assert handle.seconds == 0.0
        expected = 0
        for number, batches in enumerate(steps, 1):
            for ids in batches:
                loss_of(model(ids), ids).backward()
                expected += len(region.resolve(model))
            optimizer.step()
            expected += 2 + 2  # the guard; the audit, which steps 1, 2 and 3 have
            optimizer.zero_grad()
            assert handle.seconds == expected, number
        handle.verify()
        assert handle.seconds == expected + 2
    assert handle.seconds == expected + 4, "verified once more on leaving, and kept"


def test_a_profiler_of_the_users_own_stays(clock):
    _, speed, trainer = run(clock, profiler="simple")
    assert type(trainer.profiler).__name__ == "SimpleProfiler"
    assert "time/data" not in speed.summary(trainer)
    assert "time/evaluation" in speed.summary(trainer)


@pytest.mark.parametrize("kind", [dict, BatchEncoding])
def test_batches_that_are_dicts(clock, kind):
    class Dicts(Timed):
        def train_dataloader(self):
            loader = super().train_dataloader()

            class Wrapped(Stream):
                def __iter__(self):
                    for batch in loader:
                        yield kind({"input_ids": batch, "labels": batch})

            return Wrapped()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["input_ids"], batch_idx)

    speed = Throughput()
    trainer = make_trainer(speed)
    trainer.fit(Dicts(clock))
    assert speed.summary(trainer)["tokens"] == STEPS * TOKENS
