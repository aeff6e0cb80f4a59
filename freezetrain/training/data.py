"""The LightningDataModule: texts trained on and replayed, as packed sequences in a fixed order."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
from transformers import PreTrainedTokenizerBase

from freezetrain.data.order import Mixed, Order, Pool, check_weights, pools
from freezetrain.data.packing import Packed, SequenceLoader
from freezetrain.data.rehearsed import Rehearsed
from freezetrain.data.streamed import Streamed
from freezetrain.data.streams import COUNTED, Stream
from freezetrain.data.texts import files_not_read, languages_in
from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.evaluation.texts import not_read_note
from freezetrain.files import readable
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource
from freezetrain.rehearsal import Rehearsal
from freezetrain.rehearsal.pieces import bytes_of_place
from freezetrain.tables import Column, Table
from freezetrain.training.recipe import Rehearse, Replay, TrainRecipe

_REHEARSAL = "/rehearsal"  # beside the languages, none of which can have this name


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
        packed: Mapping[str, Packed | Streamed],
        settings: Optimization,
        weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        replayed: Mapping[str, Packed | Streamed] | None = None,
        replay: Replay | None = None,
        not_read: Sequence[str] = (),
        rehearsed: Rehearsed | None = None,
        rehearse: Rehearse | None = None,
    ) -> None:
        super().__init__()
        self.packed = dict(packed)
        self.replayed = dict(replayed or {})
        self.settings = settings
        self.not_read = list(not_read)
        self.rehearsed = rehearsed
        self._replay = (replay or Replay()) if self.replayed else None
        self._rehearse = rehearse if rehearsed is not None else None
        self._pools = pools(_tokens(self.packed), weights or {}, temperature)
        # Where there is a stream, which has no end, the settings say how many steps there are.
        once = sum(len(part) for part in self.packed.values() if isinstance(part, Packed))
        mixed_in = [part for part in (self._replay, self._rehearse) if part is not None]
        if mixed_in:
            once = math.ceil(once / (1 - sum(part.share * part.until for part in mixed_in)))
        self.steps = settings.steps(once)
        self.order  # noqa: B018  refuses bad weights at once

    @property
    def sources(self) -> dict[str, Packed | Streamed | Rehearsed]:
        """All that sequences come from, by the names that the order has."""
        every: dict[str, Packed | Streamed | Rehearsed] = {**self.packed, **self.replayed}
        return every if self.rehearsed is None else {**every, _REHEARSAL: self.rehearsed}

    @cached_property
    def order(self) -> Order:
        """Which sequence stands at each place of the run."""
        sizes = {
            name: None if isinstance(part, Streamed) else len(part)
            for name, part in self.sources.items()
        }
        step, seed = self.settings.step_sequences, self.settings.seed
        mixed = []
        if replay := self._replay:
            weights, temperature = replay.weights, replay.temperature
            replayed = pools(_tokens(self.replayed), weights, temperature, "replay.weights")
            mixed.append(Mixed(replayed, replay.share, self._places_until(replay.until)))
        if rehearse := self._rehearse:
            until = self._places_until(rehearse.until)
            mixed.append(Mixed([Pool((_REHEARSAL,), 1.0)], rehearse.share, until))
        blocks = [part.block for part in self.sources.values() if isinstance(part, Streamed)]
        return Order(sizes, self._pools, self.steps * step, seed, mixed, *blocks[:1])

    def _places_until(self, share: float) -> int:
        return max(1, round(share * self.steps)) * self.settings.step_sequences

    def train_dataloader(self) -> SequenceLoader:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return SequenceLoader(self.sources, self.order, self.settings, rank, world)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is read of each language, and how much of the run it is.

        Counts of documents, held-out documents, tokens (BOS and EOS included), bytes of UTF-8,
        words (between white space), sequences and skipped lines; tokens_per_word and
        bytes_per_token; ``share`` of the run's sequences and ``epochs`` of the language's in it.
        Of a stream the counts are what was read of it so far, None at first; ``sequences`` and
        ``epochs`` are None, ``rounds`` is how often its texts have ended.
        """
        return {
            name: self._facts_of_stream(name, part)
            if isinstance(part, Streamed)
            else self._facts_of(name, part)
            for name, part in {**self.packed, **self.replayed}.items()
        }

    def _facts_of(self, name: str, packed: Packed) -> dict[str, Any]:
        return packed.store.facts | {
            "tokens_per_word": packed.store.facts["tokens"] / packed.store.facts["words"],
            "bytes_per_token": packed.store.facts["bytes"] / packed.store.facts["tokens"],
            "sequences": len(packed),
            "replayed": name in self.replayed,
            "share": self.order.epochs[name] * len(packed) / self.order.length,
            "epochs": self.order.epochs[name],
        }

    def _facts_of_stream(self, name: str, streamed: Streamed) -> dict[str, Any]:
        read: Mapping[str, int | None] = streamed.facts or dict.fromkeys(COUNTED)
        words, tokens, size = (read[count] for count in ("words", "tokens", "bytes"))
        return {
            **read,
            "tokens_per_word": tokens / words if tokens and words else None,
            "bytes_per_token": size / tokens if tokens and size else None,
            "sequences": None,
            "replayed": name in self.replayed,
            "share": self.order.shares[name],
            "epochs": None,
        }

    def rehearsal_facts(self) -> dict[str, Any] | None:
        """The same of what is rehearsed, and what is stored of it; None: nothing is.

        ``sequences`` that the base drew, their ``tokens`` (of each at most a sequence of the run),
        ``rows`` that they fill, ``share`` of the run's sequences and ``epochs``; the ``base`` by
        its name, ``top_tokens`` stored of each place and ``bytes`` on disk.
        """
        if self.rehearsed is None or self._rehearse is None:
            return None
        rehearsal, epochs = self.rehearsed.rehearsal, self.order.epochs[_REHEARSAL]
        lengths = np.minimum(rehearsal.lengths, self.settings.sequence_length)
        return {
            "folder": str(rehearsal.folder),
            "base": rehearsal.made.base.name,
            "loss": self._rehearse.loss,
            "teacher": self._rehearse.teacher,
            "sequences": len(rehearsal),
            "tokens": int(lengths.sum()),
            "rows": len(self.rehearsed),
            "share": epochs * len(self.rehearsed) / self.order.length,
            "epochs": epochs,
            "top_tokens": rehearsal.made.k,
            "bytes": bytes_of_place(rehearsal.made.vocabulary, rehearsal.made.k)
            * int(rehearsal.lengths.sum()),
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
        if drawn := self.rehearsal_facts():
            not_of_text = dict.fromkeys(("bytes", "tokens_per_word", "bytes_per_token"))
            named = {"language": "(rehearsal)", "documents": drawn["sequences"]}
            rows.append({**drawn, **not_of_text, **named})
        notes = [f"bad lines skipped: {', '.join(skipped)}"] if skipped else []
        if self.not_read:
            notes.append(not_read_note(self.not_read))
        if drawn:
            notes.append(
                f"rehearsal: documents are sequences that {drawn['base'] or 'the base'} drew; the "
                f"{drawn['top_tokens']} likeliest tokens of each place are stored, "
                f"{readable(drawn['bytes'])}"
            )
        return Table("texts trained on", columns, rows, note="; ".join(notes))


def _tokens(packed: Mapping[str, Packed | Streamed]) -> dict[str, int]:
    """Of a stream none: where there is one, shares do not go by them."""
    return {name: len(p.store) if isinstance(p, Packed) else 0 for name, p in packed.items()}


def read_data(
    recipe: TrainRecipe,
    tokenizer: PreTrainedTokenizerBase,
    world: int | None = None,
    rehearsal: Rehearsal | None = None,
) -> TextData:
    """Tokenize and pack what the recipe trains on and replays, or find it in the cache.

    Weights that name other languages, and, with ``world`` ranks given, a batch that they cannot
    share, are refused before anything is read. ``rehearsal``: what ``recipe.rehearse`` names.
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

    _require_weights(recipe.texts, trained, recipe.weights, "weights")
    if recipe.replay is not None:
        _require_weights(recipe.replay.texts, replayed, recipe.replay.weights, "replay.weights")

    def packed(source: TextSource, language: str) -> Packed | Streamed:
        if source.endless:
            stream = Stream(source, language, tokenizer)
            return Streamed(stream, settings.sequence_length, settings.document_mask)
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
        _rehearsed(recipe, rehearsal),
        recipe.rehearse,
    )


def _require_weights(
    source: TextSource, languages: Sequence[str], weights: Mapping[str, float], name: str
) -> None:
    if source.endless and len(languages) > 1 and not weights:
        raise UserError(
            f"the texts of {len(languages)} languages are streamed, so that their sizes are not "
            f"known; give {name}, a share for each of {' '.join(languages)}"
        )


def _rehearsed(recipe: TrainRecipe, rehearsal: Rehearsal | None) -> Rehearsed | None:
    if recipe.rehearse is None or rehearsal is None:
        return None
    return Rehearsed(
        rehearsal,
        recipe.optimization.sequence_length,
        recipe.optimization.document_mask,
        recipe.rehearse.loss,
        recipe.rehearse.teacher == "stored",
    )
