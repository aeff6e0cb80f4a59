"""The model that a run leaves: exported when training ends, while each engine holds its shards."""

from pathlib import Path

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from freezetrain.callbacks import ForgettingTracker
from freezetrain.callbacks.average import WeightAverage
from freezetrain.callbacks.base_average import BaseAverage
from freezetrain.callbacks.stopping import save_step
from freezetrain.evaluation import Figures
from freezetrain.training.adapters import merged
from freezetrain.training.export import export
from freezetrain.training.module import CausalLM


class Export(L.Callback):
    """Export ``pl_module.model`` to ``folder`` at the end of training, on all ranks together.

    ``dtype`` is what the weights are rounded to (None: the one that they are in). With an
    ``average``, the averaged weights are exported, and evaluated by ``watch``: ``figures``.
    Adapters are added to the weights. A folder that is there already is a whole export: a start of
    the same run, killed later, left it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        dtype: torch.dtype | None = None,
        average: WeightAverage | BaseAverage | None = None,
        watch: ForgettingTracker | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.dtype = dtype
        self.average = average
        self.watch = watch
        self.figures: dict[str, Figures] | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CausalLM)
        if trainer.strategy.broadcast(self.folder.exists()):
            return
        if trainer.should_stop:
            save_step(trainer)  # the time is used up: a kill from here on loses no step
        if self.average is None:
            with merged(pl_module.model):
                export(pl_module.model, self.tokenizer, self.folder, dtype=self.dtype)
            return
        with self.average.averaged(pl_module):
            if self.watch is not None:
                self.figures = self.watch.figures(trainer, pl_module)
            export(pl_module.model, self.tokenizer, self.folder, dtype=self.dtype)

    def ensure(self, trainer: L.Trainer) -> None:
        """Export after a fit with nothing left to do: the run was killed after its last step."""
        self.on_train_end(trainer, trainer.lightning_module)
