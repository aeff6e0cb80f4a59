"""Hold a run of transformers' Trainer to limits of forgetting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from freezetrain.errors import UserError
from freezetrain.evaluation import Evaluation
from freezetrain.evaluation.brake import Action, Brake, Measure
from freezetrain.files import remove_unfinished, whole
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback
from freezetrain.ranks import on_first_rank, together

_BASE = "brake-base"  # in the output folder


class ForgettingBrakeCallback(TrainerCallback):
    """Looks at each evaluation of a ``ForgettingTrackerCallback``; acts where a limit is exceeded.

    With ``callbacks=[tracker, ForgettingBrakeCallback(tracker, {"es": 0.05}, "roll_back")]``
    training ends when Spanish has lost more than 5% of the base's NLL per byte, and the model is
    then that of the last evaluation within the limit. It stands after its tracker.

    To roll back or select, it has the Trainer save a checkpoint at each evaluation that may be gone
    back to, and load it when training ends, as its best one, which ``save_total_limit`` spares. So
    ``metric_for_best_model`` and ``load_best_model_at_end`` are left out. The base is saved too, in
    the output folder, but under DeepSpeed and FSDP, which would not load it: where it is the only
    model within the limits, they raise UserError in the end. A model that is
    loaded is not evaluated again.

    All that is decided follows from ``tracker.history``, which checkpoints hold. Raises
    ``UserError`` as training begins for what cannot be guaranteed.
    """

    def __init__(
        self,
        tracker: ForgettingTrackerCallback,
        limits: Mapping[str, float],
        action: Action = "stop",
        *,
        measure: Measure = "relative",
        beyond_noise: bool = False,
    ) -> None:
        """Say what may be lost, and what follows.

        Args:
            tracker: what evaluates; another of the Trainer's callbacks.
            limits: held-out language, "mean" or "worst" -> the most that may be lost.
            action: "warn", "stop", "roll_back" or "select", see ``Brake``.
            measure: unit of the limits, see ``Brake``.
            beyond_noise: a limit counts as exceeded only where the loss's whole 95% interval is.

        Raises ``UserError`` for values that cannot work.
        """
        self.brake = Brake(dict(limits), action, measure, beyond_noise)
        self.brake.check(tracker.documents, tracker.target)
        self.tracker = tracker
        self._seen = -1  # step of the last evaluation that was looked at

    @property
    def model(self) -> Evaluation:
        """The evaluation of the model that the run leaves if it ends now."""
        return self.brake.model(self.tracker.history.evaluations)

    def results(self) -> dict[str, Any]:
        """Settings, breaches, where training was ended and the model's step, ready for JSON."""
        return self.brake.to_dict(self.tracker.history.evaluations)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        evaluations = self.tracker.history.evaluations
        if not evaluations or (state.global_step == 0 and evaluations[-1].step > 0):
            raise UserError(
                "ForgettingBrakeCallback needs its tracker's evaluation, and the Trainer "
                "does not have that tracker before it; give callbacks=[tracker, brake]"
            )
        self._seen = evaluations[-1].step
        ended = self.brake.ended_at(evaluations)
        if ended is not None and self.brake.action == "stop":
            raise UserError(
                f"the run was ended by its brake at step {ended:,}, and nothing is left to train; "
                "take the model of that step, or resume an earlier checkpoint"
            )
        if self.brake.goes_back:
            self._begin(args, state, kwargs["model"])
        control.should_training_stop = ended is not None

    def _begin(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Save the base, or find what the checkpoint that is resumed would go back to."""
        _require_way_back(args, model)
        args.load_best_model_at_end = True
        step = self.model.step
        if state.global_step == 0 and not _split():
            with together():
                if args.should_save:
                    base = self._path(args, 0)
                    base.parent.mkdir(parents=True, exist_ok=True)
                    remove_unfinished(base)
                    with whole(base, replace_folder=True) as folder:
                        model.save_pretrained(folder)
        elif step > 0 or not _split():
            path = self._path(args, step)
            if not on_first_rank(path.is_dir):
                raise UserError(
                    f"the run would go back to step {step:,}, and {path} is not there; resume a "
                    "checkpoint that was written later, or start anew"
                )
        self._choose(args, state, step)

    def _choose(self, args: TrainingArguments, state: TrainerState, step: int) -> None:
        """Have the Trainer load ``step`` in the end."""
        state.best_global_step = step
        state.best_model_checkpoint = str(self._path(args, step))

    def _path(self, args: TrainingArguments, step: int) -> Path:
        assert args.output_dir is not None  # TrainingArguments has a default
        return Path(args.output_dir, f"checkpoint-{step}" if step else _BASE)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._look(args, state, control)

    def _look(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Act on the latest evaluation, unless that is done."""
        evaluations = self.tracker.history.evaluations
        last = evaluations[-1]
        if last.step == self._seen:
            return
        self._seen = last.step
        ended = self.brake.ended_at(evaluations) is not None
        for breach in self.brake.breaches([last]):
            if state.is_world_process_zero:
                consequence = "training ends" if ended else "training goes on"
                tqdm.write(f"{self.brake.say(breach)}: {consequence}")
        if self.brake.goes_back and self.model is last:
            self._choose(args, state, last.step)
            control.should_save = True
        if ended:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not (control.should_training_stop or state.global_step >= state.max_steps):
            return
        self._look(args, state, control)  # the tracker may have evaluated once more
        broken = self.brake.ended_at(self.tracker.history.evaluations) is not None
        if self.brake.action == "roll_back" and not broken:
            state.best_model_checkpoint = None  # nothing to go back from
        elif self.brake.goes_back and self.model.step == 0 and _split():
            raise UserError(
                "the base is the only model within the limits, and under DeepSpeed or FSDP the "
                "Trainer cannot load it again; take it from where training got it, and lower the "
                "learning rate or evaluate sooner"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.brake.goes_back and state.best_model_checkpoint and state.is_world_process_zero:
            tqdm.write(f"the model is that of step {self.model.step:,}")


def _split() -> bool:
    """Whether the weights or the optimizer are split over ranks by DeepSpeed or FSDP."""
    kinds = (DistributedType.DEEPSPEED, DistributedType.FSDP)
    return AcceleratorState().distributed_type in kinds


def _require_way_back(args: TrainingArguments, model: Any) -> None:
    advice = None
    if args.metric_for_best_model is not None:
        advice = (
            "leave out load_best_model_at_end and metric_for_best_model, which choose another one"
        )
    elif args.save_only_model and _split():
        advice = "leave out save_only_model, which DeepSpeed and FSDP load nothing from"
    elif not hasattr(model, "save_pretrained"):
        advice = f"give a model that has save_pretrained, which {type(model).__name__} has not"
    if advice is not None:
        raise UserError(f"the brake has the Trainer load the model of its choice; {advice}")
