"""Documents of one file, of any kind and compression; bad lines are named by file and number."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import TextSource

_UNREADABLE = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException)

AT_ONCE = 256  # documents in memory: one may be a whole book

SENTENCES = (".dev", ".devtest")
"""Text files of the FLORES-200 release, a sentence a line, whose number all languages share."""

_KINDS = (".jsonl", ".json", ".txt", ".parquet", *SENTENCES)

_COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")

FEATURES = Features({"text": Value("large_string"), "key": Value("uint32"), "kind": Value("uint8")})
"""What is read of a document: its text, the CRC-32 of its key, which decides the split, and its
kind: GOOD, BLANK (white space alone) or BAD (skipped, its text may be null)."""

GOOD, BLANK, BAD = 0, 1, 2


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, whatever it is compressed with; None: no texts."""
    if path.name.startswith(".") or not path.is_file():
        return None
    suffixes = path.suffixes[:-1] if path.suffix in _COMPRESSIONS else path.suffixes
    return suffixes[-1] if suffixes and suffixes[-1] in _KINDS else None


def read_file(path: Path, source: TextSource) -> Iterator[dict[str, Any]]:
    """The documents of one file in its order, as rows (FEATURES), without blank ones.

    Raises UserError where the file cannot be read, and at the first bad document unless
    ``source.bad_lines`` is skip. Bad is what is no JSON object, or has no string (or no valid
    Unicode) in the text field, or nothing in the key field.
    """
    kind = cast(str, kind_of(path))
    text = _text_lines if source.txt_documents == "lines" else _paragraphs
    readers = {".jsonl": _json_lines, ".json": _json, ".txt": text, ".parquet": _parquet}
    readers |= dict.fromkeys(SENTENCES, _text_lines)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; give it some text or leave it out")
    try:
        with _open(path) as file:
            for place, item in readers[kind](file, source):
                row = document(item, f"{path} {place}", source)
                if row["kind"] != BLANK:
                    yield row
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot read {path} as {kind.removeprefix('.')}: {reason}; repair or replace it"
        ) from error


def document(item: Any, place: str, source: TextSource) -> dict[str, Any]:
    """The row (FEATURES) of ``item``: a mapping of fields, or the Exception that parsing it gave.

    Raises UserError, with ``place``, where it is bad and ``source.bad_lines`` is stop.
    """
    reason = _fault(item, source)
    if reason is not None:
        if source.bad_lines == "stop":
            raise UserError(f"{place} {reason}; repair it, or skip such lines with bad_lines: skip")
        return {"text": None, "key": 0, "kind": BAD}
    text = item[source.text_field]
    key = text if source.key_field is None else str(item[source.key_field])
    kind = GOOD if text.strip() else BLANK
    return {"text": text, "key": zlib.crc32(key.encode()), "kind": kind}


def _fault(item: Any, source: TextSource) -> str | None:
    if isinstance(item, Exception):
        return f"is no JSON: {item}"
    if not isinstance(item, dict):
        return f"is no JSON object but has type {type(item).__name__}"
    for field in (source.text_field, source.key_field):
        if field is not None and field not in item:
            return (
                f"has no field {field!r}{near_misses(field, item)}; its fields are {' '.join(item)}"
            )
    text = item[source.text_field]
    if not isinstance(text, str):
        return (
            f"is bad: expected a string in field {source.text_field!r}, got {type(text).__name__}"
        )
    if source.key_field is not None and item[source.key_field] is None:
        return f"is bad: expected a key in field {source.key_field!r}, got null"
    for name in (source.text_field, source.key_field):
        try:
            str(item[name] if name else "").encode()
        except UnicodeEncodeError as error:
            return f"is bad: its field {name!r} is no valid Unicode: {error.reason}"
    return None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".zst":
        # Arrow's reader, as zstandard's own takes a file that was cut off for a whole one.
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 2**20)
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    return openers.get(path.suffix, open)(path, "rb")


def _json_lines(file: IO[bytes], source: TextSource, first: int = 1) -> Iterator[tuple[str, Any]]:
    """An item a line; ``first`` is the number of the next one."""
    for number, line in enumerate(file, first):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        return error


def _json(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A JSON file is one array of objects, or what a JSONL file is."""
    first = file.readline()
    if first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        for number, item in enumerate(json.loads(first + file.read()), 1):
            yield f"item {number}", item
        return
    if first.strip():
        yield "line 1", _parsed(first)
    yield from _json_lines(file, source, 2)


def _text_lines(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A document is a line."""
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), 1):
        yield _text_document(number, line, source)


def _paragraphs(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A document is a paragraph: lines up to a blank one."""
    paragraph: list[str] = []
    lines = itertools.chain(io.TextIOWrapper(file, encoding="utf-8-sig"), [""])
    for number, line in enumerate(lines, 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield _text_document(number - len(paragraph), "".join(paragraph), source)
            paragraph = []


def _text_document(line: int, text: str, source: TextSource) -> tuple[str, dict[str, Any]]:
    """Place and fields of a document of a text file; ``line`` is its first one's number."""
    return f"line {line}", {"line": line, source.text_field: text.removesuffix("\n")}


def _parquet(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryFile() as unpacked:
        if not isinstance(getattr(file, "raw", None), io.FileIO):
            shutil.copyfileobj(file, unpacked)  # compressed again: Parquet is read from its end
            file = cast(IO[bytes], unpacked)
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        fields = {source.text_field, source.key_field or source.text_field}
        columns = sorted(fields) if fields <= set(names) else names  # all are named in the error
        numbers = itertools.count(1)
        for batch in table.iter_batches(AT_ONCE, columns=columns):
            for item in batch.to_pylist():
                yield f"row {next(numbers)}", item
