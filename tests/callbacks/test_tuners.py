"""Lightning's learning-rate and batch-size finders, which save, train and restore before a fit."""

import lightning as L
import pytest
import torch
from frozen_reference import VOCABULARY, TinyLM, mixed_region
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor
from torch.utils.data import DataLoader

from freezetrain.callbacks import (
    BaseAverage,
    BasePenalty,
    ForgettingBoard,
    ForgettingBrake,
    ForgettingTracker,
    RegionFreeze,
    Throughput,
    WeightAverage,
)
from freezetrain.evaluation import Document, evaluate

pytestmark = pytest.mark.filterwarnings("ignore")
DOCUMENTS = {
    "old": [Document([1, 5, 2, 9, 3, 3, 4], 12)],
    "new": [Document([2, 2, 7, 1, 0], 9)],
}


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Wrapped()
        self.lr, self.batch_size = 1e-3, 2

    def training_step(self, ids: Tensor) -> Tensor:
        logits = self.model(ids)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)

    def train_dataloader(self) -> DataLoader:
        source = torch.Generator().manual_seed(0)
        return DataLoader(torch.randint(VOCABULARY, (64, 7), generator=source), self.batch_size)


class Wrapped(TinyLM):
    """In fp32, and called as transformers' models are; it gives plain logits."""

    def __init__(self) -> None:
        super().__init__()
        self.float()

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids)


def finder(kind: str) -> L.Callback:
    if kind == "learning rate":
        return LearningRateFinder(num_training_steps=16)
    return BatchSizeFinder(steps_per_trial=2, max_trials=2, init_val=2)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("action", ["select", "stop"])
@pytest.mark.parametrize("kind", ["learning rate", "batch size"])
def test_a_run_after_a_finder_starts_from_the_base(tmp_path, kind, action, first):
    module = Module()
    base = {name: value.detach().clone() for name, value in module.model.named_parameters()}
    region = mixed_region(module.model)
    figures = evaluate(module.model, DOCUMENTS, max_length=8)
    tracker = ForgettingTracker(
        documents=DOCUMENTS, target="new", every_n_steps=2, max_length=8, table=False,
        results_path=tmp_path / "forgetting.json",
    )  # fmt: skip
    if action == "select":
        brake = ForgettingBrake(tracker, {"old": 9.0}, "select", tmp_path / "kept")
        more = [BasePenalty(0.1), Throughput(None)]
    else:
        brake = ForgettingBrake(tracker, {"old": 9.0})
        more = [WeightAverage(0.9), BaseAverage(0.5)]
    ours = [tracker, brake, RegionFreeze(region), *more, ForgettingBoard(tracker, brake, {})]
    callbacks = [finder(kind), *ours] if first else [*ours, finder(kind)]
    L.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
        default_root_dir=tmp_path,
    ).fit(module)  # fmt: skip
    assert [e.step for e in tracker.history.evaluations] == [0, 2, 4]
    assert tracker.history.base.figures == figures
    for name, entries in region.items():
        mask = entries.mask()
        assert torch.equal(module.model.get_parameter(name)[mask], base[name][mask])
    assert (module.lr != 1e-3) == (kind == "learning rate")
