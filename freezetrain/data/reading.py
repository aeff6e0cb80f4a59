"""Documents of one file, of any kind and compression; bad lines are named by file and number."""

import codecs
import io
import itertools
import json
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from freezetrain.data.rows import BLANK, document
from freezetrain.data.unpacking import COMPRESSIONS, EXPANDS, EXPANSION, Bounded, opened
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource
from freezetrain.user_files import reason

_UNREADABLE = (
    *(OSError, EOFError, ValueError, RecursionError, MemoryError),
    *(lzma.LZMAError, zlib.error, zstandard.ZstdError, pa.ArrowException),
)

AT_ONCE = 256  # documents in memory: one may be a whole book

SENTENCES = (".dev", ".devtest")
"""Text files of the FLORES-200 release, a sentence a line, whose number all languages share."""

KINDS = (".jsonl", ".ndjson", ".json", ".txt", ".parquet", *SENTENCES)

LONGEST = 64 * 2**20
"""Bytes of a line, or of a paragraph of a text file: the longest document."""


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, whatever it is compressed with; None: no texts."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def read_file(path: Path, source: TextSource) -> Iterator[dict[str, Any]]:
    """The documents of one file in its order, as rows (FEATURES), without blank ones.

    Raises UserError as :func:`read_places` does.
    """
    return (row for _, row in read_places(path, source))


def read_places(path: Path, source: TextSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """As :func:`read_file`, each with its place in the file: ``line 7``.

    Raises UserError where the file cannot be read or holds more than the bounds here, and at the
    first bad document unless ``source.bad_lines`` is skip. Bad is what is no JSON object, or lacks
    a field that ``source`` names, or has something else in it than that says, or no valid Unicode.
    """
    kind = cast(str, kind_of(path))
    text = _text_lines if source.txt_documents == "lines" else _paragraphs
    readers = {".json": _json, ".txt": text, ".parquet": _parquet}
    readers |= dict.fromkeys((".jsonl", ".ndjson"), _json_lines)
    readers |= dict.fromkeys(SENTENCES, _text_lines)
    if (size := path.stat().st_size) == 0:
        raise UserError(f"{path} is empty; give it some text or leave it out")
    most = max(LONGEST, EXPANSION * size)
    try:
        with opened(path, most) as file:
            for place, item in readers[kind](file, source):
                row = document(item, f"{path} {place}", source)
                most -= len(row["text"] or "")
                if most < 0:  # of Parquet, which repeats a text without storing it again
                    raise ValueError(EXPANDS)
                if row["kind"] != BLANK:
                    yield place, row
    except _UNREADABLE as error:
        raise UserError(
            f"cannot read {path} as {kind.removeprefix('.')}: {reason(error)}; repair or replace it"
        ) from error


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; ValueError for one that is longer than a document may be."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise ValueError(f"a line is longer than {LONGEST // 2**20} MiB")
        yield line


def _json_lines(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """An item a line."""
    return _items(enumerate(_lines(file), 1))


def _items(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, Any]]:
    """The item of each line that is not blank, with the line's number."""
    for number, line in lines:
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(_UTF_16)
        if line.strip():
            yield f"line {number}", _parsed(line)


_UTF_16 = "it is text in UTF-16 or UTF-32, and UTF-8 is read"


def _parsed(line: bytes) -> Any:
    try:
        # Not by json.loads alone, which takes bytes with zeros among them for another encoding.
        return json.loads(line.decode("utf-8").removeprefix("\ufeff"))
    except JSONDecodeError as error:
        return error
    except (RecursionError, ValueError) as error:  # nested, not UTF-8, or a number of 5000 digits
        return ValueError(reason(error))


def _json(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A JSON file is one array of objects, or what a JSONL file is."""
    number = 1
    while (first := file.read(1)) and first in b"\xef\xbb\xbf \t\r\n":
        number += first == b"\n"
    if first == b"[":
        yield from _array(file)
    elif first:
        lines = enumerate(_lines(file), number + 1)
        yield from _items(chain([(number, first + file.readline(LONGEST))], lines))


def _array(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Items of an array, whose bracket has been read; no more than one of them is in memory.

    ValueError for what is no array, and for an item longer than a document may be.
    """
    text, at = "", 0
    decode = json.JSONDecoder().raw_decode
    bytes_to_text = codecs.getincrementaldecoder("utf-8")()

    def more() -> bool:
        """Whether there was more to read after ``text``, of which what is done with goes."""
        nonlocal text, at
        read = file.read(max(_PIECE, len(text) - at))
        try:
            text, at = text[at:] + bytes_to_text.decode(read, final=not read), 0
        except UnicodeDecodeError as error:  # its place is one in what was read now
            raise ValueError("it is not text in UTF-8") from error
        return bool(read)

    def sign() -> str:
        """The next character that is not white space, which is not yet passed; "" at the end."""
        nonlocal at
        while True:
            at = cast(re.Match[str], _BLANK.match(text, at)).end()
            if at < len(text) or not more():
                return text[at : at + 1]

    for number in itertools.count(1):
        if number == 1 and sign() == "]":
            break
        while True:  # an item may go on after what was read
            sign()
            try:
                item, end = decode(text, at)
            except JSONDecodeError as error:
                item, end, fault = None, len(text), error.msg
            else:
                fault = ""
            if end < len(text):
                break
            if len(text) - at > LONGEST:
                raise ValueError(f"item {number} is longer than {LONGEST // 2**20} MiB, or no JSON")
            if not more():
                raise ValueError(
                    f"item {number} is no JSON ({fault})" if fault else _CUT.format(number)
                )
        at = end
        yield f"item {number}", item
        if (after := sign()) == "":
            raise ValueError(_CUT.format(number))
        if after not in (",", "]"):
            raise ValueError(f"after item {number} there is {after!r} and no comma")
        if after == "]":
            break
        at += 1
    at += 1
    if sign():
        raise ValueError("it goes on after its array")


_CUT = "it ends after item {}, within its array"

_BLANK = re.compile(r"[ \t\r\n]*")

_PIECE = 2**20  # bytes that are read at once


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Lines of text, without the byte order marks of files that were joined."""
    start = cast(io.BufferedReader, file).peek(2)[:2]
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(_UTF_16)
    text = io.TextIOWrapper(file, encoding="utf-8")
    while line := text.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise ValueError(f"a line is longer than {LONGEST // 2**20} MiB")
        yield line.removeprefix("\ufeff")


def _text_lines(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A document is a line."""
    for number, line in enumerate(_decoded(file), 1):
        yield _text_document(number, line, source)


def _paragraphs(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    """A document is a paragraph: lines up to a blank one."""
    paragraph: list[str] = []
    size = 0
    for number, line in enumerate(chain(_decoded(file), [""]), 1):
        if line.strip():
            paragraph.append(line)
            size += len(line)
            if size > LONGEST:
                raise ValueError(
                    f"a paragraph is longer than {LONGEST // 2**20} MiB (documents may be lines: "
                    "txt_documents)"
                )
        elif paragraph:
            yield _text_document(number - len(paragraph), "".join(paragraph), source)
            paragraph, size = [], 0


def _text_document(line: int, text: str, source: TextSource) -> tuple[str, dict[str, Any]]:
    """Place and fields of a document of a text file; ``line`` is its first one's number."""
    name = source.text_field if isinstance(source.text_field, str) else "text"
    return f"line {line}", {"line": line, name: text.removesuffix("\n")}


def _parquet(file: IO[bytes], source: TextSource) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryFile() as unpacked:
        if isinstance(getattr(file, "raw", None), Bounded):
            shutil.copyfileobj(file, unpacked)  # compressed again: Parquet is read from its end
            file = cast(IO[bytes], unpacked)
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        leaves = [table.schema.column(place).path for place in range(len(table.schema.names))]

        def below(field: str) -> list[str]:
            return [leaf for leaf in leaves if f"{leaf}.".startswith(f"{field}.")]

        texts = source.document_fields
        fields = sorted({*texts, source.key_field or texts[0]})
        columns = fields if all(map(below, fields)) else names  # all are named in the error
        encoded = pq.ParquetFile(file, read_dictionary=[*chain.from_iterable(map(below, texts))])
        numbers = itertools.count(1)
        for group in range(table.num_row_groups):
            size = _rows_at_once(encoded, group, texts)
            for batch in table.iter_batches(size, row_groups=[group], columns=columns):
                for item in batch.to_pylist():
                    yield f"row {next(numbers)}", item


def _rows_at_once(table: pq.ParquetFile, group: int, fields: Sequence[str]) -> int:
    """How many rows of a group to take into memory; ``table`` gives texts as a dictionary.

    A text that repeats is stored once: a small file may hold many rows of the longest text. Its
    dictionary is read with the first row.
    """
    for batch in table.iter_batches(1, row_groups=[group], columns=fields):
        texts = [text for column in batch.columns for text in _dictionaries(column)]
        longest = sum(pc.max(pc.binary_length(text)).as_py() or 0 for text in texts)
        return int(min(AT_ONCE, max(1, LONGEST // max(1, longest))))
    return AT_ONCE


def _dictionaries(column: pa.Array) -> Iterator[pa.Array]:
    """The texts that a column refers to, also within structs and lists."""
    if pa.types.is_dictionary(column.type):
        yield column.dictionary
    elif pa.types.is_struct(column.type):
        for inner in column.flatten():
            yield from _dictionaries(inner)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _dictionaries(column.values)
