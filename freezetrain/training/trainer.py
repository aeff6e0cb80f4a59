"""Lightning's Trainer in a run's folder: fit, resume, and the export at the end."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.callbacks import (
    BaseAverage,
    ForgettingTracker,
    StopOnSignal,
    TimeLimit,
    WeightAverage,
)
from freezetrain.callbacks.progress import StepProgress
from freezetrain.callbacks.step_lines import StepLines
from freezetrain.callbacks.stopping import save_step
from freezetrain.devices import world_size
from freezetrain.errors import CheckError
from freezetrain.evaluation import Figures
from freezetrain.ranks import current_launch
from freezetrain.recipe.optimization import Engine
from freezetrain.terminal import Terminal
from freezetrain.training.adapters import merged
from freezetrain.training.checkpoints import StepCheckpoint, latest_checkpoint, resumable
from freezetrain.training.data import TextData
from freezetrain.training.engines import trainer_options
from freezetrain.training.export import Types, export
from freezetrain.training.heap import given_back
from freezetrain.training.module import CausalLM, Load


def fit(
    model: PreTrainedModel | Load,
    data: TextData,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    checkpoint_every: int = 100,
    progress: bool = True,
    engine: Engine | None = None,
    teacher: PreTrainedModel | None = None,
    loggers: Sequence[Logger] | None = None,
) -> L.Trainer:
    """Train ``model`` with logs and checkpoints in ``folder``; resume what is there.

    ``model`` and ``teacher`` as in CausalLM. ``engine`` says on what; None: one device, or DDP
    where several processes were started. ``loggers`` of this rank; None: TensorBoard's.

    Resuming after a kill at any moment gives the weights of the uninterrupted run: data order and
    dropout depend on seed and position alone, and a checkpoint is written whole or not at all.
    Raises Preempted, with a checkpoint written, where a signal asks the run to stop; Interrupted
    where Ctrl-C does; KeyboardInterrupt where it is pressed twice, or before training begins.
    """
    settings, engine, launch = data.settings, engine or Engine(), current_launch()
    L.seed_everything(settings.seed, verbose=False)
    latest = latest_checkpoint(folder)
    world = world_size(engine, launch)
    deepspeed = {}
    if latest is not None:
        deepspeed = resumable(latest, world, engine.kind, settings.optimizer)
    if progress:
        bar = StepProgress() if Terminal(stderr=True).is_terminal else StepLines()
        for callback in callbacks:
            if isinstance(callback, ForgettingTracker):
                callback.progress = bar.evaluating
        callbacks = [bar, *callbacks]  # first, so that it is there when the base is evaluated
    if loggers is None:
        loggers = [TensorBoardLogger(folder, name="tensorboard", version="")]
    limit = [] if settings.max_hours is None else [TimeLimit(settings.max_hours)]
    trainer = L.Trainer(
        **trainer_options(engine, settings, launch, deepspeed),
        max_steps=data.steps,
        max_epochs=1,  # the loader holds the whole run
        gradient_clip_val=settings.clip_norm,
        logger=loggers,
        callbacks=[
            *callbacks,
            *limit,
            StepCheckpoint(folder, checkpoint_every),
            StopOnSignal(),
        ],
        log_every_n_steps=1 if data.steps <= 200 else 10,
        enable_model_summary=False,
        enable_progress_bar=progress and isinstance(callbacks[0], StepProgress),
    )
    if isinstance(model, PreTrainedModel):
        model.train()
    module = CausalLM(model, settings, data.steps, teacher)
    scarce = engine.gradient_checkpointing and not torch.cuda.is_available()
    whole = scarce and isinstance(model, PreTrainedModel)
    with _interrupts(), given_back(module.model) if whole else nullcontext():
        trainer.fit(module, datamodule=data, ckpt_path=latest, weights_only=True)
    module.model.eval()
    if trainer.global_step < data.steps and not trainer.should_stop:
        raise CheckError(
            f"the texts ended after step {trainer.global_step} of {data.steps}; nothing was "
            "exported, and checkpoints so far are kept"
        )
    return trainer


@contextmanager
def _interrupts() -> Iterator[None]:
    """KeyboardInterrupt as such, of which Lightning makes an exit with status 1.

    It also has further ones ignored, in all that follows in the process.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from error


class Export(L.Callback):
    """Export ``pl_module.model`` to ``folder`` at the end of training, on all ranks together.

    ``dtype`` and ``tied_head`` are those of :func:`export`. With an ``average``, the averaged
    weights are exported, and evaluated by ``watch``: ``figures``. Adapters are added to the
    weights. A folder that is there already is a whole export: a start of the same run, killed
    later, left it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        dtype: Types = None,
        average: WeightAverage | BaseAverage | None = None,
        watch: ForgettingTracker | None = None,
        tied_head: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.dtype = dtype
        self.average = average
        self.watch = watch
        self.tied_head = tied_head
        self.figures: dict[str, Figures] | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CausalLM)
        if trainer.strategy.broadcast(self.folder.exists()):
            return
        if trainer.should_stop:
            save_step(trainer)  # the time is used up: a kill from here on loses no step
        if self.average is None:
            with merged(pl_module.model):
                self._export(pl_module.model)
            return
        with self.average.averaged(pl_module):
            if self.watch is not None:
                self.figures = self.watch.figures(trainer, pl_module)
            self._export(pl_module.model)

    def _export(self, model: PreTrainedModel) -> None:
        export(model, self.tokenizer, self.folder, dtype=self.dtype, tied_head=self.tied_head)

    def ensure(self, trainer: L.Trainer) -> None:
        """Export after a fit with nothing left to do: the run was killed after its last step."""
        self.on_train_end(trainer, trainer.lightning_module)
