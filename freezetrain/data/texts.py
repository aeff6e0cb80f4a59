"""Texts of several languages, kept on disk and split into train and test by document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import datasets
import numpy as np

from freezetrain.data.folder import folder_rows, language_files
from freezetrain.data.hub import configurations, hub_rows
from freezetrain.data.reading import BAD, GOOD
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import TextSource

_AT_ONCE = 256  # documents in memory: one may be a whole book


class Texts(Sequence[str]):
    """Documents of one language: rows ``numbers`` of ``rows``, which stay on disk until read."""

    def __init__(self, rows: datasets.Dataset, numbers: np.ndarray) -> None:
        self.rows = rows
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.rows[self.numbers[index].tolist()]["text"] if len(self) else []
        return self.rows[int(self.numbers[index])]["text"]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self[first : first + _AT_ONCE]

    def sample(self, documents: int) -> "Texts":
        """At most so many of the documents, chosen by a hash of their keys, in the same order.

        The same on every machine and, where a field is the key, in all parallel languages.
        """
        keys = self.rows.data.table.column("key").to_numpy()[self.numbers]
        first = np.argsort(_scattered(keys), kind="stable")[:documents]
        return Texts(self.rows, np.sort(self.numbers[first]))


def _scattered(keys: np.ndarray) -> np.ndarray:
    """Each 32-bit key as another one, so that close keys lie far apart and none collide.

    MurmurHash3's finalizer (https://github.com/aappleby/smhasher). By CRC-32 alone, of which the
    keys are made, short numbers would follow one another in a pattern.
    """
    mixed = keys.astype(np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    return mixed


@dataclass(frozen=True)
class Language:
    """The texts of one language: ``train`` and ``test`` share no document."""

    name: str
    train: Texts
    test: Texts
    skipped: int = 0
    """Bad lines left out, where ``bad_lines`` of the source says skip."""

    def to_train(self) -> Texts:
        """``train``; UserError where all documents are held out."""
        if not self.train:
            raise UserError(
                f"language {self.name!r} has no training document among {len(self.test)}: all are "
                "held out; give it more documents, or another test_one_in"
            )
        return self.train


def languages_in(source: TextSource) -> list[str]:
    """Names of the languages that the source holds, sorted."""
    return sorted(configurations(source) if source.hub else language_files(source))


def read_languages(source: TextSource, languages: Sequence[str] = ()) -> dict[str, Language]:
    """Read ``languages`` (all of the source when empty) and split each by document.

    A document is a line of a JSONL file, an item of a JSON array, a row of a Parquet file, or a
    paragraph (or a line) of a text file, whose fields are its text and ``line``, the number of its
    first line. It is a test document when the CRC-32 of its key is divisible by
    ``source.test_one_in``; the key is the field ``source.key_field``, so that parallel documents
    fall on the same side in every language, or the text itself where that is None. Documents of
    white space alone are left out.

    What was read is kept in the cache of `datasets`, as Arrow files, and mapped into memory.
    Raises UserError for a language without a file or without text, and for unreadable files.
    """
    if source.hub is not None:
        found = configurations(source, languages)
        read = {name: partial(hub_rows, config, source) for name, config in found.items()}
    else:
        built_in = source.folder is None
        source = replace(source, key_field="section") if built_in else source
        files = language_files(source)
        read = {name: partial(folder_rows, paths, source) for name, paths in files.items()}
    where = source.hub or source.folder or "the built-in texts"
    for language in languages:
        if language not in read:
            raise UserError(
                f"no texts for language {language!r} in {where}{near_misses(language, read)}; it "
                f"holds {' '.join(sorted(read))}"
            )
    return {name: _split(read[name](), name, where, source) for name in languages or sorted(read)}


def _split(rows: datasets.Dataset, language: str, where: str, source: TextSource) -> Language:
    keys, kinds = (rows.data.table.column(name).to_numpy() for name in ("key", "kind"))
    good, bad = kinds == GOOD, int((kinds == BAD).sum())
    if not good.any():
        skipped = f", only {bad} bad lines" if bad else ""
        raise UserError(
            f"{where} holds no text of language {language!r}{skipped}; give it some or leave the "
            "language out"
        )
    is_test = keys % source.test_one_in == 0 if source.test_one_in else np.zeros_like(good)
    kind = np.uint32 if len(rows) < 2**32 else np.uint64
    train, test = (
        np.flatnonzero(chosen).astype(kind) for chosen in (good & ~is_test, good & is_test)
    )
    return Language(language, Texts(rows, train), Texts(rows, test), bad)
