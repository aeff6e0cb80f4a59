"""The LightningDataModule: texts of the target language(s), tokenized, packed, in a fixed order."""

from collections.abc import Mapping

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from freezetrain.corpora import Language
from freezetrain.recipe import Optimization
from freezetrain.training.order import SequenceLoader, data_order
from freezetrain.training.packing import Packed, pack


class TextData(L.LightningDataModule):
    """Packed training sequences of ``languages``, ``steps`` optimizer steps long.

    Evaluation is not its business: ForgettingTracker reads whole held-out documents.
    Raises UserError where a language's training texts do not fill one sequence.
    """

    def __init__(
        self,
        languages: Mapping[str, Language],
        tokenizer: PreTrainedTokenizerBase,
        settings: Optimization,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.weights = dict(weights or {})
        self.packed: dict[str, Packed] = {
            name: pack(
                language.train,
                tokenizer,
                settings.sequence_length,
                f"the training part of language {name!r}",
            )
            for name, language in languages.items()
        }

        data_order(self._sizes, self.weights, 0, settings.seed)  # refuses bad weights at once

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: len(packed.sequences) for name, packed in self.packed.items()}

    def train_dataloader(self) -> SequenceLoader:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        settings = self.settings
        order = data_order(
            self._sizes,
            self.weights,
            settings.steps * settings.accumulate * settings.micro_batch * world,
            settings.seed,
        )
        sequences = torch.cat([packed.sequences for packed in self.packed.values()])
        return SequenceLoader(sequences, order, settings.micro_batch, rank, world)
