"""Texts without an end: training documents of one language in order, tokenized, cut into blocks."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from freezetrain.data.chat import chat_template, without_cuts, written
from freezetrain.data.hub import HubRows, configurations
from freezetrain.data.reading import AT_ONCE, read_places
from freezetrain.data.rows import BAD, GOOD
from freezetrain.data.texts import files_of, require_language
from freezetrain.data.tokens import encode, tokenizer_digest
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

_CHARACTERS = 2**20  # of the documents that are tokenized together

COUNTED = ("documents", "held_out", "skipped", "tokens", "bytes", "words", "rounds")

_VERSION = 1  # of what a checkpoint says of a stream


class Rows(Protocol):
    """Rows (FEATURES) of a language, each with its place, from ``at`` on (None: the beginning).

    After each row ``at`` is the place behind it, JSON-able.
    """

    at: Any

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]: ...


class FileRows:
    """:class:`Rows` of files, one after another. Files before ``at`` are not opened."""

    def __init__(self, files: Sequence[Path], source: TextSource, at: Any = None) -> None:
        self.at = [0, 0] if at is None else at
        self._files = files
        self._source = source

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        first, passed = self.at
        for number in range(first, len(self._files)):
            path = self._files[number]
            for row_number, (place, row) in enumerate(read_places(path, self._source), 1):
                if number > first or row_number > passed:
                    self.at = [number, row_number]
                    yield f"{path} {place}", row


@dataclass(frozen=True)
class Block:
    """N sequences of L tokens of a stream, one after another.

    ``tokens`` [N · L + 1] uint32, the last one a label only; ``starts`` int64: places in
    ``tokens`` at which a document starts. ``state``, JSON-able: where the stream is read from to
    have this block again. ``facts``: what had been read of the language when it was full.
    """

    number: int
    tokens: np.ndarray
    starts: np.ndarray
    state: dict[str, Any]
    facts: dict[str, int]


class Stream:
    """The training documents of ``language`` in the order of their files, over and over.

    They are split as :func:`freezetrain.data.texts.read_languages` does, by document. ``digest``
    [hex] tells which they are: by names and sizes of files, or by what the hub says of the data
    set, how they are read and split, and the tokenizer.

    Raises UserError for a language that the source does not hold, and where its conversations need
    a chat template that the tokenizer lacks.
    """

    def __init__(
        self, source: TextSource, language: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.language = language
        self._tokenizer = tokenizer
        self._files: list[Path] = []
        self._config = ""
        if source.hub is not None:
            configs = configurations(source, [language])
            require_language(language, configs, source)
            self._config = configs[language]
            known: list[Any] = [source.hub, self._config, source.hub_split, source.revision]
            known.append(HubRows(self._config, source).identity)
        else:
            files = {name: found.texts for name, found in files_of(source).items() if found.texts}
            require_language(language, files, source)
            self._files = files[language]
            known = [[path.name, path.stat().st_size] for path in self._files]
        self._source = source
        how = [*source.read_as, source.test_one_in, source.txt_documents]
        template = None if source.messages_field is None else chat_template(tokenizer)
        content = [_VERSION, known, how, tokenizer_digest(tokenizer), template]
        self.digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()

    def _rows(self, at: Any) -> Rows:
        if self._source.hub is not None:
            return HubRows(self._config, self._source, at)
        return FileRows(self._files, self._source, at)

    def batches(
        self, at: Any, facts: dict[str, int]
    ) -> Iterator[tuple[Any, dict[str, int], list[list[int]]]]:
        """Token ids of the training documents behind ``at``, some documents at a time, each time
        with the place before them and what was read before it. ``facts`` counts what is read.

        Raises UserError as :func:`freezetrain.data.reading.read_places` does when it comes to what
        cannot be read, and where no document is for training.
        """
        write = written(self._source, self._tokenizer)
        while True:
            from_the_start, read_before = at is None, facts["documents"]
            rows = self._rows(at)
            before = dict(facts)
            texts: list[str] = []
            size = 0
            for place, row in rows:
                if row["kind"] != GOOD:
                    facts["skipped"] += row["kind"] == BAD
                    continue
                if self._source.test_one_in and row["key"] % self._source.test_one_in == 0:
                    facts["held_out"] += 1
                    continue
                try:
                    texts.append(write(row["text"]))
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error
                size += len(texts[-1])
                if len(texts) >= AT_ONCE or size >= _CHARACTERS:
                    yield at, before, self._encoded(texts, facts)
                    at, before, texts, size = rows.at, dict(facts), [], 0
            if texts:
                yield at, before, self._encoded(texts, facts)
            if from_the_start and facts["documents"] == read_before:
                raise UserError(
                    f"language {self.language!r} has no training document: {facts['held_out']} "
                    f"are held out, {facts['skipped']} bad; give it more, or another test_one_in"
                )
            facts["rounds"] += 1
            at = None

    def _encoded(self, texts: list[str], facts: dict[str, int]) -> list[list[int]]:
        chats = self._source.messages_field is not None
        encoded = list(encode(texts, self._tokenizer, chats))
        plain = [without_cuts(text) if chats else text for text in texts]
        facts["documents"] += len(texts)
        facts["tokens"] += sum(map(len, encoded))
        facts["bytes"] += sum(len(text.encode()) for text in plain)
        facts["words"] += sum(len(text.split()) for text in plain)
        return encoded


@dataclass(frozen=True)
class _Mark:
    """Where a batch of documents begins in the tokens at hand."""

    token: int
    at: Any
    facts: dict[str, int]


def blocks(
    stream: Stream,
    sequence_length: int,
    block: int,
    number: int = 0,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Block]:
    """Blocks of ``block`` sequences of a stream: from number ``number`` on, which begins at
    ``state``, without an end.

    At most one block and one batch of documents are in memory.
    """
    size = block * sequence_length
    state = state or {"at": None, "tokens": 0, "facts": dict.fromkeys(COUNTED, 0)}
    facts, begin = dict(state["facts"]), int(state["tokens"])
    marks: deque[_Mark] = deque()
    parts: list[np.ndarray] = []
    starts: list[int] = []
    held = 0
    for at, before, encoded in stream.batches(state["at"], facts):
        marks.append(_Mark(held, at, before))
        for ids in encoded:
            starts.append(held)
            parts.append(np.array(ids, dtype=np.uint32))
            held += len(ids)
        while held > begin + size:
            tokens = np.concatenate(parts)
            mark = _last_before(marks, begin)
            here = np.array(starts, dtype=np.int64) - begin
            yield Block(
                number,
                tokens[begin : begin + size + 1].copy(),
                here[(here >= 0) & (here <= size)],
                {"at": mark.at, "tokens": begin - mark.token, "facts": mark.facts},
                dict(facts),
            )
            number, begin = number + 1, begin + size
            gone = _last_before(marks, begin).token  # nothing before it is needed again
            parts, held, begin = [tokens[gone:]], held - gone, begin - gone
            starts = [start - gone for start in starts if start >= gone]
            marks = deque(replace(mark, token=mark.token - gone) for mark in marks)


def _last_before(marks: deque[_Mark], token: int) -> _Mark:
    """The last of ``marks`` that is not behind ``token``; those before it go."""
    while len(marks) > 1 and marks[1].token <= token:
        marks.popleft()
    return marks[0]
