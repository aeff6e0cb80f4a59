"""Texts of several languages: one file a language, split into train and test by document."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe import TextSource

BUILT_IN = Path(__file__).parent / "udhr"
_BUILDERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}
_COMPRESSIONS = {".gz", ".xz", ".bz2"}
_QUIET_BELOW = 64 * 2**20  # bytes: below this, progress bars of reading would only be noise


@dataclass(frozen=True)
class Language:
    """The texts of one language: ``train`` and ``test`` share no document."""

    name: str
    train: list[str]
    test: list[str]


def _language_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffixes = [s for s in path.suffixes if s not in _COMPRESSIONS]
        if (
            path.name.startswith(".")
            or not path.is_file()
            or not suffixes
            or suffixes[-1] not in _BUILDERS
        ):
            continue
        language = path.name.split(".")[0]
        if language in found:
            raise UserError(
                f"{folder} holds two files for {language!r}, {found[language].name} and "
                f"{path.name}; keep one file a language"
            )
        found[language] = path
    return found


def languages_in(source: TextSource) -> list[str]:
    """Names of the languages in the source's folder, sorted."""
    return sorted(_files(source))


def _files(source: TextSource) -> dict[str, Path]:
    folder = Path(source.folder) if source.folder else BUILT_IN
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of texts at {folder}, there is "
            f"{'a file' if folder.is_file() else 'none'}; give texts.folder a "
            "folder with one file a language, such as en.jsonl"
        )
    files = _language_files(folder)
    if not files:
        raise UserError(
            f"{folder} holds no texts; expected one file a language, such as en.jsonl, "
            "en.jsonl.xz, en.txt or en.parquet"
        )
    return files


def read_languages(source: TextSource, languages: Sequence[str] = ()) -> dict[str, Language]:
    """Read ``languages`` (all of the folder when empty) and split each by document.

    A document is a line of a JSONL or Parquet file, or a paragraph of a text file. It is a test
    document when the CRC-32 of its key is divisible by ``source.test_one_in``; the key is the
    field ``source.key_field``, so that parallel documents fall on the same side in every
    language, or the text itself where that is None.

    Raises UserError for a language without a file or without text, and for unreadable files.
    """
    files = _files(source)
    wanted = list(languages) or sorted(files)
    for language in wanted:
        if language not in files:
            raise UserError(
                f"no texts for language {language!r} in {source.folder or 'the built-in texts'}"
                f"{near_misses(language, files)}; it holds {' '.join(sorted(files))}"
            )
    return {language: _read(files[language], language, source) for language in wanted}


def _read(path: Path, language: str, source: TextSource) -> Language:
    builder = _BUILDERS[next(s for s in reversed(path.suffixes) if s in _BUILDERS)]
    if os.path.getsize(path) == 0:
        raise UserError(f"{path} is empty; give language {language!r} some text or leave it out")
    rows = _load(builder, path)
    text_field, key_field = _fields(rows, path, builder, source)
    train: list[str] = []
    test: list[str] = []
    for row in rows.select_columns(list({text_field, key_field or text_field})):
        text = row[text_field]
        if not isinstance(text, str):
            raise UserError(
                f"{path}: expected a string in field {text_field!r}, got {type(text).__name__}"
            )
        if not text.strip():
            continue
        key = str(row[key_field]) if key_field else text
        is_test = source.test_one_in > 0 and zlib.crc32(key.encode()) % source.test_one_in == 0
        (test if is_test else train).append(text)
    if not train and not test:
        raise UserError(f"{path} holds no text; give language {language!r} some or leave it out")
    return Language(language, train, test)


def _load(builder: str, path: Path) -> datasets.Dataset:
    options = {"sample_by": "paragraph"} if builder == "text" else {}
    bars = datasets.is_progress_bar_enabled()
    if path.stat().st_size < _QUIET_BELOW:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError, OSError, EOFError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"cannot read {path} as {builder}: {reason}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _fields(
    rows: datasets.Dataset, path: Path, builder: str, source: TextSource
) -> tuple[str, str | None]:
    key_field = "section" if source.folder is None else source.key_field
    text_field = "text" if builder == "text" else source.text_field
    for field in (text_field, key_field):
        if field is not None and field not in rows.column_names:
            raise UserError(
                f"{path} has no field {field!r}{near_misses(field, rows.column_names)}; its "
                f"fields are {' '.join(rows.column_names)}"
            )
    return text_field, key_field
