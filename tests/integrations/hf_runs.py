"""Runs of the Trainer of transformers on the data of the reference."""

from pathlib import Path
from typing import Any

from torch import nn
from trainer_reference import ACCUMULATE, DECAY, MAX_NORM, RATE, ROWS, STEPS, rows
from transformers import Trainer, TrainerCallback, TrainingArguments


def trainer(
    model: nn.Module,
    folder: Path,
    *callbacks: TrainerCallback,
    steps: int = STEPS,
    world: int = 1,
    **options: Any,
) -> Trainer:
    """As a user would set it up, with the rows of the reference in their order."""
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": ROWS // world,
        "gradient_accumulation_steps": ACCUMULATE,
        "weight_decay": DECAY,
        "max_grad_norm": MAX_NORM,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    data = [{"input_ids": row, "labels": row} for row in rows()]
    arguments = TrainingArguments(output_dir=str(folder), **{**settings, **options})
    return Trainer(
        model, arguments, train_dataset=data, eval_dataset=data[:2], callbacks=list(callbacks)
    )


def logged_norms(trainer: Trainer) -> list[float]:
    return [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
