"""A folder of texts: which files hold which language, and their documents as rows on disk."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from freezetrain.data.reading import FEATURES, GOOD, SENTENCES, kind_of, read_file
from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import TextSource

BUILT_IN = Path(__file__).parent / "udhr"

_VERSION = 1  # of what is kept on disk

_LARGE = 64 * 2**20  # bytes: below this, progress bars and processes of reading would only be noise

_AT_ONCE = 256  # documents in memory: one may be a whole book


def language_files(source: TextSource) -> dict[str, list[Path]]:
    """Files of each language in the source's folder, in the order that they are read in.

    A language is one file ``<language>.jsonl`` (or another kind, also compressed), or a folder
    ``<language>/`` with such files of any name, sorted by name. ``source.names`` says which file
    or folder a language's texts are in where that has another name; all others keep theirs.

    Raises UserError where there is no such folder, where it holds no texts, and where a language
    has two places.
    """
    folder = Path(source.folder).expanduser() if source.folder else BUILT_IN
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of texts at {folder}, there is "
            f"{'a file' if folder.is_file() else 'none'}; give texts.folder a "
            "folder with one file a language, such as en.jsonl"
        )
    places = _places(folder)
    if not places:
        raise UserError(
            f"{folder} holds no texts; expected one file a language, such as en.jsonl, "
            "en.jsonl.zst, en.txt, en.parquet or en.devtest, or a folder en/ of such files"
        )
    named = set(source.names) | set(source.names.values())
    found = {place: files for place, files in places.items() if place not in named}
    for language, place in source.names.items():
        if place not in places:
            raise UserError(
                f"names calls language {language!r} {place!r}, which {folder} does not hold"
                f"{near_misses(place, places)}; it holds {' '.join(places)}"
            )
        found[language] = places[place]
    return dict(sorted(found.items()))


def _places(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, tuple[Path, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        texts = [file for file in files if kind_of(file)]
        if path.is_dir():  # FLORES-200's dev/ and devtest/ are no languages, but hold them
            texts = [file for file in texts if kind_of(file) not in SENTENCES]
        if not texts or path.name.startswith("."):
            continue
        language = path.name if path.is_dir() else path.name.split(".")[0]
        if language in found:
            raise UserError(
                f"{folder} holds two files for {language!r}, {found[language][0].name} and "
                f"{path.name}; keep one file a language, or put them in a folder {language}/"
            )
        found[language] = path, texts
    return {language: texts for language, (_, texts) in found.items()}


def folder_rows(files: Sequence[Path], source: TextSource) -> datasets.Dataset:
    """Documents of all files as rows (FEATURES), from the cache of `datasets` if they are there.

    Raises UserError as :func:`read_file` does.
    """
    known = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    how = [source.text_field, source.key_field, source.bad_lines, source.documents]
    how.append(source.txt_documents)
    told = json.dumps([_VERSION, list(FEATURES), known, how])
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:32]
    large = sum(size for _, size, _ in known) >= _LARGE
    together = large and len(files) > 1 and source.documents is None
    bars = datasets.is_progress_bar_enabled()
    if not large:
        datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_generator(
            _rows,
            features=FEATURES,
            # A list is divided among processes, a tuple goes to one.
            gen_kwargs={"files": list(files) if together else tuple(files), "source": source},
            num_proc=min(len(files), os.cpu_count() or 1) if together else None,
            fingerprint=fingerprint,
            writer_batch_size=_AT_ONCE,
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
    except ValueError as error:  # what `datasets` says of a data set without a row
        raise UserError(f"{files[0]} holds no text; give it some or leave it out") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _rows(files: Sequence[Path], source: TextSource) -> Iterator[dict]:
    left = source.documents
    for path in files:
        for row in read_file(path, source):
            yield row
            if left is not None and row["kind"] == GOOD:
                left -= 1
                if left == 0:
                    return
