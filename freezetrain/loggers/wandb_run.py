"""A run of Weights & Biases: begun, gone on with, and ended without waiting for a lost network."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from freezetrain.errors import Preempted, UserError
from freezetrain.loggers.recipe import Wandb
from freezetrain.stored_model import say
from freezetrain.user_files import reason

END_SECONDS = 300
"""How long the end of a run may wait for what is not sent yet; it stays in the run's folder."""

_STEP = "trainer/global_step"  # Lightning's, the horizontal axis


def begin(options: Wandb, folder: Path, name: str, run_id: str) -> WandbLogger:
    """A logger of a new run, or of the one called ``run_id`` where it is there.

    Raises UserError where Weights & Biases cannot be reached or says no.
    """
    import wandb

    variables = os.environ
    # A kill loses what is not in the file yet.
    settings = {"x_transaction_log_flush_interval": 1.0, "finish_timeout": END_SECONDS}
    given = {key: v for key, v in settings.items() if f"WANDB_{key.upper()}" not in variables}
    with _said():
        run = wandb.init(
            project=options.project or variables.get("WANDB_PROJECT") or "freezetrain",
            entity=options.entity,
            name=options.name or variables.get("WANDB_NAME") or name,
            dir=None if "WANDB_DIR" in variables else folder,
            mode=options.mode,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(**given),
        )
    # As WandbLogger does with a run that it begins itself.
    run.define_metric(_STEP)
    run.define_metric("*", step_metric=_STEP, step_sync=True)
    return WandbLogger(experiment=run)


def end(logger: WandbLogger, error: BaseException | None) -> None:
    """End the run, so that the next one in this process is another.

    What goes wrong here is said: training is over, and its results are to be kept.
    """
    run = logger.experiment
    try:
        if isinstance(error, Preempted):
            run.mark_preempting()
        run.finish(exit_code=0 if error is None else 1)
    except Exception as failure:  # as its process has ended by a fault of its own
        why = reason(failure)
        say(f"Weights & Biases did not end the run {run.id}: {why}; send it with `wandb sync`")


def require_login(options: Wandb) -> None:
    """Ask for the key, in a terminal, unless it is known or none is needed.

    UserError where nobody can be asked.
    """
    import wandb

    if options.mode != "offline":
        with _said():
            wandb.login()


@contextmanager
def _said() -> Iterator[None]:
    """A UserError instead of what Weights & Biases raises inside."""
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise UserError(
            f"logger: cannot log to Weights & Biases: {reason(RuntimeError(str(error)))}; log in "
            "with `wandb login` or WANDB_API_KEY, or keep the run here with wandb.mode offline and "
            "send it later with `wandb sync`"
        ) from error
