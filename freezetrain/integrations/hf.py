"""Freeze a region while the Trainer of transformers trains."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from freezetrain.freezing import Freeze, FreezeOptions
from freezetrain.freezing.run import RunFreeze, find_module
from freezetrain.regions import Region

_KEY = "freezetrain"  # in trainer_state.json, among the states of callbacks


@dataclass(eq=False, repr=False)
class RegionFreezeCallback(FreezeOptions, TrainerCallback):
    """Hold a region bit for bit during ``Trainer.train``, as :func:`freezetrain.freeze` does.

    ``Trainer(..., callbacks=[RegionFreezeCallback("region.safetensors")])`` is all, with the fields
    of :class:`FreezeOptions` as keywords: one device, DDP, DeepSpeed and FSDP2, accumulation and
    mixed precision need nothing more. Gradients are masked during backward, so that the Trainer
    clips, and logs as ``grad_norm``, the norm over trainable entries.

    The freeze starts when training begins and a checkpoint has been restored, is verified before
    each checkpoint is written and at the end of training (CheckError names parameter, entry, rank
    and step), and ends with training. The Trainer tells callbacks of no exception: after one,
    the freeze holds until :meth:`end` or the next ``train``. Checkpoints hold digests of the
    region and of its values: one resumes with the region that it was trained with. Several
    callbacks with a region each may be given. An optimizer may be a container of several. In a loop
    that calls ``on_step_end`` alone it begins and ends there; CheckError at the end of training
    where it was due and no hook let it begin.

    A callback that averages weights: give its copy the frozen entries by ``handle.put_into`` after
    each update, and stand before this one, so that what it leaves in the model is verified.

    Raises UserError as training begins, for what :func:`freezetrain.freeze` refuses and for a
    checkpoint of another region.
    """

    region: Region | str | Path
    """What is frozen, or its file, which is loaded at once."""
    module: str | None = None
    """Attribute path, in the Trainer's model, of the model that the region was made for. None finds
    the one submodule that has the region's parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._run = RunFreeze(self.region, self)
        self.region = self._run.region

    @property
    def handle(self) -> Freeze | None:
        """The freeze while it holds."""
        return self._run.handle

    def end(self) -> None:
        """Let the region train again; only needed after an exception. May be called twice."""
        self._run.end()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stored = _stored(state)
        self._run.begin(
            find_module(kwargs["model"], self.module),
            kwargs["optimizer"],
            state.global_step,
            # That of this region, or of any to be refused.
            stored=stored.get(self._run.state["region"], next(iter(stored.values()), None)),
            last_of_run=state.max_steps,
            replicated=args.world_size > 1,  # under DDP the model comes without it
        )
        self._step_begins = False
        self._record(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_begins = True
        self._run.before_step(state.global_step)
        self._record(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._step_begins:  # a loop that calls no on_step_begin, as some of TRL's did
            self._run.before_step(state.global_step)
            self._record(state)
        if control.should_save:
            self._run.verify()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if control.should_save:
            self._run.verify()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Whether the evaluation was the best is found out, and then saved, after this.
        if args.save_strategy == SaveStrategy.BEST or control.should_save:
            self._run.verify()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Another callback may have asked for it, or put an average of weights in their place, after
        # this one had its turn.
        self._run.verify()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        try:
            self._run.require_begun(state.global_step)
            if not (args.load_best_model_at_end and state.best_model_checkpoint):
                self._run.verify()
            # Else the model is what a checkpoint held, which was verified as it was written, and
            # may be of before the freeze.
        finally:
            self._run.end()

    def _record(self, state: TrainerState) -> None:
        """Put the digests where checkpoints hold them."""
        own = self._run.state
        callback_states(state).setdefault(_KEY, {})[own["region"]] = own


def callback_states(state: TrainerState) -> dict[str, Any]:
    """Name -> what a callback keeps in checkpoints, in trainer_state.json.

    Not as an ExportableState: to restore one, the Trainer builds the callback anew from JSON, and
    only if a flag is set.
    """
    states: Any = state.stateful_callbacks  # annotated as a list, and a dict by now
    return cast(dict[str, Any], states)


def log_scalars(
    scalars: dict[str, float],
    state: TrainerState,
    control: TrainerControl,
    log: Callable[[dict[str, float]], None] | None,
) -> None:
    """Through ``log``, the Trainer's; without it, into the Trainer's history alone."""
    if log is None:
        line = {**scalars, "epoch": state.epoch, "step": state.global_step}
        state.log_history.append(line)
        return
    should_log = control.should_log
    log(scalars)  # after which the Trainer takes its own figures as logged
    control.should_log = should_log


def _stored(state: Any) -> dict[str | None, dict[str, str | None]]:
    """Region's digest -> what the checkpoint says of it.

    The first callback of a run takes it out, for those after it, so that what the run saves is
    about its own regions.
    """
    if not hasattr(state, "_freezetrain"):
        state._freezetrain = callback_states(state).pop(_KEY, {})
    stored: dict[str | None, dict[str, str | None]] = state._freezetrain
    return stored
