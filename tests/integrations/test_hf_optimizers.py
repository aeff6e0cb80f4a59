"""RegionFreezeCallback beside a container of several optimizers, and beside averages of weights."""

from pathlib import Path

import pytest
import torch
from hf_runs import trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from trainer_reference import ACCUMULATE, ROWS, llama, llama_region, rows, weights_of
from transformers import TrainerCallback

from freezetrain.errors import CheckError
from freezetrain.freezing import compare_weights, freeze
from freezetrain.integrations.hf import RegionFreezeCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


class MultiOptimizer(Optimizer):
    """Several as one for the Trainer, as users write it: groups are shared, states are theirs."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def step(self, closure=None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def muon_and_adamw(model: nn.Module) -> MultiOptimizer:
    blocks = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not block for block in blocks)]
    muon = torch.optim.Muon(blocks, lr=1e-2, weight_decay=0.1)
    return MultiOptimizer([muon, torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.1)])


def run(folder: Path, *callbacks: TrainerCallback, **options) -> nn.Module:
    model = llama()
    made = trainer(model, folder, *callbacks, steps=4, **options)
    made.optimizer = muon_and_adamw(model)
    made.train()
    return model


def test_a_container_of_optimizers_is_one_for_the_callback(tmp_path: Path) -> None:
    region, start = llama_region(llama()), weights_of(llama())
    saves = {"save_strategy": "steps", "save_steps": 2, "max_grad_norm": 0.0}
    whole = run(tmp_path, RegionFreezeCallback(region, audit_every=1), **saves)
    assert compare_weights(start, weights_of(whole), region).moved == 0
    for step in (2, 4):
        stored = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        assert compare_weights(start, stored, region).moved == 0
    # As two in a loop of one's own, without the Trainer.
    model = llama()
    both = muon_and_adamw(model).optimizers
    with freeze(model, both, region):
        for number, batch in enumerate(rows().split(ROWS)[: 4 * ACCUMULATE], start=1):
            (model(input_ids=batch, labels=batch).loss / ACCUMULATE).backward()
            if number % ACCUMULATE == 0:
                for optimizer in both:
                    optimizer.step()
                    optimizer.zero_grad()
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.exhaustive
def test_steps_of_a_container_are_the_trainers(tmp_path: Path) -> None:
    class Meddle(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_) -> None:
            if state.global_step == 2:
                model.model.norm.weight.data[0] += 1

    region = llama_region(llama())
    freezing = RegionFreezeCallback(region, first_step=1, audit_every=1)
    with pytest.raises(CheckError, match=r"step 3: model\.norm\.weight\[0\]"):
        run(tmp_path, freezing, Meddle())


class Average(TrainerCallback):
    """An average of the weights: what checkpoints hold, and what the model holds in the end."""

    def __init__(self, freezing: RegionFreezeCallback | None) -> None:
        self.freezing = freezing
        self.kept: dict[str, Tensor] | None = None

    def on_train_begin(self, args, state, control, model, **_) -> None:
        self.average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9))
        self.average.update_parameters(model)

    def on_step_end(self, args, state, control, model, **_) -> None:
        self.average.update_parameters(model)
        if self.freezing is not None:
            self.freezing.handle.put_into(self.average)
        if control.should_save:
            self.kept = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(self.average.module.state_dict())

    def on_save(self, args, state, control, model, **_) -> None:
        model.load_state_dict(self.kept)

    def on_train_end(self, args, state, control, model, **_) -> None:
        model.load_state_dict(self.average.module.state_dict())


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(True, id="freeze first"),
        pytest.param(False, id="freeze last", marks=pytest.mark.exhaustive),
    ],
)
def test_averages(first: bool, tmp_path: Path) -> None:
    region, start = llama_region(llama()), weights_of(llama())
    freezing = RegionFreezeCallback(region)
    for keeps in (True, False):
        average = Average(freezing if keeps else None)
        two = [freezing, average] if first else [average, freezing]
        saves = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 4}
        if keeps:
            model = run(tmp_path, *two, **saves)
            assert compare_weights(start, weights_of(model), region).moved == 0
            stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
            assert compare_weights(start, stored, region).moved == 0
        else:  # found out as a checkpoint holds it, in either order
            with pytest.raises(CheckError, match=r"step 2: .* an average of weights"):
                run(tmp_path / "plain", *two, **saves)
        freezing.end()
