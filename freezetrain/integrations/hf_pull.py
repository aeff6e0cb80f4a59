"""Pull weights to the base while the Trainer of transformers trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from freezetrain.freezing import Pull, PullOptions
from freezetrain.freezing.run import find_module
from freezetrain.integrations.hf import log_scalars


@dataclass(eq=False, repr=False)
class BasePullCallback(PullOptions, TrainerCallback):
    """Pull the weights to the base after each step, as :func:`freezetrain.pull` does in any loop.

    ``Trainer(..., callbacks=[BasePullCallback(20.0, "the base's folder")])`` is all: one device,
    DDP, DeepSpeed and FSDP2, accumulation and mixed precision need nothing more. It may stand
    beside a RegionFreezeCallback, in either order. The base is read from its files as training
    begins, when a checkpoint has been restored, so that a run that goes on is pulled to where it
    began.

    The distance to the base, ‖θ − θ₀‖ / ‖θ₀‖, is in ``trainer.state.log_history`` for each kind of
    parameter, as ``pull/model.layers.N.mlp.up_proj.weight``. A callback is not told of its Trainer,
    so for what ``report_to`` names, say how to log: ``trainer.add_callback(BasePullCallback(20.0,
    folder, log=trainer.log))``.

    The pull ends with training. The Trainer tells callbacks of no exception: after one, it acts
    until :meth:`end` or the next ``train``.

    Raises UserError as training begins for what ``freezetrain.pull`` refuses.
    """

    log: Callable[[dict[str, float]], None] | None = None
    """The Trainer's ``log``; None: into its history alone."""
    module: str | None = None
    """Attribute path, in the Trainer's model, of what is pulled. None: the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.handle: Pull | None = None
        """The pull while it acts."""
        self._logged = 0  # steps made when the distance was looked at last

    def end(self) -> None:
        """Pull no more; only needed after an exception. May be called twice."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.end()
        model = find_module(kwargs["model"], self.module)
        # Under DDP the model comes without it.
        self.handle = self.begin(model, kwargs["optimizer"], args.world_size > 1)
        self._logged = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or self.is_due(state.global_step, self._logged):
            self._log(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Stopped by a callback whose turn came after this one's; a model that was loaded as the
        # best is of another step.
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._log(state, control)
        self.end()

    def _log(self, state: TrainerState, control: TrainerControl) -> None:
        if self.handle is not None and state.global_step > self._logged:
            self._logged = state.global_step
            log_scalars(self.handle.scalars(), state, control, self.log)
