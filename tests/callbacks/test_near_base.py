"""Average with the base and penalty on leaving it, against formulas. Runs: test_variants.py."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from extras_module import ACCUMULATE, EachStep, Module, fit
from frozen_reference import TinyLM, mixed_region
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from freezetrain.callbacks import BaseAverage, BasePenalty, RegionFreeze
from freezetrain.errors import UserError
from freezetrain.regions import Base, fingerprint
from freezetrain.scoring import Scores

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
    end, actual = module.weights(), inside(average, module)
    for name, value in actual.items():
        expected = (1 - share) * start[name].double() + share * end[name].double()
        tolerance = {torch.bfloat16: 4e-3}.get(dtype, 1e-6)
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=1e-7)
        still = bits(end[name]) == bits(start[name])
        assert torch.equal(bits(value)[still], bits(start[name])[still]), name
        assert still.all() or not torch.equal(value, end[name])
    for frozen in region.resolve(module.wrapped):
        mask = frozen.entries.mask()
        assert torch.equal(bits(actual[frozen.name])[mask], bits(start[frozen.name])[mask])


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
    for actual in (inside(average, again), inside(idle, done)):
        assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_an_average_refuses_what_cannot_work():
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


class Gradients(L.Callback):
    """What stands in each gradient, before the penalty in the list and after it, and its value."""

    def __init__(self, kept):
        self.kept = kept

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = {n: p.grad.clone() for n, p in module.wrapped.named_parameters()}
        self.kept.append((module.weights(), gradients))


class Values(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % ACCUMULATE == 0:
            self.values.append(trainer.callback_metrics["train/penalty"].item())


def scores_of(model, zero=False):
    """Of two parameters; one is tied, by its second name."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        name: torch.rand(model.get_parameter(name).shape, generator=generator) * (not zero)
        for name in ("up.weight", "head.weight")
    }
    return Scores(tensors, Base(None, None, fingerprint(model)), {"method": "fisher", "batches": 1})


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_adds_its_gradient_once_a_step(weighed, frozen):
    module = Module()
    base, region = module.weights(), mixed_region(module.wrapped)
    masks = {f.name: f.entries.mask() for f in region.resolve(module.wrapped)} if frozen else {}
    before, after, values = [], [], Values()
    penalty = BasePenalty(3.0, scores_of(module.wrapped) if weighed else None)
    freeze = [RegionFreeze(region, check_base=False, clamp=0.5)] if frozen else []
    fit(*freeze, Gradients(before), penalty, Gradients(after), values, module=module)
    assert len(before) == len(after) == len(values.values) == 6
    scores = scores_of(TinyLM().float())
    mean = sum(v.sum() for v in scores.values()) / sum(v.numel() for v in scores.values())
    importance = {"up.weight": "up.weight", "embedding.weight": "head.weight"}
    for (weights, plain), (_, pulled), value in zip(before, after, values.values, strict=True):
        total = 0.0
        for name, gradient in plain.items():
            factor = torch.ones_like(gradient)
            if weighed:
                factor = scores[importance[name]] / mean if name in importance else 0 * factor
            if name in masks:
                factor = factor.masked_fill(masks[name], 0.0)
            moved = weights[name] - base[name]
            torch.testing.assert_close(pulled[name], gradient + 3.0 * factor * moved)
            total += (1.5 * factor * moved.square()).sum().item()
        assert value == pytest.approx(total, rel=1e-5, abs=1e-12)
    assert values.values[0] == 0
    assert values.values[-1] > 1e-3


def test_pulls_what_the_loss_does_not_reach():
    """A parameter without a gradient, and one whose base is in 16 bits."""
    module = Module(torch.bfloat16)
    module.wrapped.up.weight.grad = None
    penalty, before = BasePenalty(2.0), module.weights()["up.weight"]
    trainer = fitted()
    penalty.setup(trainer, module, "fit")
    penalty.on_train_start(trainer, module)
    with torch.no_grad():
        module.wrapped.up.weight.add_(0.5)
    module.log = lambda *_, **__: None
    # Each optimizer has its own turn, for what it holds.
    for held in (module.wrapped.up, module.wrapped.down):
        penalty.on_before_optimizer_step(trainer, module, torch.optim.SGD(held.parameters()))
    expected = 2 * (module.wrapped.up.weight.float() - before.float())
    assert torch.equal(module.wrapped.up.weight.grad, expected.bfloat16())


def fitted():
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def test_a_penalty_refuses_what_cannot_work():
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="strength of a penalty must be 0 or more"):
            BasePenalty(strength)
    for strategy in (object.__new__(DeepSpeedStrategy), ModelParallelStrategy()):
        trainer = SimpleNamespace(strategy=strategy)
        with pytest.raises(UserError, match=f"BasePenalty .* under {type(strategy).__name__}"):
            BasePenalty(1.0).setup(trainer, Module(), "fit")


def test_refuses_importances_of_another_model():
    good = scores_of(Module().wrapped)
    other = Scores(dict(good), Base("other", None, "0" * 64))
    unknown = Scores({**good, "sideways.weight": torch.ones(2)})
    shaped = Scores({**good, "up.weight": torch.ones(3, 3)})
    for scores, said in (
        (other, "the scores were made for another model, other with the fingerprint 0000"),
        (unknown, "name parameters that Module lacks"),
        (shaped, r"'up.weight' of shape \[3, 3\], the model of shape \[10, 6\]"),
        (scores_of(Module().wrapped, zero=True), "expected scores with a mean above 0"),
    ):
        with pytest.raises(UserError, match=said):
            fit(BasePenalty(1.0, scores))
