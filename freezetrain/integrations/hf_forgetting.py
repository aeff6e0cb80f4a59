"""Watch the held-out languages while the Trainer of transformers trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from freezetrain.errors import UserError
from freezetrain.evaluation import Evaluation, ForgettingWatch
from freezetrain.freezing.run import find_module
from freezetrain.integrations.hf import callback_states, log_scalars

_KEY = "freezetrain.forgetting"  # in trainer_state.json, among the states of callbacks


@dataclass(eq=False, repr=False, kw_only=True)
class ForgettingTrackerCallback(ForgettingWatch, TrainerCallback):
    """A :class:`ForgettingWatch`, which says what may be given, as a callback of the Trainer.

    ``Trainer(..., callbacks=[ForgettingTrackerCallback(documents, target="zh")])``, and what is
    found is in ``trainer.state.log_history``, in ``history`` and in ``results_path``. A callback
    is not told of its Trainer, so for what ``report_to`` names, say how to log:
    ``trainer.add_callback(ForgettingTrackerCallback(documents, log=trainer.log))``.

    The base is kept in checkpoints (``trainer_state.json``), and a resumed run goes on from there.
    Samples are the Trainer's: steps times its whole batch. Its tokens are known where
    ``include_num_input_tokens_seen`` is set, which ``every_n_tokens`` needs. With
    ``load_best_model_at_end`` nothing is evaluated after the best model was loaded.

    Works on one device, under DDP, FSDP2 and DeepSpeed, in the precision that the Trainer
    computes in. Raises UserError as training begins where it cannot: under FSDP1, and where
    parallelism has ranks share a batch.
    """

    log: Callable[[dict[str, float]], None] | None = None
    module: str | None = None
    """Attribute path, in the Trainer's model, of the one that is evaluated. None: the model."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check(args, kwargs["model"])
        self.show = tqdm.write  # above the progress bar, if there is one
        states = callback_states(state)
        if _KEY in states:
            self.load_state_dict(states[_KEY])
        self._not_logged: Evaluation | None = None
        base = self.start(self._model(kwargs["model"]), state.global_step)
        if base is not None and self.log is not None:
            self._record(state)
            self._not_logged = base  # later callbacks, which may log, are not set up yet
        else:
            self._report(state, control, base)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._log_base(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log_base(state, control)
        last = control.should_training_stop or state.global_step >= state.max_steps
        evaluate = self.end if last else self.after_step
        self._evaluate_with(evaluate, args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop:  # perhaps by a callback whose turn came after this one's
            self._evaluate_with(self.end, args, state, control, kwargs["model"])
        elif control.should_save:
            self._record(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._evaluate_with(self.end, args, state, control, kwargs["model"])

    def _evaluate_with(
        self,
        evaluate: Callable[..., Evaluation | None],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
    ) -> None:
        _, _, samples = self.trained
        batch = (state.train_batch_size or 0) * args.gradient_accumulation_steps * args.world_size
        evaluation = evaluate(
            self._model(model),
            state.global_step,
            tokens=state.num_input_tokens_seen if _counts_tokens(args) else None,
            samples=(samples or 0) + (state.global_step - self.trained.step) * batch,
        )
        self._report(state, control, evaluation)
        if control.should_save:
            self._record(state)

    def _report(
        self, state: TrainerState, control: TrainerControl, evaluation: Evaluation | None
    ) -> None:
        if evaluation is None:
            return
        self._record(state)  # now, as whether a step is saved may only be decided after it
        log_scalars(self.history.scalars(), state, control, self.log)

    def _log_base(self, state: TrainerState, control: TrainerControl) -> None:
        """Under its own step, also where the loop calls nothing before the first has been made."""
        base, self._not_logged = self._not_logged, None
        if base is not None:
            step, state.global_step = state.global_step, base.step
            self._report(state, control, base)
            state.global_step = step

    def _model(self, model: nn.Module) -> nn.Module:
        return find_module(model, self.module)

    def _record(self, state: TrainerState) -> None:
        """Put the state where checkpoints hold it."""
        callback_states(state)[_KEY] = self.state_dict()

    def _check(self, args: TrainingArguments, model: nn.Module) -> None:
        if self.schedule.unit == "tokens" and not _counts_tokens(args):
            raise UserError(
                "every_n_tokens needs the Trainer to count tokens, got "
                f"include_num_input_tokens_seen={args.include_num_input_tokens_seen!r}; set it to "
                "'all', or give every_n_steps"
            )
        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            raise UserError(
                "ForgettingTrackerCallback cannot evaluate under FSDP1; set fsdp_version to 2"
            )
        if args.parallelism_config is not None:
            names = ("tp_size", "cp_size", "sp_size")
            sizes = {name: getattr(args.parallelism_config, name) for name in names}
            if any(size > 1 for size in sizes.values()):
                raise UserError(
                    "ForgettingTrackerCallback gives each rank texts of its own, got ranks that "
                    f"share a batch ({sizes}); train with data parallelism alone"
                )


def _counts_tokens(args: TrainingArguments) -> bool:
    return args.include_num_input_tokens_seen != "no"
