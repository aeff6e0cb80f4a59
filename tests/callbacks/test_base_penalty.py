"""The penalty's gradient and value against the formula; what it refuses. Runs: test_variants.py."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from extras_module import ACCUMULATE, Module, fit
from frozen_reference import TinyLM, mixed_region
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from freezetrain.callbacks import BasePenalty, RegionFreeze
from freezetrain.errors import UserError
from freezetrain.regions import Base, fingerprint
from freezetrain.scoring import Scores

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Gradients(L.Callback):
    """What stands in each gradient, before the penalty in the list and after it, and its value."""

    def __init__(self, kept):
        self.kept = kept

    def on_before_optimizer_step(self, trainer, module, optimizer):
        found = {n: p.grad.clone() for n, p in module.wrapped.named_parameters()}
        self.kept.append((module.weights(), found))


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
    trainer = SimpleNamespace(strategy=fitted().strategy, callbacks=[])
    penalty.setup(trainer, module, "fit")
    penalty.on_train_start(trainer, module)
    with torch.no_grad():
        module.wrapped.up.weight.add_(0.5)
    module.log = lambda *_: None
    penalty.on_before_optimizer_step(trainer, module, None)
    expected = 2 * (module.wrapped.up.weight.float() - before.float())
    assert torch.equal(module.wrapped.up.weight.grad, expected.bfloat16())


def fitted():
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def test_refuses_what_cannot_work():
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
