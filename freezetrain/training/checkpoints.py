"""Checkpoints of a run: written whole or not at all, resumed also by another number of ranks."""

import re
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from freezetrain.callbacks import checkpoint_files
from freezetrain.callbacks.checkpoint_files import LEFT_OVER, damage, facts
from freezetrain.errors import UserError
from freezetrain.ranks import current_launch, on_first_rank

_FOLDER = "checkpoints"  # in the run's folder

_NAME = re.compile(r"step=(\d+)\.ckpt")


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in the run's folder, on every rank the same.

    Rank 0 removes what a killed run left unfinished. UserError for a damaged one.
    """
    # Without a process group all look at the same files, before any of them can change one.
    return on_first_rank(lambda: _latest(folder))


def _latest(folder: Path) -> Path | None:
    by_step = {}
    for path in (folder / _FOLDER).glob("*"):
        if _NAME.fullmatch(path.name):
            by_step[step_of(path)] = path
        elif path.suffix in LEFT_OVER and current_launch().rank == 0:
            checkpoint_files.delete(path)
    if not by_step:
        return None
    latest = by_step[max(by_step)]
    if problem := damage(latest):
        raise UserError(
            f"the checkpoint {latest} is damaged: {problem}; delete it to go on from an earlier "
            "one, or from the start"
        )
    return latest


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were made before it."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def resumable(
    checkpoint: Path, world: int, engine: str, optimizer: str = "adamw"
) -> dict[str, Any]:
    """Make ``checkpoint`` one that ``world`` ranks under ``engine`` (a recipe's) can go on from.

    Returns entries for DeepSpeed's configuration, with which its engine must be made. DDP and
    FSDP2 read what any number of ranks wrote. For ZeRO, whose files are those of each rank, the
    checkpoint is converted to DeepSpeed's universal format, inside its folder, by the first
    process that asks, while others wait. Exact but for the order in which ranks' gradients are
    summed.

    UserError for a checkpoint of another engine, and for one of ZeRO, of another number of ranks,
    with the state of another ``optimizer`` (a recipe's) than AdamW, which DeepSpeed cannot convert.
    """
    written = facts(checkpoint).engine if checkpoint.is_dir() else "ddp"
    resumed = "ddp" if engine in ("auto", "one") else engine
    if written != resumed:
        raise UserError(
            f"the checkpoint {checkpoint} was written under {written}, and the run goes on under "
            f"{resumed}; give it engine.kind {written}"
        )
    if not written.startswith("zero") or facts(checkpoint).world == world:
        return {}
    if optimizer != "adamw":
        before = facts(checkpoint).world
        raise UserError(
            f"the checkpoint {checkpoint} was written by {before} ranks, and DeepSpeed gives "
            f"another number of them, as these {world}, the state of AdamW only, not of "
            f"{optimizer}; go on with {before}"
        )
    checkpoint_files.convert(checkpoint)
    return {"checkpoint": {"load_universal": True}}


class StepCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/step=N.ckpt`` in the run's folder, the last one alone is kept.

    It is a file on one device and under DDP, a folder under DeepSpeed and FSDP2. Written under
    another name, it gets its own when all ranks have written and the disk has it; only then is the
    one before removed. So a kill at any moment leaves a whole one.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            dirpath=folder / _FOLDER,
            filename="{step}",
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            save_top_k=-1,  # it is this class that removes
            enable_version_counter=False,
        )

        self._groups: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        """The same for any ``every``."""
        return type(self).__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.world_size > 1:
            assert self.dirpath is not None
            checkpoint_files.require_shared(trainer, Path(self.dirpath))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Engines that split the optimizer have it by now, and load it from a checkpoint after this.
        self._groups = [
            {name: value for name, value in group.items() if name != "params"}
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning forgets on resuming that the step it starts from has been saved: in the midst
        # of the next step's accumulation it would save it again, without the gradients so far.
        self._last_global_step_saved = trainer.global_step

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make what depended on the number of ranks that wrote it depend on the present one."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        shift = batches - progress["total"]["ready"]
        for counts in (progress["total"], progress["current"]):
            for name in counts:
                counts[name] += shift
        # From the universal format, ZeRO-3 has given all groups the first one's settings, and one
        # step count in common, which each of them would then raise.
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = [rate for state in checkpoint["lr_schedulers"] for rate in state["_last_lr"]]
        for group, settings, rate in zip(groups, self._groups, rates, strict=False):
            group.update({**settings, "lr": rate})
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].clone()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        path, save = Path(filepath), super()._save_checkpoint
        checkpoint_files.write(trainer, path, lambda place: save(trainer, place))
        if trainer.is_global_zero:
            for other in path.parent.glob("step=*.ckpt"):
                if other != path:
                    checkpoint_files.remove(other)
        trainer.strategy.barrier()
        self._last_checkpoint_saved = filepath
