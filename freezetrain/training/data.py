"""The LightningDataModule: texts trained on and replayed, as packed sequences in a fixed order."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning as L
from transformers import PreTrainedTokenizerBase

from freezetrain.data.order import Order, check_weights, pools
from freezetrain.data.packing import Packed, SequenceLoader
from freezetrain.data.texts import files_not_read, languages_in
from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.evaluation.texts import not_read_note
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource
from freezetrain.tables import Column, Table
from freezetrain.training.recipe import Replay, TrainRecipe


class TextData(L.LightningDataModule):
    """Training sequences of the languages ``packed``, mixed with those ``replayed``.

    ``weights`` and ``temperature`` share the run among the languages trained on, ``replay`` says
    how it is shared with those replayed. ``steps`` is how many optimizer steps the run has: where
    the settings limit neither steps nor tokens, one pass over what is trained on, with what is
    replayed on top.

    ``not_read``: files among the texts that are not read, each with the reason, for the table.
    Evaluation is not its business: ForgettingTracker reads whole held-out documents.
    Raises UserError where weights name other languages than these.
    """

    def __init__(
        self,
        packed: Mapping[str, Packed],
        settings: Optimization,
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        replayed: Mapping[str, Packed] | None = None,
        replay: Replay | None = None,
        not_read: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.packed = dict(packed)
        self.replayed = dict(replayed or {})
        self.settings = settings
        self.not_read = list(not_read)
        self._replay = (replay or Replay()) if self.replayed else None
        self._pools = pools(_tokens(self.packed), weights or {}, temperature)
        once = sum(map(len, self.packed.values()))
        if self._replay is not None:
            once = math.ceil(once / (1 - self._replay.share * self._replay.until))
        self.steps = settings.steps(once)
        self.order  # noqa: B018  refuses bad weights at once

    @cached_property
    def order(self) -> Order:
        """Which sequence stands at each place of the run."""
        every = {**self.packed, **self.replayed}
        sizes = {name: len(packed) for name, packed in every.items()}
        step, seed = self.settings.step_sequences, self.settings.seed
        if self._replay is None:
            return Order(sizes, self._pools, self.steps * step, seed)
        return Order(
            sizes,
            self._pools,
            self.steps * step,
            seed,
            replayed=pools(
                _tokens(self.replayed),
                self._replay.weights,
                self._replay.temperature,
                "replay.weights",
            ),
            replay_share=self._replay.share,
            until=max(1, round(self._replay.until * self.steps)) * step,
        )

    def train_dataloader(self) -> SequenceLoader:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        every = {**self.packed, **self.replayed}
        return SequenceLoader(every, self.order, self.settings, rank, world)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is read of each language, and how much of the run it is.

        Counts of documents, held-out documents, tokens (BOS and EOS included), bytes of UTF-8,
        words (between white space), sequences and skipped lines; tokens_per_word and
        bytes_per_token; ``share`` of the run's sequences and ``epochs`` of the language's in it.
        """
        return {
            name: packed.store.facts
            | {
                "tokens_per_word": packed.store.facts["tokens"] / packed.store.facts["words"],
                "bytes_per_token": packed.store.facts["bytes"] / packed.store.facts["tokens"],
                "sequences": len(packed),
                "replayed": name in self.replayed,
                "share": self.order.epochs[name] * len(packed) / self.order.length,
                "epochs": self.order.epochs[name],
            }
            for name, packed in {**self.packed, **self.replayed}.items()
        }

    def table(self) -> Table:
        """The facts, to be looked at before training starts."""
        columns = [
            Column("language", "language", text=True),
            *(Column(count, count) for count in ("documents", "tokens", "bytes")),
            Column("tokens/word", "tokens_per_word", "{:.2f}".format),
            Column("bytes/token", "bytes_per_token", "{:.2f}".format),
            Column("share", "share", "{:.1%}".format),
            Column("epochs", "epochs", "{:.2f}".format),
        ]
        rows, skipped = [], []
        for name, facts in self.facts().items():
            replay = " (replay)" if facts["replayed"] else ""
            rows.append({"language": name + replay, **facts})
            if facts["skipped"]:
                skipped.append(f"{facts['skipped']} of {name}")
        notes = [f"bad lines skipped: {', '.join(skipped)}"] if skipped else []
        if self.not_read:
            notes.append(not_read_note(self.not_read))
        return Table("texts trained on", columns, rows, note="; ".join(notes))


def _tokens(packed: Mapping[str, Packed]) -> dict[str, int]:
    return {name: len(sequences.store) for name, sequences in packed.items()}


def read_data(
    recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase, world: int | None = None
) -> TextData:
    """Tokenize and pack what the recipe trains on and replays, or find it in the cache.

    Weights that name other languages, and, with ``world`` ranks given, a batch that they cannot
    share, are refused before anything is read.
    Raises UserError as :func:`tokenize` does, and where a language has too little text.
    """
    settings = recipe.optimization
    if world is not None:
        settings.accumulate(world)
    trained = recipe.languages or languages_in(recipe.texts)
    replayed: list[str] = []
    if recipe.replay is not None:
        replayed = recipe.replay.languages or [
            name for name in languages_in(recipe.replay.texts) if name not in trained
        ]
        if not replayed:
            raise UserError(
                "replay.texts holds no language but those trained on; give it texts of the "
                "languages to keep, or leave replay out"
            )
        if both := [name for name in replayed if name in trained]:
            raise UserError(
                f"language {both[0]!r} is both trained on and replayed; leave it out of one of "
                "languages and replay.languages"
            )
    not_read = files_not_read(recipe.replay.texts, replayed) if recipe.replay is not None else []
    check_weights(trained, recipe.weights)
    if recipe.replay is not None:
        check_weights(replayed, recipe.replay.weights, "replay.weights")

    def packed(source: TextSource, language: str) -> Packed:
        store = tokenize(source, language, tokenizer, recipe.cache, recipe.workers)
        return Packed(store, settings.sequence_length, settings.document_mask)

    return TextData(
        {name: packed(recipe.texts, name) for name in trained},
        settings,
        recipe.weights,
        recipe.temperature,
        {name: packed(recipe.replay.texts, name) for name in replayed} if recipe.replay else {},
        recipe.replay,
        [*files_not_read(recipe.texts, recipe.languages), *not_read],
    )
