"""Texts of several languages, in a folder or a data set: kept on disk, split by document."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import overload

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError

from freezetrain.data.hub import configurations, hub_rows
from freezetrain.data.language_files import LanguageFiles, language_files
from freezetrain.data.reading import AT_ONCE, read_file, read_places
from freezetrain.data.rows import BAD, FEATURES, GOOD
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import TextSource
from freezetrain.recipe.text_types import check_name
from freezetrain.user_files import reason

BUILT_IN = Path(__file__).parent / "udhr"

_VERSION = 2  # of what is kept on disk

_LARGE = 64 * 2**20  # bytes: below this, progress bars and processes of reading would only be noise


class Texts(Sequence[str]):
    """Documents of one language: rows ``numbers`` of ``rows``, which stay on disk until read."""

    def __init__(
        self,
        rows: datasets.Dataset,
        numbers: np.ndarray,
        places: "Callable[[Sequence[int]], list[str]] | None" = None,
    ) -> None:
        self.rows = rows
        self.numbers = numbers
        self._places = places or _rows_of

    def places(self, documents: Sequence[int]) -> list[str]:
        """Where these documents, given in ascending order, were read: ``en.jsonl line 7``.

        Files are read once more for it, as far as the last of them.
        """
        return self._places([int(self.numbers[document]) for document in documents])

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
        for first in range(0, len(self), AT_ONCE):
            yield from self[first : first + AT_ONCE]

    def written(self, write: Callable[[str], str]) -> Iterator[str]:
        """Each text as ``write`` gives it; what it complains of bears the document's place."""
        for number, text in enumerate(self):
            try:
                yield write(text)
            except UserError as error:
                raise UserError(f"{self.places([number])[0]}: {error}") from error

    def part(self, first: int, last: int, step: int = 1) -> "Texts":
        """The documents ``first`` to ``last``, the last excluded, or each ``step``-th of them."""
        return Texts(self.rows, self.numbers[first:last:step], self._places)

    def sample(self, documents: int) -> "Texts":
        """At most so many of the documents, chosen by a hash of their keys, in the same order.

        The same on every machine and, where a field is the key, in all parallel languages.
        """
        keys = self.rows.data.table.column("key").to_numpy()[self.numbers]
        first = np.argsort(_scattered(keys), kind="stable")[:documents]
        return Texts(self.rows, np.sort(self.numbers[first]), self._places)


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
    """Names of the languages that the source holds, sorted.

    UserError for one that cannot be the name of a file, as others are written by it.
    """
    if source.hub:
        return _checked_names(configurations(source), source)
    names = [name for name, files in files_of(source).items() if files.texts]
    return _checked_names(names, source)


def _checked_names(names: Iterable[str], source: TextSource) -> list[str]:
    for name in names:
        try:
            check_name(name)
        except UserError as error:
            where = source.hub or source.folder
            raise UserError(f"{where} holds a language by its file's name: {error}") from error
    return sorted(names)


def read_languages(
    source: TextSource, languages: Sequence[str] = (), conversations: bool = False
) -> dict[str, Language]:
    """Read ``languages`` (all of the source when empty) and split each by document.

    A document is a line of a JSONL file, an item of a JSON array, a row of a Parquet file, or a
    paragraph (or a line) of a text file, whose fields are its text and ``line``, the number of its
    first line. It is a test document when the CRC-32 of its key is divisible by
    ``source.test_one_in``; the key is the field ``source.key_field``, so that parallel documents
    fall on the same side in every language, or the text itself where that is None. Documents of
    white space alone are left out.

    Of a conversation the text is its messages as JSON, to be put through
    :func:`freezetrain.data.chat.written`; who does so says ``conversations``.

    What was read is kept in the cache of `datasets`, as Arrow files, and mapped into memory.
    Raises UserError for a language without a file or without text, for unreadable files, and for
    conversations where plain texts are needed.
    """
    if source.endless:
        raise UserError(
            "streaming without documents reads texts without an end, which only training does "
            "(texts and replay.texts of `freezetrain train`); give documents, or leave streaming "
            "out"
        )
    if source.messages_field is not None and not conversations:
        raise UserError(
            f"messages_field is {source.messages_field!r}, and what is read here must be plain "
            "text; give texts with a text_field"
        )
    if source.hub is not None:
        configs = configurations(source, languages)
        read = {name: partial(hub_rows, config, source) for name, config in configs.items()}
        places = {}
    else:
        if source.folder is None:
            source = replace(source, key_field="section")
        files = {name: found.texts for name, found in files_of(source).items() if found.texts}
        read = {name: partial(_folder_rows, paths, source) for name, paths in files.items()}
        places = {name: partial(_places_of, paths, source) for name, paths in files.items()}
    where = source.hub or source.folder or "the built-in texts"
    for language in languages:
        require_language(language, read, source)
    return {
        name: _split(read[name](), name, where, source, places.get(name, _rows_of))
        for name in languages or _checked_names(read, source)
    }


def require_language(language: str, known: Collection[str], source: TextSource) -> None:
    """UserError unless ``language`` is one of those ``known`` of the source."""
    if language not in known:
        where = source.hub or source.folder or "the built-in texts"
        left = "".join(f" but {name}" for name in files_not_read(source, [language])[:1])
        raise UserError(
            f"no texts for language {language!r} in {where}{left}{near_misses(language, known)}; "
            f"it holds {' '.join(sorted(known))}"
        )


def _split(
    rows: datasets.Dataset,
    language: str,
    where: str,
    source: TextSource,
    places: Callable[[Sequence[int]], list[str]],
) -> Language:
    keys, kinds = (rows.data.table.column(name).to_numpy() for name in ("key", "kind"))
    good, bad = kinds == GOOD, int((kinds == BAD).sum())
    if not good.any():
        skipped = f", only {bad} bad lines" if bad else ""
        raise UserError(
            f"{where} holds no text of language {language!r}{skipped}; give it some or leave the "
            "language out"
        )
    is_test = keys % source.test_one_in == 0 if source.test_one_in else np.zeros_like(good)
    dtype = np.uint32 if len(rows) < 2**32 else np.uint64
    train, test = (
        Texts(rows, np.flatnonzero(good & side).astype(dtype), places)
        for side in (~is_test, is_test)
    )
    return Language(language, train, test, bad)


def files_of(source: TextSource) -> dict[str, LanguageFiles]:
    """Files of each language of a folder, as :func:`language_files`; none of a data set."""
    if source.hub is not None:
        return {}
    folder = Path(source.folder) if source.folder else BUILT_IN
    return language_files(folder, source.names)


def files_not_read(source: TextSource, languages: Sequence[str] = ()) -> list[str]:
    """Files in the places of ``languages`` (all where empty) that are not read, and why."""
    if source.folder is None:  # freezetrain's own texts, which bear a README
        return []
    return [
        name
        for language, files in files_of(source).items()
        if not languages or language in languages
        for name in files.not_read
    ]


def _folder_rows(files: Sequence[Path], source: TextSource) -> datasets.Dataset:
    """Documents of all files as rows (FEATURES), from the cache of `datasets` if they are there.

    Raises UserError as :func:`read_file` does.
    """
    known = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    # In the order that caches were made by.
    how = [*source.read_as[:4], source.txt_documents, *source.read_as[4:]]
    content = json.dumps([_VERSION, list(FEATURES), known, how])
    large = sum(size for _, size, _ in known) >= _LARGE
    divided = large and len(files) > 1 and source.documents is None
    try:
        with progress_bars(shown=large):
            return datasets.Dataset.from_generator(
                _rows,
                features=FEATURES,
                # A list is divided among processes, a tuple goes to one.
                gen_kwargs={"files": list(files) if divided else tuple(files), "source": source},
                num_proc=min(len(files), os.cpu_count() or 1) if divided else None,
                fingerprint=hashlib.sha256(content.encode()).hexdigest()[:32],
                writer_batch_size=AT_ONCE,
            )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):
            raise UserError(
                f"cannot keep the texts of {files[0]} in {datasets.config.HF_DATASETS_CACHE}: "
                f"{error.__cause__}; make room there, or set HF_DATASETS_CACHE to another folder"
            ) from error
        for _ in _rows(files, source):  # says what went wrong, which another process could not
            pass
        raise
    except OSError as error:
        raise UserError(
            f"cannot keep the texts of {files[0]} in {datasets.config.HF_DATASETS_CACHE}: "
            f"{reason(error)}; set HF_DATASETS_CACHE to a folder that can be written to"
        ) from error
    except ValueError as error:  # what `datasets` says of a data set without a row
        raise UserError(f"{files[0]} holds no text; give it some or leave it out") from error


def _places_of(files: Sequence[Path], source: TextSource, rows: Sequence[int]) -> list[str]:
    """File and place of the ``rows``, in ascending order, of those that :func:`_rows` gives."""
    every = (f"{path} {place}" for path in files for place, _ in read_places(path, source))
    wanted = set(rows)
    read = itertools.islice(every, max(rows, default=-1) + 1)
    return [place for row, place in enumerate(read) if row in wanted]


def _rows_of(rows: Sequence[int]) -> list[str]:
    return [f"row {row + 1}" for row in rows]


def _rows(files: Sequence[Path], source: TextSource) -> Iterator[dict]:
    left = source.documents
    for path in files:
        for row in read_file(path, source):
            yield row
            if left is not None and row["kind"] == GOOD:
                left -= 1
                if left == 0:
                    return


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Leave it to `datasets` to show its progress bars, or have it show none."""
    enabled = datasets.is_progress_bar_enabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
