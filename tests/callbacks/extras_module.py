"""A small module that trains on a resumable stream, for the callbacks that end and watch runs."""

from pathlib import Path

import lightning as L
import torch
from frozen_reference import VOCABULARY, TinyLM, adamw, loss_of
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

STEPS, ACCUMULATE = 6, 2


class Stream:
    """``STEPS`` steps of ``ACCUMULATE`` micro-batches [4, 7], from the one that is next."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(1)
        shape = (STEPS * ACCUMULATE, 4, 7)
        self.batches = torch.randint(VOCABULARY, shape, generator=source)
        self.next = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        while self.next < len(self):
            self.next += 1
            yield self.batches[self.next - 1]

    def state_dict(self) -> dict:
        return {"next": self.next}

    def load_state_dict(self, state: dict) -> None:
        self.next = state["next"]


class Module(L.LightningModule):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.wrapped = TinyLM().to(dtype)
        self.seen: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(batch_idx)
        mine = batch[self.global_rank :: self.trainer.world_size]
        loss = loss_of(self.wrapped(mine).float(), mine)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def train_dataloader(self) -> Stream:
        return Stream()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.wrapped.named_parameters()}


class EachStep(ModelCheckpoint):
    """Saves every ``every`` steps; notes at which steps it really did."""

    def __init__(self, folder: Path, every: int = 100) -> None:
        super().__init__(dirpath=folder, filename="{step}", every_n_train_steps=every)
        self.saved: list[int] = []

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self.saved.append(trainer.global_step)
        super()._save_checkpoint(trainer, filepath)


def make_trainer(*callbacks: L.Callback, **options) -> L.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": STEPS,
        "accumulate_grad_batches": ACCUMULATE,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**settings, **options})


def fit(*callbacks: L.Callback, module: Module | None = None, **options) -> Module:
    module = module or Module()
    checkpoint = options.pop("ckpt_path", None)
    make_trainer(*callbacks, **options).fit(module, ckpt_path=checkpoint)
    return module
