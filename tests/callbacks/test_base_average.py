"""Between the base and the trained weights: against the formula, with entries that did not move."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from extras_module import EachStep, Module, fit
from frozen_reference import mixed_region
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from freezetrain.callbacks import BaseAverage, RegionFreeze
from freezetrain.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Checkpoint directory",
)


def inside(average, module):
    with average.averaged(module):
        return module.weights()


def bits(tensor):
    return tensor.view({4: torch.int32, 8: torch.int64, 2: torch.int16}[tensor.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.75])
def test_is_on_the_line_and_frozen_entries_are_exact(dtype, share):
    module, average = Module(dtype), BaseAverage(share)
    with torch.no_grad():  # values that a careless formula would change
        values = torch.tensor([-0.0, 1e-40, -1e-30, 1 / 3], dtype=torch.float64)
        module.wrapped.down.bias[:4] = values.to(dtype)
    start, region = module.weights(), mixed_region(module.wrapped)
    precision = {torch.bfloat16: "bf16-true", torch.float64: "64-true"}.get(dtype, "32-true")
    fit(RegionFreeze(region, check_base=False), average, module=module, precision=precision)
    end, found = module.weights(), inside(average, module)
    for name, value in found.items():
        expected = (1 - share) * start[name].double() + share * end[name].double()
        tolerance = {torch.bfloat16: 4e-3}.get(dtype, 1e-6)
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=1e-7)
        still = bits(end[name]) == bits(start[name])
        assert torch.equal(bits(value)[still], bits(start[name])[still]), name
        assert still.all() or not torch.equal(value, end[name])
    for frozen in region.resolve(module.wrapped):
        mask = frozen.entries.mask()
        assert torch.equal(bits(found[frozen.name])[mask], bits(start[frozen.name])[mask])


def test_weights_come_back_also_after_an_exception():
    average = BaseAverage(0.5)
    module = fit(average)
    before = module.weights()

    def fails():
        with average.averaged(module):
            assert not torch.equal(module.weights()["up.weight"], before["up.weight"])
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fails()
    assert all(torch.equal(value, before[name]) for name, value in module.weights().items())


def test_the_base_is_that_of_the_whole_run(tmp_path):
    """Also where the run resumes, and where nothing was left to train."""
    whole = BaseAverage(0.5)
    expected = inside(whole, fit(whole))
    fit(BaseAverage(0.5), EachStep(tmp_path, every=2), max_steps=2)
    average = BaseAverage(0.5)
    save = EachStep(tmp_path, every=6)
    again = fit(average, save, ckpt_path=tmp_path / "step=2.ckpt")
    idle = BaseAverage(0.5)
    done = fit(idle, EachStep(tmp_path), ckpt_path=tmp_path / "step=6.ckpt")
    assert done.seen == []
    for found in (inside(average, again), inside(idle, done)):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_refuses_what_cannot_work():
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"must be in \(0, 1\)"):
            BaseAverage(share)
    with pytest.raises(UserError, match="no base before a fit"):
        inside(BaseAverage(0.5), Module())
    with pytest.raises(UserError, match="LightningModule to have its trainable parameters"):
        BaseAverage(0.5).setup(
            SimpleNamespace(strategy=SingleDeviceStrategy()), L.LightningModule(), "fit"
        )
    for strategy in (object.__new__(DeepSpeedStrategy), ModelParallelStrategy()):
        trainer = SimpleNamespace(strategy=strategy)
        with pytest.raises(UserError, match=f"BaseAverage .* under {type(strategy).__name__}"):
            BaseAverage(0.5).setup(trainer, Module(), "fit")
