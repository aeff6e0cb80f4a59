"""RegionFreeze in a LightningModule of one's own, against the model with constants."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from frozen_module import Module, resume, saved_run, trainer
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from freezetrain.callbacks import BasePull, RegionFreeze
from freezetrain.errors import CheckError, UserError
from freezetrain.regions import Base, Region, fingerprint

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*callbacks used to create the checkpoint"
)


def reference_run() -> tuple[Constants, list[Tensor]]:
    reference = Constants(TinyLM(), mixed_region(TinyLM()))
    parameters = reference.parameters()
    return reference, train(reference, parameters, adamw(parameters), steps_of_batches())


def test_trains_as_if_frozen_entries_were_constants() -> None:
    reference, norms = reference_run()
    module, region = Module(), mixed_region(TinyLM())
    trainer(RegionFreeze(region)).fit(module)
    assert_same_training(module.network, reference)
    # The norm that Lightning clips is the norm over trainable entries.
    torch.testing.assert_close(module.norms, norms, rtol=1e-9, atol=0)


def test_manual_optimization() -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch) / 2)
            if batch_idx % 2:
                self.clip_gradients(self.optimizers(), gradient_clip_val=MAX_NORM)
                self.optimizers().step()
                self.optimizers().zero_grad()

    module = Manual()
    freeze = RegionFreeze(mixed_region(TinyLM()))
    trainer(freeze, accumulate_grad_batches=1, gradient_clip_val=None).fit(module)
    assert_same_training(module.network, reference_run()[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bit(precision: str) -> None:
    module = Module(TinyLM().float())
    region = mixed_region(module.network)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    start = {name: p.detach().clone().to(dtype) for name, p in module.network.named_parameters()}
    trainer(RegionFreeze(region), precision=precision).fit(module)
    for frozen in region.resolve(module.network):
        assert frozen.parameter.dtype == dtype
        mask = frozen.entries.mask()
        assert torch.equal(frozen.parameter[mask], start[frozen.name][mask])
        assert mask.all() or not torch.equal(frozen.parameter, start[frozen.name])


def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    # A base is only looked at on a fresh start: later the trainable entries have moved.
    base = Base("tiny", None, fingerprint(TinyLM()))
    region = Region(mixed_region(TinyLM()), base=base)
    path = region.save(tmp_path / "region.safetensors")
    checkpoint = saved_run(tmp_path / "run", RegionFreeze(path))
    resumed, whole = resume(RegionFreeze(path), checkpoint), Module()
    trainer(RegionFreeze(region), max_epochs=2).fit(whole)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_base_is_checked_on_a_fresh_start_after_a_resumed_fit(tmp_path: Path) -> None:
    region = Region(mixed_region(TinyLM()), base=Base("tiny", None, fingerprint(TinyLM())))
    freeze = RegionFreeze(region)
    resume(freeze, saved_run(tmp_path, RegionFreeze(region)))
    with pytest.raises(UserError, match="another model"):
        trainer(freeze).fit(Module(TinyLM(seed=1)))


def test_resuming_with_another_region_or_other_values_is_refused(tmp_path: Path) -> None:
    region = mixed_region(TinyLM())
    checkpoint = saved_run(tmp_path, RegionFreeze(region))
    with pytest.raises(UserError, match="resume with the same region"):
        resume(RegionFreeze(region.random_like(seed=3)), checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["network.down.bias"][0] += 1
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match="not those that the checkpoint was trained with"):
        resume(RegionFreeze(region), checkpoint)


def test_base_is_checked_where_the_checkpoint_was_not_frozen(tmp_path: Path) -> None:
    region = mixed_region(TinyLM())
    checkpoint = saved_run(tmp_path)
    based = Region(region, base=Base("tiny", None, fingerprint(TinyLM())))
    with pytest.raises(UserError, match="another model"):
        resume(RegionFreeze(based), checkpoint)
    resume(RegionFreeze(based, check_base=False), checkpoint)


def test_another_region_is_resumed_with_when_that_is_said(tmp_path: Path) -> None:
    region = mixed_region(TinyLM())
    checkpoint = saved_run(tmp_path, RegionFreeze(region))
    other = region.random_like(seed=3)
    module = resume(RegionFreeze(other, other_region=True), checkpoint)
    middle = torch.load(checkpoint, weights_only=True)["state_dict"]
    for frozen in other.resolve(module):
        mask = frozen.entries.mask()
        assert torch.equal(frozen.parameter[mask], middle[frozen.name][mask])


def test_checkpoints_written_after_the_fit_hold_the_values_too(tmp_path: Path) -> None:
    region, run = mixed_region(TinyLM()), trainer(RegionFreeze(mixed_region(TinyLM()), clamp=0.25))
    run.fit(Module())
    run.save_checkpoint(tmp_path / "last.ckpt")
    # Clamping again would be to another value.
    module = resume(RegionFreeze(region, clamp=0.5), tmp_path / "last.ckpt")
    for frozen in region.resolve(module):
        assert (frozen.parameter[frozen.entries.mask()] == 0.25).all()
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state["state_dict"]["network.down.bias"][0] += 1
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not those that the checkpoint was trained with"):
        resume(RegionFreeze(region), tmp_path / "last.ckpt")


def test_checkpoint_is_known_however_the_module_is_named(tmp_path: Path) -> None:
    region = Region(mixed_region(TinyLM()), base=Base("tiny", None, fingerprint(TinyLM())))
    checkpoint = saved_run(tmp_path, RegionFreeze(region))
    resume(RegionFreeze(region, module="network"), checkpoint)
    with pytest.raises(UserError, match="resume with the same region"):
        resume(RegionFreeze(region.random_like(seed=3), module="network"), checkpoint)


def test_clamped_region_is_zero_and_the_rest_trains(tmp_path: Path) -> None:
    region = mixed_region(TinyLM())
    module, freeze = Module(), RegionFreeze(region, clamp=0.0)
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    trainer(freeze, keep).fit(module)
    clamped = TinyLM()
    with torch.no_grad():
        for frozen in region.resolve(clamped):
            frozen.entries.fill(frozen.parameter, 0.0)
    reference = Constants(clamped, region)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    assert_same_training(module.network, reference)
    resumed, whole = resume(RegionFreeze(region, clamp=0.0), tmp_path / "last.ckpt"), Module()
    trainer(RegionFreeze(region, clamp=0.0), max_epochs=2).fit(whole)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Record(L.Callback):
    """One frozen weight before each batch, and after the last."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.values.append(pl_module.network.down.bias[0].item())

    def on_train_end(self, trainer, pl_module) -> None:
        self.values.append(pl_module.network.down.bias[0].item())


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 4), (3, None)])
def test_freeze_holds_from_one_step_to_another(first: int, last: int | None) -> None:
    record = Record()
    freeze = RegionFreeze(mixed_region(TinyLM()), first_step=first, last_step=last)
    trainer(freeze, record).fit(Module())
    at_step = record.values[::2]  # two batches a step
    assert len(at_step) == 7
    for step, (before, after) in enumerate(pairwise(at_step)):
        frozen = step >= first and (last is None or step < last)
        assert (before == after) == frozen, step


def test_scheduled_freeze_goes_on_after_a_resume(tmp_path: Path) -> None:
    # Six steps an epoch: the checkpoint is written before the freeze begins, or while it holds.
    for first, last in [(8, None), (3, 9)]:
        place, record = tmp_path / str(first), Record()
        region = mixed_region(TinyLM())

        def freeze(first=first, last=last, region=region) -> RegionFreeze:
            return RegionFreeze(region, first_step=first, last_step=last)

        checkpoint = saved_run(place, freeze())
        resumed, whole = resume(freeze(), checkpoint), Module()
        trainer(freeze(), record, max_epochs=2).fit(whole)
        for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        kept = record.values[::2][first : (last or 12) + 1]
        assert len(set(kept)) == 1
        assert len(set(record.values)) > 2


def test_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="0 <= first_step < last_step, got 4 and 4"):
        RegionFreeze(mixed_region(TinyLM()), first_step=4, last_step=4)


class MeddleAt(L.Callback):
    """Writes to a frozen entry once ``step`` steps have been made."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
        if trainer.global_step == self.step:
            pl_module.network.down.bias.data[0] += 1


def test_moved_entry_stops_the_run_and_is_not_saved(tmp_path: Path) -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()))
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2)
    with pytest.raises(CheckError, match=r"network\.down\.bias"):
        trainer(freeze, MeddleAt(2), keep).fit(Module())
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckError, match=r"network\.down\.bias"):
        trainer(freeze, MeddleAt(2)).fit(Module())


def test_a_freeze_that_ends_before_training_does_is_verified_as_it_ends() -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()), last_step=2, audit_every=0)
    with pytest.raises(CheckError, match=r"network\.down\.bias"):
        trainer(freeze, MeddleAt(2)).fit(Module())


@pytest.mark.parametrize("fails", [False, True])
def test_freeze_ends_with_the_fit(fails: bool) -> None:
    class Fails(Module):
        def on_train_batch_end(self, *_) -> None:
            if fails and self.global_step == 2:
                raise RuntimeError("out of memory")

    freeze, module = RegionFreeze(mixed_region(TinyLM())), Fails()
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            trainer(freeze).fit(module)
    else:
        trainer(freeze).fit(module)
    assert freeze.handle is None
    (batch,) = steps_of_batches(1, 1)[0]
    module.zero_grad()
    module.training_step(batch).backward()
    assert module.network.down.bias.grad.any()


def test_strategies_that_cannot_be_guaranteed_are_refused_by_name() -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()))
    stand_in = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="cannot guarantee a freeze under FSDPStrategy"):
        freeze.setup(stand_in, Module(), "fit")
    freeze.setup(stand_in, Module(), "validate")
    with pytest.raises(UserError, match="cannot guarantee a pull under FSDPStrategy"):
        BasePull(1.0, "base").setup(stand_in, Module(), "fit")


def test_a_pull_refuses_a_model_in_its_own_words() -> None:
    flattened = type("FullyShardedDataParallel", (nn.Sequential,), {})(TinyLM())
    stand_in = SimpleNamespace(strategy=SimpleNamespace(model=flattened))
    with pytest.raises(UserError, match=r"^cannot pull under FullyShardedDataParallel"):
        BasePull(1.0, "base").on_train_start(stand_in, Module())


class TwoOptimizers(Module):
    """Muon for matrices and AdamW for the rest, each stepped after every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return muon_and_adamw(dict(self.network.named_parameters()))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch) / 2)
        if batch_idx % 2:
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None: ...


def muon_and_adamw(named: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    matrices = [named.pop("up.weight"), named.pop("down.weight")]
    muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)
    return [muon, adamw(list(named.values()))]


def manual(*callbacks: L.Callback, **options) -> L.Trainer:
    return trainer(*callbacks, accumulate_grad_batches=1, gradient_clip_val=None, **options)


def test_several_optimizers_train_as_if_frozen_entries_were_constants() -> None:
    module, region = TwoOptimizers(), mixed_region(TinyLM())
    reference = Constants(TinyLM(), region, flat=False)
    optimizers = muon_and_adamw(dict(reference.free))
    for batches in steps_of_batches():
        for batch in batches:
            (loss_of(reference(batch), batch) / len(batches)).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), MAX_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    manual(RegionFreeze(region, audit_every=1)).fit(module)
    for name, parameter in module.network.named_parameters():
        mask, expected = reference.masks[name], reference.weights()[name]
        assert torch.equal(parameter[mask], reference.constants[name][mask])
        torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-11)


def test_steps_of_several_optimizers_are_counted_as_lightning_counts_them() -> None:
    """Two a round: the freeze holds in rounds 2 and 3 of six."""
    region = mixed_region(TinyLM())

    def freeze() -> RegionFreeze:
        return RegionFreeze(region, first_step=4, last_step=8, audit_every=1)

    record = Record()
    manual(freeze(), record).fit(TwoOptimizers())
    moved = [before != after for before, after in pairwise(record.values[::2])]
    assert moved == [True, True, False, False, True, True]
    with pytest.raises(UserError, match="first_step=4 lies beyond the run's 4 steps"):
        manual(freeze(), max_steps=4).fit(TwoOptimizers())
    with pytest.raises(CheckError, match=r"step 7: network\.down\.bias"):
        manual(freeze(), MeddleAt(6)).fit(TwoOptimizers())


def test_region_of_another_model_is_refused() -> None:
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(UserError, match=r"0\.weight"):
        trainer(RegionFreeze(Region.tensors(other, ["0.weight"]))).fit(Module())


def test_module_says_which_of_two_models_is_meant() -> None:
    class Distill(Module):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({"student": TinyLM(), "teacher": TinyLM(seed=1)}))

        def training_step(self, batch: Tensor) -> Tensor:
            return sum(loss_of(model(batch), batch) for model in self.network.values())

        def on_before_optimizer_step(self, optimizer) -> None: ...

    region = Region.tensors(TinyLM(), ["up.weight"])
    with pytest.raises(UserError, match="pass the one that is meant"):
        trainer(RegionFreeze(region)).fit(Distill())
    with pytest.raises(UserError, match=r"no module 'network\.studen' .*'network\.student'"):
        trainer(RegionFreeze(region, module="network.studen")).fit(Distill())
    module = Distill()
    trainer(RegionFreeze(region, module="network.student")).fit(module)
    assert torch.equal(module.network["student"].up.weight, TinyLM().up.weight)
    assert not torch.equal(module.network["teacher"].up.weight, TinyLM(seed=1).up.weight)


def test_messages_count_the_steps_of_the_whole_run(tmp_path: Path) -> None:
    region = mixed_region(TinyLM())
    checkpoint = saved_run(tmp_path, RegionFreeze(region))  # of six steps
    freeze = RegionFreeze(region, audit_every=1)
    with pytest.raises(CheckError, match=r"step 10: network\.down\.bias\[0\]"):
        trainer(freeze, MeddleAt(9), max_epochs=2).fit(
            Module(), ckpt_path=checkpoint, weights_only=True
        )


def test_freeze_beyond_the_end_is_refused() -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()), first_step=5)
    with pytest.raises(UserError, match="first_step=5 lies beyond the run's 5 steps"):
        trainer(freeze, max_steps=5).fit(Module())
