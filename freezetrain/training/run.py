"""One training run in one folder: fit, checkpoints, resume, export."""

import logging
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.callbacks import ForgettingTracker
from freezetrain.callbacks.progress import StepProgress
from freezetrain.errors import UserError
from freezetrain.models import without_progress_bars
from freezetrain.recipe import Optimization
from freezetrain.training.data import TextData
from freezetrain.training.module import CausalLM

# Lightning advises on matters that freezetrain has decided; a user cannot act on them.
_ADVICE = ("does not have many workers", "Checkpoint directory", "treespec")


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in the run's folder."""
    found = [
        (int(match.group(1)), path)
        for path in (folder / "checkpoints").glob("*.ckpt")
        if (match := re.fullmatch(r"step=(\d+)", path.stem))
    ]
    if not found:
        return None
    latest = max(found)[1]
    if not zipfile.is_zipfile(latest):
        raise UserError(
            f"the checkpoint {latest} is damaged; delete it to go on from an earlier one, or from "
            "the start"
        )
    return latest


class StepCheckpoint(ModelCheckpoint):
    """Writes at the end of optimizer steps only, also right after a resume.

    Lightning forgets on resuming that the step it starts from has been saved: in the midst of the
    next step's accumulation it would save that step again, without the gradients so far.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step


def _precision(settings: Optimization) -> Literal["32-true", "bf16-mixed", "bf16-true"]:
    if settings.precision != "auto":
        return settings.precision
    return (
        "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    )


def fit(
    model: PreTrainedModel,
    data: TextData,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    checkpoint_every: int = 100,
    progress: bool = True,
) -> L.Trainer:
    """Train ``model`` on one device, with logs and checkpoints in ``folder``; resume what is there.

    Resuming after a kill at any moment gives the weights of the uninterrupted run: data order and
    dropout depend on seed and position alone, and a checkpoint is written whole or not at all.
    """
    settings = data.settings
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(settings.seed, verbose=False)
    checkpoints = StepCheckpoint(
        dirpath=folder / "checkpoints",
        filename="{step}",
        every_n_train_steps=checkpoint_every,
        save_on_train_epoch_end=False,
    )
    if progress:
        bar = StepProgress()
        for callback in callbacks:
            if isinstance(callback, ForgettingTracker):
                callback.progress = bar.evaluating
        callbacks = [bar, *callbacks]  # first, so that it is there when the base is evaluated
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=settings.steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip_norm,
        precision=_precision(settings),
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=[*callbacks, checkpoints],
        log_every_n_steps=1 if settings.steps <= 200 else 10,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )
    model.train()
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        trainer.fit(
            CausalLM(model, settings),
            datamodule=data,
            ckpt_path=latest_checkpoint(folder),
            weights_only=True,
        )
    model.eval()
    return trainer


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``folder`` in Hugging Face format, whole or not at all.

    Raises UserError if the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; move it away, nothing was overwritten")
    unfinished = folder.with_name(folder.name + ".unfinished")
    with without_progress_bars():
        model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, folder)
