"""Which files of a folder hold the texts of which language, and which files are not read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from freezetrain.data.reading import KINDS, SENTENCES, kind_of
from freezetrain.errors import UserError, near_misses


@dataclass
class LanguageFiles:
    """The files of one language, in the order that they are read in."""

    texts: list[Path] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    """Each with the reason: ``sw/e.jsonl (a link to nothing)``. Of what the folder calls a language
    and holds no text of, there are these alone."""


def language_files(folder: Path, names: dict[str, str]) -> dict[str, LanguageFiles]:
    """Files of each language in ``folder``, sorted.

    A language is one file ``<language>.jsonl`` (or another kind, also compressed, in capitals or
    not), or a folder ``<language>/`` with such files of any name, also in folders within it,
    sorted by path. ``names`` says which file or folder a language's texts are in where that has
    another name; all others keep theirs. What is hidden, by a dot before its name, is no text.

    Raises UserError where there is no such folder, where it holds no texts, and where a language
    has two places.
    """
    if not folder.is_dir():
        raise UserError(
            f"expected a folder of texts at {folder}, there is "
            f"{'a file' if folder.is_file() else 'none'}; give texts.folder a "
            "folder with one file a language, such as en.jsonl"
        )
    places = _places(folder)
    known = sorted(name for name, files in places.items() if files.texts)
    if not known:
        left = [name for files in places.values() for name in files.not_read]
        raise UserError(
            f"{folder} holds no texts{f' but {left[0]}' if left else ''}; expected one file a "
            "language, such as en.jsonl, "
            "en.jsonl.zst, en.txt, en.parquet or en.devtest, or a folder en/ of such files"
        )
    named = set(names) | set(names.values())
    languages = {place: files for place, files in places.items() if place not in named}
    for language, place in names.items():
        if place not in known:
            raise UserError(
                f"names calls language {language!r} {place!r}, which {folder} does not hold"
                f"{near_misses(place, known)}; it holds {' '.join(known)}"
            )
        languages[language] = places[place]
    return dict(sorted(languages.items()))


def _places(folder: Path) -> dict[str, LanguageFiles]:
    """What the folder calls a language → its files."""
    places: dict[str, LanguageFiles] = {}
    first: dict[str, Path] = {}  # name → its file or folder
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = path.name if path.is_dir() else path.name.split(".")[0]
        files = LanguageFiles()
        for file in _files_below(path):
            if reason := _why_not_read(file):
                files.not_read.append(f"{file.relative_to(folder)} ({reason})")
            # FLORES-200's dev/ and devtest/ are no languages, but hold them.
            elif not (path.is_dir() and kind_of(file) in SENTENCES):
                files.texts.append(file)
        if files.texts and name in first:
            raise UserError(
                f"{folder} holds two files for {name!r}, {first[name].name} and {path.name}; "
                f"keep one file a language, or put them in a folder {name}/"
            )
        if files.texts:
            first[name] = path
        known = places.setdefault(name, LanguageFiles())
        known.texts += files.texts
        known.not_read += files.not_read
    return places


def _files_below(path: Path) -> Iterator[Path]:
    """The file itself, or all files in a folder and the folders within it, sorted by path.

    A link to a folder that it lies in is not followed again.
    """
    if not path.is_dir():
        yield path
        return
    files, seen = [], {path.resolve()}
    for place, folders, names in os.walk(path, followlinks=True):
        within = Path(place)
        inner = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in inner if (within / name).resolve() not in seen]
        seen |= {(within / name).resolve() for name in folders}
        files += [within / name for name in names if not name.startswith(".")]
    yield from sorted(files)


def _why_not_read(file: Path) -> str | None:
    if file.is_symlink() and not file.exists():
        return "a link to nothing"
    if not file.is_file():
        return "no file"
    if kind_of(file) is None:
        return f"its name ends in none of {' '.join(KINDS)}"
    return None
