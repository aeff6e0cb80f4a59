"""Callbacks that end training in good order: on a signal, and when its time is used up."""

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, Timer

from freezetrain.errors import Interrupted, Preempted, UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

_SAME_PRESS = 0.3
"""Seconds in which a second SIGINT is the same Ctrl-C: torchrun passes on what the terminal sent
to all."""


class StopOnSignal(Checkpoint):
    """After SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C: finish the optimizer step, save, raise Preempted.

    After Ctrl-C it is Interrupted, a Preempted; a second Ctrl-C is a KeyboardInterrupt at once, as
    is a first one after the last step. SIGTERM is what schedulers send before they kill, USR1 and
    USR2 what ``sbatch --signal`` is told to send. A signal to any rank stops all of them, after the
    same step: they agree once in each optimizer step. The checkpoint is written by the trainer's
    ModelCheckpoint, in its folder and under its name, unless it has just saved that step. Its
    handlers hold from ``on_fit_start`` to the end of the fit, when those that were there before
    come back; a signal before the first step, as while the base is evaluated, stops after it.

    A Checkpoint, because Lightning calls those after all other callbacks: what they have to say
    about a step, an evaluation that is due above all, is in its checkpoint. UserError before
    training starts if the trainer has no ModelCheckpoint without ``monitor``, which would save a
    step only where it is better than others.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._pressed = 0.0  # when Ctrl-C was
        self._step = 0
        self._ended = False  # all steps are done
        self._before: dict[signal.Signals, Any] = {}  # the handlers that were there

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            _saver(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._received, self._ended = None, False
        # Lightning's own handler, there until on_train_start, broadcasts from within: in the midst
        # of an evaluation's collective operations ranks would wait for each other forever.
        connector: Any = trainer._signal_connector
        connector._sigterm_notifier_fn = self._receive
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            # Who starts a process in the background may have SIGINT ignored in it.
            self._before = {
                number: signal.signal(number, self._receive)
                for number in SIGNALS
                if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
            }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        if self._before:
            for number in self._before:  # Lightning has wrapped one
                signal.signal(number, self._receive)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._put_back(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._put_back(trainer)

    def _put_back(self, trainer: L.Trainer) -> None:
        signals: Any = trainer._signal_connector
        vars(signals).pop("_sigterm_notifier_fn", None)
        before = {n: handler for n, handler in self._before.items() if handler is not None}
        signals._original_handlers.update(before)  # Lightning took ours for those
        for number, handler in before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            again, now = self._received == number, time.monotonic()
            if self._ended or (again and now - self._pressed > _SAME_PRESS):
                raise KeyboardInterrupt
            if not again:
                self._pressed = now
                _say("Ctrl-C: stopping once this step is done and saved; Ctrl-C again ends at once")
        self._received = number

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the midst of accumulation
        self._step = trainer.global_step
        self._ended = trainer.global_step >= trainer.max_steps >= 0
        if not trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            return
        saver = save_step(trainer)
        name, error = "a signal that another rank received", Preempted
        if self._received == signal.SIGINT:
            name, error = "Ctrl-C", Interrupted
        elif self._received is not None:
            name = signal.Signals(self._received).name
        raise error(
            f"stopped by {name} after step {trainer.global_step}, which is saved in "
            f"{saver.best_model_path}; start the same command again to go on"
        )


def _say(sentence: str) -> None:
    """Write to the terminal from within a handler of a signal, once for all processes."""
    if multiprocessing.parent_process() is None and os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\n{sentence}\n".encode())


def save_step(trainer: L.Trainer) -> ModelCheckpoint:
    """Have the trainer's ModelCheckpoint save this step, unless it just has; every rank calls this.

    UserError where there is none without ``monitor``.
    """
    saver = _saver(trainer)
    if saver._last_global_step_saved != trainer.global_step:
        saver._save_topk_checkpoint(trainer, saver._monitor_candidates(trainer))
    return saver


def saver_of(trainer: L.Trainer) -> ModelCheckpoint | None:
    """The trainer's ModelCheckpoint without ``monitor``, which saves any step."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and not callback.monitor and callback.save_top_k:
            return callback
    return None


def _saver(trainer: L.Trainer) -> ModelCheckpoint:
    saver = saver_of(trainer)
    if saver is None:
        raise UserError(
            "StopOnSignal saves with the trainer's ModelCheckpoint and found none without monitor; "
            "give the trainer one"
        )
    return saver


class TimeLimit(Timer):
    """Lightning's Timer, which ends training once ``hours`` of it are used up, after a whole step.

    Counted from ``on_train_start`` on, evaluations and checkpoints included, over all starts of
    the run: a checkpoint keeps what has been used. Time whose steps were lost does not count.
    Rank 0's clock decides for all.

    Timer alone looks after each micro-batch, and would end training in the midst of a step. And
    where a run is started again with no time left, it looks in ``on_fit_start``; Lightning then
    leaves ``on_train_start`` and ``on_train_end`` out, in which models are evaluated and exported.
    """

    def __init__(self, hours: float) -> None:
        if not hours > 0:
            raise UserError(f"the hours of training must be above 0, got {hours}")
        super().__init__(timedelta(hours=hours))
        self._step = 0

    def on_fit_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Nothing: see ``on_train_start``."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        self._check_time_remaining(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            super().on_train_batch_end(trainer, *args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "seconds" in state_dict:  # of a checkpoint from before this was a Timer
            state_dict = {"time_elapsed": {"train": state_dict["seconds"]}}
        super().load_state_dict(state_dict)
