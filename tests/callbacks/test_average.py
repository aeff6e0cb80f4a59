"""The average of one device against torch's; frozen entries in it; its way through checkpoints."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from extras_module import ACCUMULATE, EachStep, Module, Stream, fit
from forked_ranks import run_ranks
from frozen_reference import TinyLM, mixed_region
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn
from two_rank_fits import DECAY

from freezetrain.callbacks import RegionFreeze, WeightAverage
from freezetrain.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Checkpoint directory",
)


class Course(L.Callback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.weights = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.weights:
            self.weights.append(module.weights())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % ACCUMULATE == 0:
            self.weights.append(module.weights())


def reference(course, decay, dtype=torch.float32):
    average = {name: value.to(dtype, copy=True) for name, value in course[0].items()}
    update = get_ema_multi_avg_fn(decay)
    for weights in course[1:]:
        update(list(average.values()), [weights[name].to(dtype) for name in average], None)
    return average


def inside(average, module):
    with average.averaged(module):
        return module.weights()


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.999])
def test_against_torch(decay):
    average, course = WeightAverage(decay), Course()
    module = fit(average, course)
    assert len(course.weights) == 7
    expected, actual = reference(course.weights, decay), inside(average, module)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-8)
        assert not torch.equal(actual[name], course.weights[-1][name]), name
        assert not torch.equal(actual[name], course.weights[0][name]), name


def test_of_sixteen_bit_weights_is_kept_in_32():
    average, course = WeightAverage(0.99), Course()
    module = fit(average, course, precision="bf16-true")
    expected = reference(course.weights, 0.99)
    actual = inside(average, module)
    for name, value in expected.items():
        assert course.weights[-1][name].dtype == torch.bfloat16
        assert torch.equal(actual[name], value.bfloat16()), name
        kept = average._average_model.module.wrapped.get_parameter(name)
        torch.testing.assert_close(kept.detach(), value)


def bits(tensor):
    return tensor.view({4: torch.int32, 8: torch.int64, 2: torch.int16}[tensor.element_size()])


@pytest.mark.parametrize(
    ("dtype", "decay"), [(torch.float32, 0.97), (torch.float64, 0.1), (torch.bfloat16, 0.5)]
)
def test_frozen_entries_are_exact(tmp_path, dtype, decay):
    """In the average, in the checkpoint (the average and the weights) and in the module."""
    module = Module(dtype)
    with torch.no_grad():  # values that a careless formula would change
        values = torch.tensor([-0.0, 1e-40, 3e38, 1 / 3], dtype=torch.float64)
        module.wrapped.down.bias[:4] = values.to(dtype)
    start, region = module.weights(), mixed_region(module.wrapped)
    precision = {torch.bfloat16: "bf16-true", torch.float64: "64-true"}.get(dtype, "32-true")
    average, save = WeightAverage(decay), EachStep(tmp_path, every=6)
    fit(RegionFreeze(region, check_base=False), average, save, module=module, precision=precision)
    checkpoint = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    averaged, weights = (
        {name.removeprefix("wrapped."): value for name, value in checkpoint[key].items()}
        for key in ("state_dict", "current_model_state")
    )
    for actual in (inside(average, module), averaged, weights, module.weights()):
        for frozen in region.resolve(module.wrapped):
            mask, values = frozen.entries.mask(), actual[frozen.name].to(dtype)
            assert torch.equal(bits(values[mask]), bits(start[frozen.name][mask]))
            assert mask.all() or not torch.equal(values, start[frozen.name])


@pytest.mark.parametrize("clamp", [None, 0.25])
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_entries_frozen_later_or_clamped_are_what_they_are_frozen_at(clamp, first, order):
    region, average = mixed_region(TinyLM()), WeightAverage(0.9)
    freeze = RegionFreeze(region, check_base=False, clamp=clamp, first_step=first)
    module = fit(*[freeze, average][::order])
    now, actual = module.weights(), inside(average, module)
    for frozen in region.resolve(module.wrapped):
        mask = frozen.entries.mask()
        assert torch.equal(actual[frozen.name][mask], now[frozen.name][mask]), frozen.name
        if clamp is not None:
            assert (actual[frozen.name][mask] == clamp).all()
        assert mask.all() or not torch.equal(actual[frozen.name], now[frozen.name])


def test_what_is_not_trained_stays():
    module = Module()
    module.wrapped.up.weight.requires_grad_(False)
    average = WeightAverage(0.9)
    fit(average, module=module)
    assert torch.equal(inside(average, module)["up.weight"], Module().wrapped.up.weight)


def test_weights_come_back_also_after_an_exception():
    average = WeightAverage(0.9)
    module = fit(average)
    before = module.weights()

    def fails():
        with average.averaged(module):
            assert not torch.equal(module.weights()["up.weight"], before["up.weight"])
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fails()
    assert all(torch.equal(value, before[name]) for name, value in module.weights().items())


def test_resumes_exactly(tmp_path):
    whole, module = WeightAverage(0.9), Module()
    fit(whole, module=module)
    fit(WeightAverage(0.9), EachStep(tmp_path, every=2), max_steps=2)
    average = WeightAverage(0.9)
    again = fit(average, EachStep(tmp_path), ckpt_path=tmp_path / "step=2.ckpt")
    expected, actual = inside(whole, module), inside(average, again)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_resumes_a_checkpoint_of_before_the_average_was_lightnings(tmp_path):
    """It held the weights as state_dict, and the average in the callback's own state."""
    whole, module = WeightAverage(0.9), Module()
    fit(whole, EachStep(tmp_path, every=2), module=module)
    path = tmp_path / "step=2.ckpt"
    fit(WeightAverage(0.9), EachStep(tmp_path, every=2), max_steps=2)
    checkpoint = torch.load(path, weights_only=True)
    averages = checkpoint["state_dict"]
    del averages["wrapped.head.weight"]  # a tied one once, by its first name
    checkpoint["state_dict"] = checkpoint.pop("current_model_state")
    del checkpoint["averaging_state"]
    checkpoint["callbacks"]["WeightAverage"] = {"decay": 0.9, "average": averages}
    torch.save(checkpoint, path)
    average = WeightAverage(0.9)
    again = fit(average, ckpt_path=path)
    expected, actual = inside(whole, module), inside(average, again)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_is_there_where_nothing_was_left_to_train(tmp_path):
    """As after a kill between the last checkpoint and the export."""
    whole, module = WeightAverage(0.9), Module()
    fit(whole, EachStep(tmp_path, every=6), module=module)
    average = WeightAverage(0.9)
    again = fit(average, EachStep(tmp_path), ckpt_path=tmp_path / "step=6.ckpt")
    assert again.seen == []
    expected, actual = inside(whole, module), inside(average, again)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_a_second_fit_begins_anew():
    average = WeightAverage(0.9)
    first = inside(average, fit(average))
    second = inside(average, fit(average))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_resuming_refuses_another_average_or_none(tmp_path):
    fit(WeightAverage(0.9), EachStep(tmp_path / "with", every=2), max_steps=2)
    fit(EachStep(tmp_path / "without", every=2), max_steps=2)
    with pytest.raises(UserError, match=r"decay 0\.9, got 0\.8; resume with the same"):
        fit(WeightAverage(0.8), ckpt_path=tmp_path / "with" / "step=2.ckpt")
    with pytest.raises(UserError, match="from a checkpoint without an average"):
        fit(WeightAverage(0.9), ckpt_path=tmp_path / "without" / "step=2.ckpt")


def test_refuses_what_cannot_work():
    for decay in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"must be in \(0, 1\)"):
            WeightAverage(decay)
    with pytest.raises(UserError, match="no average before a fit"):
        inside(WeightAverage(0.9), Module())
    for strategy in (object.__new__(DeepSpeedStrategy), ModelParallelStrategy()):
        trainer = SimpleNamespace(strategy=strategy)
        with pytest.raises(UserError, match=f"average weights under {type(strategy).__name__}"):
            WeightAverage(0.9).setup(trainer, Module(), "fit")


def test_training_is_the_same_with_and_without():
    plain, watched = fit().weights(), fit(WeightAverage(0.9)).weights()
    assert all(torch.equal(value, watched[name]) for name, value in plain.items())


def test_lightnings_validation_is_of_the_average():
    class Validated(Module):
        def validation_step(self, batch, batch_idx):
            self.validated = self.weights()

        def val_dataloader(self):
            return Stream()

    average, module = WeightAverage(0.9), Validated()
    fit(average, module=module, val_check_interval=12, limit_val_batches=1)
    expected, now = inside(average, module), module.weights()
    assert all(torch.equal(module.validated[name], value) for name, value in expected.items())
    assert not torch.equal(now["up.weight"], expected["up.weight"])


def test_of_a_tied_weight_is_one():
    average = WeightAverage(0.9)
    module = fit(average)
    with average.averaged(module):
        assert module.wrapped.head.weight is module.wrapped.embedding.weight


def test_two_ranks_average_as_one_would_and_resume(tmp_path):
    region = mixed_region(TinyLM())
    for rank in run_ranks("two_rank_fits:average", tmp_path, group=False):
        assert rank["weights came back"]
        expected = reference(rank["course"], DECAY)
        start, last = rank["course"][0], rank["course"][-1]
        for name, value in rank["averaged"].items():
            assert torch.equal(rank["resumed"][name], value), name
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
        for frozen in region.resolve(TinyLM()):
            mask = frozen.entries.mask()
            averaged = rank["averaged"][frozen.name]
            assert torch.equal(averaged[mask], start[frozen.name][mask]), frozen.name
            assert mask.all() or not torch.equal(averaged, last[frozen.name]), frozen.name
