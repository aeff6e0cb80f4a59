"""Fits of test_resumed.py: each goes on from the last one's checkpoint, and exports its weights."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from freezetrain.callbacks import ForgettingTracker
from freezetrain.callbacks.checkpoint_files import facts
from freezetrain.callbacks.stopping import save_step
from freezetrain.evaluation import Document
from freezetrain.models import load_model
from freezetrain.nll import token_nll
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.checkpoints import StepCheckpoint, latest_checkpoint, resumable
from freezetrain.training.engines import DeepSpeed
from freezetrain.training.export import export
from freezetrain.training.sharded import load_partitioned, load_sharded


class Sequences:
    """All sequences in order, whatever the number of ranks."""

    def __init__(self, rows: list[list[int]], rank: int, world: int) -> None:
        self.rank, self.world, self.taken = rank, world, 0
        self.all = torch.tensor(rows)

    def __len__(self) -> int:
        return len(self.all) // self.world

    def __iter__(self) -> Iterator[Tensor]:
        while self.taken < len(self.all):
            place = self.taken + self.rank
            self.taken += self.world
            yield self.all[place][None]

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


class Module(L.LightningModule):
    def __init__(self, engine: str, source: ModelSource, rows: list[list[int]]) -> None:
        super().__init__()
        self.engine, self.source, self.rows = engine, source, rows
        self.model = None
        if engine not in ("fsdp2", "zero-3"):
            self.model = load_model(source)

    def configure_model(self) -> None:
        if self.model is None and self.engine == "zero-3":
            self.trainer.strategy._init_config_if_needed()
            self.model = load_partitioned(self.source, self.trainer.strategy.config)
        elif self.model is None:
            mesh = self.device_mesh["data_parallel"]
            self.model = load_sharded(self.source, mesh, torch.device("cpu"))
        self.model.train()

    def training_step(self, batch: Tensor) -> Tensor:
        loss = token_nll(self.model(input_ids=batch, use_cache=False).logits, batch).mean()
        # Under DeepSpeed both Lightning and DeepSpeed divide by the micro-batches of a step.
        return loss * (self.trainer.accumulate_grad_batches if "zero" in self.engine else 1)

    def train_dataloader(self) -> Sequences:
        return Sequences(self.rows, self.global_rank, self.trainer.world_size)

    def configure_optimizers(self):
        """Groups of unlike decay, and a learning rate that changes at each step."""
        groups: list[list] = [[], []]
        for name, parameter in self.model.named_parameters():
            groups["norm" in name].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": groups[0], "weight_decay": 0.1},
                {"params": groups[1], "weight_decay": 0.0},
            ],
            lr=1e-2,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def options(engine: str, deepspeed: dict) -> dict:
    if engine == "ddp":
        return {"strategy": DDPStrategy()}
    if engine == "fsdp2":
        return {
            "strategy": ModelParallelStrategy(
                data_parallel_size=dist.get_world_size(),
                tensor_parallel_size=1,
                process_group_backend="gloo",
            )
        }
    config = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": int(engine[-1]),
            "stage3_param_persistence_threshold": 20,
        },
        **deepspeed,
    }
    return {"strategy": DeepSpeed(config=config, process_group_backend="gloo")}


class SaveAtEnd(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Module, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:  # the tracker has evaluated
            sharded = [isinstance(parameter, DTensor) for parameter in pl_module.parameters()]
            assert sharded == [pl_module.engine == "fsdp2"] * len(sharded)
            save_step(trainer)


def fit(rank: int, world: int, folder: Path, data: dict, engine: str, stop: int) -> dict:
    """Train to step ``stop`` the model beside ``folder``, on the ranks that there are."""
    latest = latest_checkpoint(folder)
    deepspeed = {} if latest is None else resumable(latest, world, engine)
    documents = {
        language: [Document(ids, len(ids)) for ids in texts]
        for language, texts in data["documents"].items()
    }
    length = data["length"]  # one window in a batch, so that ranks have other numbers of batches
    tracker = ForgettingTracker(
        documents, "zh", every_n_steps=2, max_length=length, batch_tokens=length, table=False
    )
    source = ModelSource(str(folder.parent / "model"))
    module = Module(engine, source, data["rows"])
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        max_steps=stop,
        accumulate_grad_batches=data["sequences"] // world,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[tracker, SaveAtEnd(), StepCheckpoint(folder, every=1000)],
        **options(engine, deepspeed),
    )
    trainer.fit(module, ckpt_path=latest, weights_only=True)
    assert tracker.seconds > 0
    export(module.model, AutoTokenizer.from_pretrained(source.path), folder / f"{stop}", 20000)
    checkpoint = latest_checkpoint(folder)
    return {
        "decays": [group["weight_decay"] for group in trainer.optimizers[0].param_groups],
        "history": tracker.history.to_dict(),
        "checkpoint": asdict(facts(checkpoint)) if checkpoint.is_dir() else None,
    }
