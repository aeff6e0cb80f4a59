"""Run by test_freeze.py: ``python freeze_ddp_fit.py FOLDER``; Lightning starts the second rank."""

import os
import sys
from pathlib import Path

import lightning as L
import torch
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from freezetrain.callbacks import RegionFreeze


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.wrapped = TinyLM()

    def training_step(self, batch: Tensor) -> Tensor:
        mine = batch[self.global_rank :: self.trainer.world_size]
        return loss_of(self.wrapped(mine), mine)

    def train_dataloader(self) -> DataLoader:
        batches = [batch for batches in steps_of_batches() for batch in batches]
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, module = Path(sys.argv[1]), Module()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=MAX_NORM,
        callbacks=[RegionFreeze(mixed_region(TinyLM()))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    state = {name: value.detach() for name, value in module.wrapped.named_parameters()}
    save_file(state, folder / f"rank-{trainer.global_rank}.safetensors")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort a regular exit
