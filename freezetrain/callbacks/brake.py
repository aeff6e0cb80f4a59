"""Callback that ends or rolls back a run where held-out languages lose more than a limit."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from freezetrain.callbacks import checkpoint_files
from freezetrain.callbacks.average import WeightAverage
from freezetrain.callbacks.near_base import BaseAverage
from freezetrain.callbacks.region_freeze import RegionFreeze
from freezetrain.callbacks.stopping import save_step, saver_of
from freezetrain.callbacks.tracker import ForgettingTracker, require_before
from freezetrain.errors import UserError
from freezetrain.evaluation import Evaluation
from freezetrain.evaluation.brake import Action, Brake, Measure
from freezetrain.ranks import on_first_rank


class ForgettingBrake(L.Callback):
    """Looks at each evaluation of a ``ForgettingTracker``, and acts where a limit is exceeded.

    ``Trainer(callbacks=[tracker, ForgettingBrake(tracker, {"es": 0.05}, "roll_back", "kept")])``:
    training ends when Spanish has lost more than 5% of the base's NLL per byte, and the module
    then has the weights of the last evaluation within the limit. It stands after the tracker and
    before the callbacks that want the weights in the end (RegionFreeze, an export).

    To roll back or select, the weights of the step that would be gone back to are kept as
    ``folder``/step=N.ckpt, on the disk whole or not at all: at first those of the base, and those
    of a better step in their place; also what the run's last checkpoint would go back to, so that
    a killed run can go on from it. At the end of training they come back into the module, on one
    device, under DDP, FSDP2 and DeepSpeed, whose fp32 masters follow; before that the trainer's
    ModelCheckpoint, if it has one, saves the step that training had come to. Buffers come back as
    well; optimizers and what is not in the module's ``state_dict`` do not.

    All that is decided follows from ``tracker.history``, so that a run which was killed goes on
    with the same limits, breaches and choice.

    Raises ``UserError`` before training starts for what cannot be guaranteed.
    """

    def __init__(
        self,
        tracker: ForgettingTracker,
        limits: Mapping[str, float],
        action: Action = "stop",
        folder: str | os.PathLike[str] | None = None,
        *,
        measure: Measure = "relative",
        beyond_noise: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Say what may be lost, and what follows.

        Args:
            tracker: what evaluates; another of the trainer's callbacks.
            limits: held-out language, "mean" or "worst" -> the most that may be lost.
            action: "warn", "stop", "roll_back" or "select", see ``Brake``.
            folder: where weights are kept to roll back or select; all ranks see the same.
            measure: unit of the limits, see ``Brake``.
            beyond_noise: a limit counts as exceeded only where the loss's whole 95% interval is.
            overwrite: let a new run replace what another one has kept in ``folder``.

        Raises ``UserError`` for values that cannot work.
        """
        self.brake = Brake(dict(limits), action, measure, beyond_noise)
        if self.brake.goes_back and folder is None:
            raise UserError(
                f"the brake's action {action} keeps weights on the way; give a folder for them, "
                "which all ranks share"
            )
        self.brake.check(tracker.documents, tracker.target)
        self.tracker = tracker
        self.folder = Path(folder or ".")
        self.overwrite = overwrite
        self._reset()

    def _reset(self) -> None:
        self._seen = -1  # step of the last evaluation that was looked at
        self._recorded: int | None = None  # what the run's last checkpoint would go back to
        self._pending = False  # the weights that training starts from are to be kept
        self._done = False

    @property
    def model(self) -> Evaluation:
        """The evaluation of the model that the run leaves if it ends now."""
        return self.brake.model(self.tracker.history.evaluations)

    def results(self) -> dict[str, Any]:
        """Settings, breaches, where training was ended and the model's step, ready for JSON."""
        return self.brake.to_dict(self.tracker.history.evaluations)

    def sentences(self) -> list[str]:
        """What the run came to, for people."""
        return self.brake.sentences(self.tracker.history.evaluations)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._reset()
        require_before(trainer, self, self.tracker)
        if self.brake.goes_back:
            _require_way_back(trainer)
            checkpoint_files.require_shared(trainer, self.folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The tracker's turn was before: its base is evaluated, or its history is restored.
        self._seen = self.tracker.history.last.step
        if self.brake.goes_back:
            self._start_folder(trainer)
        self._end_if_broken(trainer)

    def _start_folder(self, trainer: L.Trainer) -> None:
        """Leave only what the run's checkpoint would go back to; all ranks refuse without it."""
        step = self.model.step  # to go back to
        is_kept = on_first_rank(lambda: self._leave_only(step, trainer.global_step))
        self._recorded = step if is_kept else None
        self._pending = not is_kept

    def _leave_only(self, step: int, start: int) -> bool:
        """Leave only the weights of ``step`` in the folder; whether they are there.

        ``start``: the step that training starts from. UserError where they are needed and are not.
        """
        path, kept = self._path(step), list(self.folder.glob("step=*.ckpt"))
        if start == 0 and kept and not self.overwrite:
            raise UserError(
                f"the folder {self.folder} holds weights that another run has kept; choose "
                "another, or give overwrite=True"
            )
        is_kept = start > 0 and path in kept and not checkpoint_files.damage(path)
        if step != start and not is_kept:
            raise UserError(
                f"the run would go back to step {step}, whose weights in {path} are not there "
                "or damaged; resume a checkpoint that was written later, or start anew"
            )
        self._remove_but(step if is_kept else None)
        return is_kept

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._pending:  # not before: RegionFreeze may give DeepSpeed's masters exact values
            self._pending = False
            self._keep(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self._look(pl_module):
            return
        better = self.brake.goes_back and self.model.step == self._seen
        if better and trainer.global_step != trainer.max_steps:
            self._keep(trainer)
        self._end_if_broken(trainer)

    def _look(self, pl_module: L.LightningModule) -> bool:
        """Say what the latest evaluation exceeds; whether it is a new one."""
        last = self.tracker.history.last
        if last.step == self._seen:
            return False
        self._seen = last.step
        for breach in self.brake.breaches([last]):
            consequence = {
                "warn": "training goes on",
                "stop": "training ends",
                "roll_back": f"training ends, and the model is that of step {self.model.step:,}",
                "select": "the model will not be that of this step",
            }[self.brake.action]
            pl_module.print(f"{self.brake.say(breach)}: {consequence}")
        return True

    def _end_if_broken(self, trainer: L.Trainer) -> None:
        if self.brake.ended_at(self.tracker.history.evaluations) is not None:
            trainer.should_stop = True

    def _keep(self, trainer: L.Trainer) -> None:
        """Keep the weights as they are now, and of those before what a checkpoint needs."""
        if trainer.is_global_zero:
            self._remove_but(self._recorded)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RegionFreeze):
                callback.verify(trainer)
        checkpoint_files.write(
            trainer,
            self._path(trainer.global_step),
            lambda place: checkpoint_files.save_weights(trainer, place),
        )

    def _remove_but(self, step: int | None) -> None:
        for path in self.folder.glob("step=*"):
            if path.suffix in checkpoint_files.LEFT_OVER:
                checkpoint_files.delete(path)
            elif step is None or path != self._path(step):
                checkpoint_files.remove(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step={step}.ckpt"

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Whole by the time that something else is kept, unless the run ends before. There is no
        # evaluation yet where a learning-rate finder saves before training begins.
        if self.tracker.history.evaluations:
            self._recorded = self.model.step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(pl_module)  # the tracker may have evaluated once more
        if saver_of(trainer) is not None and self._must_go_back(trainer):
            save_step(trainer)  # with the weights that training has come to, before they are gone
            if trainer.is_global_zero:
                self._remove_but(self.model.step)  # what that checkpoint goes back to
        self._go_back(trainer)

    def ensure(self, trainer: L.Trainer) -> None:
        """Go back after a fit with nothing left to do: the run was killed after its last step."""
        if not self._done:
            self._go_back(trainer)

    def _must_go_back(self, trainer: L.Trainer) -> bool:
        return self.brake.goes_back and self.model.step != trainer.global_step

    def _go_back(self, trainer: L.Trainer) -> None:
        self._done = True
        if not self._must_go_back(trainer):
            return
        path = self._path(self.model.step)
        if on_first_rank(lambda: checkpoint_files.damage(path)):
            raise UserError(
                f"the model is to be that of step {self.model.step}, and its weights in {path} are "
                "not there or damaged; the run's last checkpoint is left"
            )
        checkpoint_files.bring_back(trainer, path)
        trainer.lightning_module.print(f"the weights are those of step {self.model.step:,} again")


def _require_way_back(trainer: L.Trainer) -> None:
    """UserError where the weights of a step cannot be kept, or would not be those evaluated."""
    strategy = trainer.strategy
    why = None
    if isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        why = "AsyncCheckpointIO does not say when a checkpoint is written"
    elif isinstance(strategy, ModelParallelStrategy):
        if not strategy._save_distributed_checkpoint:
            why = "each rank saves its shard, and save_distributed_checkpoint is False"
    elif isinstance(strategy, DeepSpeedStrategy) and (
        strategy.load_full_weights or strategy.exclude_frozen_parameters
    ):
        why = "load_full_weights or exclude_frozen_parameters is set, and all weights are kept"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAverage | BaseAverage):
            why = "the average of the weights, which is not evaluated on the way, cannot go back"
        elif isinstance(callback, RegionFreeze) and not callback.from_the_start:
            why = (
                "the region is not frozen as it is in the base from the first step on, so that "
                "earlier weights are not frozen as the last ones are"
            )
    if why is not None:
        raise UserError(
            f"the brake cannot roll back or select: {why}; change that, or use the action stop or "
            "warn"
        )
