"""RegionFreeze beside averages of weights, in either order: frozen entries of all that is kept."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from frozen_module import Module, resume, trainer
from frozen_reference import TinyLM, mixed_region, steps_of_batches
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from freezetrain.callbacks import RegionFreeze, WeightAverage
from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import compare_weights, freeze

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:.*Swapping scheduler",
    "ignore:.*Checkpoint directory",
)


DECAY = 0.3  # moves a quarter of the weights that it averages with themselves


class ByTwos(WeightAveraging):
    """Of every second step, all at once by torch, from the third on."""

    def __init__(self) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def should_update(self, step_idx=None, epoch_idx=None) -> bool:
        return step_idx is not None and step_idx >= 2 and step_idx % 2 == 0


def swa_that_rounds() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(
        1e-2,
        swa_epoch_start=1,
        avg_fn=lambda average, weights, _: DECAY * average + (1 - DECAY) * weights,
    )


AVERAGES = {
    "EMA": lambda: EMAWeightAveraging(decay=DECAY),
    "EMA on another device": lambda: EMAWeightAveraging("cpu", decay=DECAY, update_every_n_steps=3),
    "EMA of epochs": lambda: EMAWeightAveraging(
        update_every_n_steps=0, update_starting_at_epoch=0, decay=DECAY
    ),
    "subclass": ByTwos,
    "plain average": WeightAveraging,
    "SWA": swa_that_rounds,
    "ours": lambda: WeightAverage(0.9),
}


MORE = ("EMA on another device", "EMA of epochs", "plain average", "ours")


class Validated(Module):
    """Says whether the frozen entries were as at the start in each validation."""

    def __init__(self, clamp: float | None = None) -> None:
        super().__init__()
        self.start = weights(self.network)
        self.clamp = clamp
        self.moved: list[int] = []

    def val_dataloader(self) -> DataLoader:
        return DataLoader(steps_of_batches(1, 1)[0], batch_size=None)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.moved.append(moved(self.start, weights(self.network), self.clamp))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(start: dict[str, Tensor], now: dict[str, Tensor], clamp: float | None = None) -> int:
    return compare_weights(start, now, mixed_region(TinyLM()), clamp=clamp).moved


def stored(checkpoint: dict, start: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: checkpoint["state_dict"][f"network.{name}"] for name in start}


@pytest.mark.parametrize("first", [True, False], ids=["freeze first", "freeze last"])
@pytest.mark.parametrize(
    "average",
    [
        pytest.param(kind, id=name, marks=[pytest.mark.exhaustive] if name in MORE else [])
        for name, kind in AVERAGES.items()
    ],
)
def test_frozen_entries_of_averages_are_put_back(average, first: bool, tmp_path: Path) -> None:
    clamp = 0.1 if first else None
    freeze = RegionFreeze(mixed_region(TinyLM()), clamp=clamp)
    averaging = average()
    two = [freeze, averaging] if first else [averaging, freeze]
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=2, filename="{step}")
    end = ModelCheckpoint(tmp_path, save_last=True, filename="end-{epoch}")
    module = Validated(clamp)
    options = {"max_epochs": 2, "val_check_interval": 3, "num_sanity_val_steps": 0}
    trainer(*two, keep, end, **options).fit(module)
    assert moved(module.start, weights(module.network), clamp) == 0
    assert len(module.moved) == 8
    assert not any(module.moved)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 8
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert moved(module.start, stored(checkpoint, module.start), clamp) == 0, file.name
    if clamp is None:
        averages = averaging._average_model
        averages = getattr(averages, "module", averages)
        assert moved(module.start, weights(averages.network)) == 0
        for name, value in averages.network.named_parameters():  # not what the module itself had
            assert not torch.equal(value, module.start[name]) or name == "down.bias"
        resumed = resume(RegionFreeze(mixed_region(TinyLM())), tmp_path / "step=4.ckpt")
        assert moved(module.start, weights(resumed.network)) == 0


class Foreign(L.Callback):
    """An average of another making, which no one can know: swapped in where ``event`` says."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.swap)

    def on_train_start(self, trainer, module) -> None:
        self.average = AveragedModel(module.network, avg_fn=get_ema_avg_fn(DECAY))
        self.average.update_parameters(module.network)

    def on_before_zero_grad(self, trainer, module, optimizer) -> None:
        self.average.update_parameters(module.network)

    def swap(self, trainer, module, *checkpoint) -> None:
        if checkpoint and isinstance(checkpoint[0], dict):
            checkpoint[0]["state_dict"] = {
                f"network.{name}": value for name, value in self.average.module.state_dict().items()
            }
        else:
            module.network.load_state_dict(self.average.module.state_dict())


@pytest.mark.parametrize("first", [True, False], ids=["freeze first", "freeze last"])
@pytest.mark.parametrize(
    ("event", "what"),
    [
        ("on_train_end", r"step 6: network\.\S+ is frozen and changed .* an average of weights"),
        ("on_save_checkpoint", "that is about to be written holds other values of network"),
    ],
)
def test_an_average_that_is_not_known_does_not_pass(
    event: str, what: str, first: bool, tmp_path: Path
) -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()))
    two = [freeze, Foreign(event)] if first else [Foreign(event), freeze]
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=6)
    with pytest.raises(CheckError, match=what):
        trainer(*two, *([keep] if event == "on_save_checkpoint" else [])).fit(Module())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_state_dict_that_is_written_is_verified(weights_only: bool, tmp_path: Path) -> None:
    class Rounds(Module):
        def on_save_checkpoint(self, checkpoint: dict) -> None:
            checkpoint["state_dict"] = {k: v.half() for k, v in checkpoint["state_dict"].items()}

    region = mixed_region(TinyLM())
    for module, options in (("network", {}), (None, {"clamp": 0.5})):
        freeze = RegionFreeze(region, module=module, **options)
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_weights_only=weights_only)
        run = trainer(freeze, keep)
        if options:  # a value that fp16 holds, as all the base's would be of a base in fp16
            run.fit(Rounds())
            assert list(tmp_path.iterdir())
        else:
            with pytest.raises(CheckError, match=r"written holds other values of \S*embedding"):
                run.fit(Rounds())
            assert not list(tmp_path.iterdir())
        assert "save_checkpoint" not in vars(run.strategy)
        run.save_checkpoint(tmp_path / "after.ckpt")


def test_averages_of_sharded_weights_are_refused_before_training() -> None:
    freeze = RegionFreeze(mixed_region(TinyLM()))
    average = EMAWeightAveraging()
    average._average_model = AveragedModel(Module())
    run = SimpleNamespace(callbacks=[freeze, average], strategy=ModelParallelStrategy())
    with pytest.raises(
        UserError, match="beside EMAWeightAveraging cannot average weights under ModelParallel"
    ):
        freeze._refuse_averages(run)


def test_a_handle_puts_frozen_entries_into_an_average_of_any_loop() -> None:
    model, region = TinyLM(), mixed_region(TinyLM())
    start = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = freeze(model, optimizer, region)
    averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(DECAY))
    plain = deepcopy(averaged)
    copy = deepcopy(model)
    for (batch,) in steps_of_batches(4, 1):
        model(batch).square().mean().backward()
        optimizer.step()
        for average in (averaged, plain):
            average.update_parameters(model)
        handle.put_into(averaged)
        for name, value in copy.named_parameters():  # as timm's, by hand
            value.data = DECAY * value.data + (1 - DECAY) * model.get_parameter(name).detach()
    assert moved(start, weights(averaged.module)) == 0
    assert handle.verify(averaged) == handle.count
    assert moved(start, weights(plain.module)) > 0
    with pytest.raises(CheckError, match=r"the copy of the model holds other values of embedding"):
        handle.verify(plain)
    with pytest.raises(CheckError, match="the copy of the model holds other values"):
        handle.verify(copy.state_dict())
    handle.put_into(copy)
    assert handle.verify(copy.state_dict()) == handle.count
    for name, value in averaged.module.named_parameters():  # trainable entries are the average's
        mask = region.masks().get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], plain.module.get_parameter(name)[~mask])
    with pytest.raises(UserError, match=r"in torch\.float16, which rounds what is frozen"):
        handle.put_into(deepcopy(model).half())
    with pytest.raises(UserError, match=r"no parameter"):
        handle.put_into(nn.Linear(2, 2))
    with pytest.raises(CheckError, match=r"holds up\.weight in shape \[3\]"):
        handle.verify({"up.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"no parameter with frozen entries, such as 'embedding"):
        handle.verify({"model.embedding": torch.zeros(3)})
    handle.remove()
    with pytest.raises(UserError, match="was removed"):
        handle.put_into(averaged)
