"""A user's LightningModule, its trainer, and a run that is saved and resumed."""

from pathlib import Path

import lightning as L
import torch
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, steps_of_batches
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from freezetrain.callbacks import RegionFreeze


class Module(L.LightningModule):
    """A user's module: the model under an attribute of any name, its own data and optimizer."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.network = model or TinyLM()
        self.norms: list[Tensor] = []

    def training_step(self, batch: Tensor) -> Tensor:
        return loss_of(self.network(batch), batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.network.parameters()]
        self.norms.append(nn.utils.get_total_norm(gradients))

    def train_dataloader(self) -> DataLoader:
        batches = [batch for batches in steps_of_batches() for batch in batches]
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())


def trainer(*callbacks: L.Callback, **options) -> L.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": MAX_NORM,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def saved_run(folder: Path, *callbacks: L.Callback) -> Path:
    """The first of two epochs; return the checkpoint."""
    keep = ModelCheckpoint(dirpath=folder, save_last=True)
    trainer(*callbacks, keep).fit(Module())
    return folder / "last.ckpt"


def resume(freeze: RegionFreeze, checkpoint: Path) -> Module:
    """The second epoch, from the checkpoint."""
    module = Module()
    trainer(freeze, max_epochs=2).fit(module, ckpt_path=checkpoint, weights_only=True)
    return module
