"""Watch the held-out languages while any LightningModule trains."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from rich.console import Console
from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.documents import Document
from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.history import History
from freezetrain.evaluation.perplexity import evaluate
from freezetrain.evaluation.results import write_results
from freezetrain.evaluation.table import forgetting_table

TABLE_ROWS = 8  # held-out languages in the terminal; the results file has all


class ForgettingTracker(L.Callback):
    """Evaluate every language before the first step, every ``every_n_steps`` and at the end.

    Steps are optimizer steps, whatever the accumulation. What is found goes to the trainer's
    loggers (``forgetting/<language>/perplexity``, ``.../bits_per_byte``,
    ``.../delta_nll_per_byte``, ``forgetting/mean``, ``/worst``, ``/backward_transfer``,
    ``/target_gain``; nats per byte unless the name says otherwise), to ``results_path`` and as a
    table to the terminal. Training is the same, bit for bit, with and without it.

    The evaluation before the first step is the base that all others are compared with. It is
    kept in checkpoints, so that a resumed run compares with the same base. ``history`` holds all,
    and ``seconds`` is the time that evaluations have taken since the fit began.

    Works on one device, under DDP, FSDP2 (ModelParallelStrategy) and DeepSpeed, in the precision
    that the model computes in there.
    """

    def __init__(
        self,
        documents: Mapping[str, Sequence[Document]],
        target: str | None = None,
        *,
        every_n_steps: int = 100,
        max_length: int = 512,
        batch_tokens: int = 4096,
        results_path: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        module: str = "model",
        table: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Say what is watched, and how.

        Args:
            documents: language -> documents to evaluate, see ``encode_documents``.
            target: the language trained on, one of ``documents``; all others are held out.
            every_n_steps: optimizer steps between evaluations.
            max_length: tokens in a window, see ``evaluate``.
            batch_tokens: tokens in an evaluation batch, see ``evaluate``.
            results_path: JSON file, rewritten after each evaluation.
            overwrite: let a new run replace an existing results file.
            module: dotted name, inside the LightningModule, of the submodule that is called with
                ``input_ids`` and returns ``.logits``; "" is the LightningModule itself.
            table: print a table after each evaluation.
            progress: called with the tokens done and their total during an evaluation.

        Raises ``UserError`` for values that cannot work.
        """
        if every_n_steps < 1:
            raise UserError(f"every_n_steps must be 1 or more, got {every_n_steps}")
        if target is not None and target not in documents:
            raise UserError(
                f"the target language {target!r} is not among the documents' languages "
                f"{', '.join(documents)}{near_misses(target, documents)}; add its documents"
            )
        if not documents.keys() - {target}:
            raise UserError("expected documents of at least one held-out language, got none")
        self.documents = documents
        self.every_n_steps = every_n_steps
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.results_path = None if results_path is None else Path(results_path)
        self.overwrite = overwrite
        self.module = module
        self.table = table
        self.progress = progress
        self.history = History(target)
        self.seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.seconds = 0.0
        good = SingleDeviceStrategy | DDPStrategy | DeepSpeedStrategy | ModelParallelStrategy
        if not isinstance(trainer.strategy, good):
            raise UserError(
                f"ForgettingTracker cannot evaluate under {type(trainer.strategy).__name__}: train "
                "on one device, or with DDPStrategy, ModelParallelStrategy (FSDP2) or "
                "DeepSpeedStrategy"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._model(pl_module)  # refused before anything is written
        if trainer.global_step > 0:
            self._check_resumed(trainer.global_step)
        else:
            self.history = History(self.history.target)
            self._write_results(trainer, new=True)  # before the first evaluation takes its time
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Runs before the checkpoint callbacks, so that a checkpoint holds its step's evaluation.
        # Compared by quotient: with several optimizers the step count may jump over a multiple.
        step, last = trainer.global_step, self.history.last.step
        due = step // self.every_n_steps > last // self.every_n_steps
        if due or (step > last and step == trainer.max_steps):
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self.history.last.step:
            self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return self._results()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, now in (("max_length", self.max_length), ("target", self.history.target)):
            if state_dict[name] != now:
                raise UserError(
                    f"the checkpoint's run watches forgetting with {name} {state_dict[name]!r}, "
                    f"got {now!r}; resume with the same"
                )
        self.history = History.from_dict(state_dict)

    def _results(self) -> dict[str, Any]:
        settings = {"every_n_steps": self.every_n_steps, "max_length": self.max_length}
        return settings | self.history.to_dict()

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

    def _check_resumed(self, step: int) -> None:
        """A base of other documents, or none, would make every later figure wrong."""
        if not self.history.evaluations:
            raise UserError(
                f"the run resumes at step {step} from a checkpoint without a base evaluation of "
                "ForgettingTracker; start anew, or resume without the tracker"
            )
        now = {
            language: (sum(d.tokens for d in documents), sum(d.bytes for d in documents))
            for language, documents in self.documents.items()
        }
        base = self.history.base.figures
        then = {language: (figures.tokens, figures.bytes) for language, figures in base.items()}
        for language in sorted(now.keys() | then.keys()):
            if now.get(language) != then.get(language):
                raise UserError(
                    f"the checkpoint's base was evaluated on (tokens, bytes) "
                    f"{then.get(language, 'nothing')} of {language!r}, got documents of "
                    f"{now.get(language, 'nothing')}; resume with the same documents"
                )

    def _write_results(self, trainer: L.Trainer, new: bool = False) -> None:
        """Write the file; where it cannot be written, or is ``new`` and there, all ranks refuse."""
        refusal = None
        if trainer.is_global_zero and self.results_path is not None:
            try:
                if new and self.results_path.exists() and not self.overwrite:
                    raise UserError(
                        f"the results file {str(self.results_path)!r} exists; choose another "
                        "path, or give overwrite=True"
                    )
                write_results(self.results_path, self._results())
            except UserError as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal is not None:
            raise UserError(refusal)

    def figures(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Figures]:
        """Evaluate the weights as they are now, on every rank, without keeping what is found."""
        start = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            found = evaluate(
                self._model(pl_module),
                self.documents,
                max_length=self.max_length,
                batch_tokens=self.batch_tokens,
                progress=self.progress,
            )
        self.seconds += time.perf_counter() - start
        return found

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.history.add(trainer.global_step, self.figures(trainer, pl_module))
        for logger in trainer.loggers:
            logger.log_metrics(self.history.scalars(), step=trainer.global_step)
        self._write_results(trainer)
        if self.table and trainer.is_global_zero:
            pl_module.print(self._table())  # above the progress bar, whichever the trainer has

    def _table(self) -> str:
        base, last = self.history.base, self.history.last
        title = f"Forgetting at step {last.step}, against step {base.step}"
        console = Console(file=sys.stdout)
        with console.capture() as text:
            console.print(
                forgetting_table(
                    base.figures,
                    last.figures,
                    self.history.target,
                    title=title,
                    rows=TABLE_ROWS,
                )
            )
        return text.get().rstrip("\n")
