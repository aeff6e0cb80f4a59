"""Callback that evaluates held-out languages while a LightningModule trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import Tensor, nn

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation import Evaluation, Figures, ForgettingWatch


@dataclass(eq=False, repr=False, kw_only=True)
class ForgettingTracker(ForgettingWatch, L.Callback):
    """A :class:`ForgettingWatch`, which says what may be given, as a callback of Lightning.

    What is found goes to the trainer's loggers too (``forgetting/<language>/perplexity``,
    ``.../bits_per_byte``, ``.../accuracy``, ``.../delta_nll_per_byte``, ``forgetting/mean``,
    ``/worst``, ``/backward_transfer``, ``/target_gain``; nats per byte unless the name says
    otherwise). The base is kept in checkpoints, and a resumed run goes on from there.

    Steps are optimizer steps, whatever the accumulation. Tokens and samples are those of the
    batches, token ids [B, L] or mappings that hold them as ``input_ids``, padding included; other
    batches are not counted. Over all ranks: under a schedule in steps, where nothing depends on
    it, other ranks are taken to have batches of the same shape.

    ``module``: dotted name, inside the LightningModule, of the submodule that is called with
    ``input_ids`` and returns ``.logits``; "" is the LightningModule itself.

    Works on one device, under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed, in the precision
    that the model computes in there.
    """

    module: str = "model"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        good = SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
        if not isinstance(trainer.strategy, good):
            raise UserError(
                f"ForgettingTracker cannot evaluate under {type(trainer.strategy).__name__}: train "
                "on one device, or with DDPStrategy, ModelParallelStrategy (FSDP2) or "
                "DeepSpeedStrategy"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model = self._model(pl_module)  # refused before anything is written
        self.show = pl_module.print  # above the progress bar, whichever the trainer has
        self._of_step: tuple[int, int] | None = (0, 0)  # tokens and samples of this rank
        with trainer.precision_plugin.forward_context():
            base = self.start(model, trainer.global_step)
        self._log(trainer, base)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        # Runs before the checkpoint callbacks, so that a checkpoint holds its step's evaluation.
        self._count(batch)
        if trainer.global_step > self.trained.step:
            self._after_step(trainer, pl_module, last=trainer.global_step == trainer.max_steps)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._after_step(trainer, pl_module, last=True)

    def figures(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Figures]:
        """Evaluate the weights as they are now, on every rank, without keeping what is found."""
        with trainer.precision_plugin.forward_context():
            return self.evaluate(self._model(pl_module))

    def _after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, last: bool) -> None:
        tokens, samples = self._counts(trainer)
        evaluate = self.end if last else self.after_step
        with trainer.precision_plugin.forward_context():
            evaluation = evaluate(
                self._model(pl_module), trainer.global_step, tokens=tokens, samples=samples
            )
        self._log(trainer, evaluation)

    def _count(self, batch: Any) -> None:
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            if self.schedule.unit != "step":
                raise UserError(
                    f"{self.schedule.unit} are counted in batches of token ids [B, L], or mappings "
                    f"that hold them as input_ids, got {type(batch).__name__}; give every_n_steps"
                )
            self._of_step = None
        elif self._of_step is not None:
            tokens, samples = self._of_step
            self._of_step = tokens + ids.numel(), samples + len(ids)

    def _counts(self, trainer: L.Trainer) -> tuple[int | None, int | None]:
        """Tokens and samples so far over all ranks, those since the last step included."""
        _, tokens, samples = self.trained
        if self._of_step is None or tokens is None or samples is None:
            return None, None
        more, self._of_step = self._of_step, (0, 0)
        if self.schedule.unit == "step":
            more = more[0] * trainer.world_size, more[1] * trainer.world_size
        elif trainer.world_size > 1:  # ranks must agree on what is due, whatever they hold
            here = torch.tensor(more, device=trainer.strategy.root_device)
            summed = trainer.strategy.reduce(here, reduce_op="sum")
            more = int(summed[0]), int(summed[1])
        return tokens + more[0], samples + more[1]

    def _log(self, trainer: L.Trainer, evaluation: Evaluation | None) -> None:
        if evaluation is not None:
            log_now(trainer, self.history.scalars(), evaluation.step)

    def _model(self, pl_module: L.LightningModule) -> nn.Module:
        names = [name for name, _ in pl_module.named_modules()]
        if self.module not in names:
            children = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise UserError(
                f"{type(pl_module).__name__} has no submodule {self.module!r}"
                f"{near_misses(self.module, names)}; give module= the name of the one that "
                f"returns logits (its children: {children})"
            )
        return pl_module.get_submodule(self.module)


def log_now(trainer: L.Trainer, values: Mapping[str, Any], step: int) -> None:
    """Give all loggers of ``trainer`` the ``values`` after ``step`` optimizer steps.

    What a module logs by ``self.log`` they get after the step's checkpoint was written, under the
    step before, and again at later steps that have no such value.
    """
    scalars = {name: float(value) for name, value in values.items()} if trainer.loggers else {}
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=step)


def require_before(trainer: L.Trainer, callback: L.Callback, *needed: L.Callback | None) -> None:
    """UserError unless the trainer has each of ``needed`` (None: left out) before ``callback``."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    before = callbacks[: callbacks.index(callback)]
    for earlier in needed:
        if earlier is not None and not any(other is earlier for other in before):
            raise UserError(
                f"{type(callback).__name__} looks at what {type(earlier).__name__} has just found, "
                "and the trainer does not have that one before it; give callbacks in the order "
                "tracker, brake, board"
            )
