import bz2
import codecs
import gzip
import json
import lzma
import zlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from freezetrain.data import reading as module
from freezetrain.data.reading import read_file
from freezetrain.data.rows import BAD, GOOD
from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

TEXTS = [f"text {n} ä 中\nsecond line" for n in range(400)]
JSONL = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)).encode()
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(path, **more):
    return [row["text"] for row in read_file(path, TextSource(folder="x", **more))]


def parquet(folder):
    path = folder / "plain.parquet"
    datasets.Dataset.from_dict({"text": TEXTS, "id": range(len(TEXTS))}).to_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("ending", COMPRESS)
def test_all_kinds_and_compressions_give_the_same_documents(tmp_path, ending):
    lines = [json.loads(line) for line in JSONL.splitlines()]
    contents = {
        ".jsonl": JSONL,
        ".json": json.dumps(lines, indent=1).encode(),
        ".txt": "\n\n".join(TEXTS).encode(),
        ".parquet": parquet(tmp_path),
    }
    for kind, content in contents.items():
        path = tmp_path / f"en{kind}{ending}"
        path.write_bytes(COMPRESS[ending](content))
        assert texts(path) == TEXTS, path.name


def test_a_document_of_a_text_file_is_a_paragraph_or_a_line_and_may_have_its_number_as_key(
    tmp_path,
):
    path = tmp_path / "en.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\none\ntwo\n\n \t\n\nthree\r\nfour\r\n\r\n\n five")
    for how, expected in (
        ("paragraphs", {3: "one\ntwo", 8: "three\nfour", 12: " five"}),
        ("lines", {3: "one", 4: "two", 8: "three", 9: "four", 12: " five"}),
    ):
        source = TextSource(folder="x", key_field="line", txt_documents=how)
        rows = list(read_file(path, source))
        assert [row["text"] for row in rows] == list(expected.values())
        assert [row["key"] for row in rows] == [zlib.crc32(str(n).encode()) for n in expected]
    with pytest.raises(UserError, match=r"line 3 has no field 'lime' \(did you mean 'line'"):
        texts(path, key_field="lime")


def test_json_is_an_array_or_lines(tmp_path):
    path = tmp_path / "en.json"
    path.write_text(' [{"text": "a"},\n{"text": "b"}]')
    assert texts(path) == ["a", "b"]
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert texts(path) == ["a", "b"]
    path.write_text('[{"text": "a"}, 5]')
    with pytest.raises(UserError, match=r"en.json item 2 is no JSON object but has type int"):
        texts(path)


def test_several_zst_frames_are_one_file(tmp_path):
    path = tmp_path / "en.jsonl.zst"
    compress = COMPRESS[".zst"]
    path.write_bytes(compress(b'{"text": "a"}\n{"te') + compress(b'xt": "b"}\n'))
    assert texts(path) == ["a", "b"]


def test_zst_with_the_longest_window(tmp_path):
    """As `zstd --long=31` writes it; Arrow takes 128 MiB at most."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    content = frame.compress(JSONL) + frame.flush()
    assert zstandard.get_frame_parameters(content).window_size == 2**31
    path = tmp_path / "en.jsonl.zst"
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a frame that holds no text
    path.write_bytes(skipped + content + content)
    assert texts(path) == TEXTS * 2
    path.write_bytes(content + content[:7])
    with pytest.raises(UserError, match=r"cannot read .*en.jsonl.zst as jsonl: it was cut off"):
        texts(path)


@pytest.mark.parametrize("ending", [ending for ending in COMPRESS if ending])
def test_a_file_that_was_cut_off_is_refused(tmp_path, ending):
    path = tmp_path / f"en.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](JSONL)[:-9])
    with pytest.raises(UserError, match=r"cannot read .*en.jsonl.* as jsonl: .*repair or replace"):
        texts(path)


def test_what_is_no_such_file_is_refused(tmp_path):
    for name in ("en.jsonl.gz", "en.jsonl.zst", "en.parquet", "en.json"):
        (tmp_path / name).write_bytes(b"[nothing of the kind")
        with pytest.raises(UserError, match=f"cannot read .*{name} as "):
            texts(tmp_path / name)
    (tmp_path / "en.txt").write_bytes(b"caf\xe9 in latin 1")
    with pytest.raises(UserError, match=r"cannot read .*en.txt as txt: it is not text in UTF-8"):
        texts(tmp_path / "en.txt")
    (tmp_path / "en.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"en.txt is empty"):
        texts(tmp_path / "en.txt")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"id": 2, "te', "is no JSON: Invalid control character"),
        (b"text", "is no JSON: Expecting value"),
        (b'{"text": "caf\xe9"}', "is no JSON: it is not text in UTF-8"),
        (b"[" * 100_000, "is no JSON: it is nested too deeply"),
        (b'["text"]', "is no JSON object but has type list"),
        (b'{"id": 1, "txet": "b"}', r"has no field 'text' \(did you mean 'txet'\?\).*are id txet"),
        (b'{"id": 1, "text": 5}', "expected a string in field 'text', got int"),
        (b'{"id": 1, "text": null}', "expected a string in field 'text', got NoneType"),
        (b'{"id": 1, "text": "\\ud800"}', "its field 'text' is no valid Unicode"),
        (b'{"text": "b"}', "has no field 'id'"),
        (b'{"id": null, "text": "b"}', "expected a key in field 'id', got null"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, line, complaint):
    path = tmp_path / "en.jsonl"
    path.write_bytes(b'{"id": 1, "text": "a"}\n\n' + line + b'\n{"id": 3, "text": "c", "x": [1]}\n')
    with pytest.raises(UserError, match=rf"en.jsonl line 3 .*{complaint}.*bad_lines: skip"):
        texts(path, key_field="id")
    rows = list(read_file(path, TextSource(folder="x", key_field="id", bad_lines="skip")))
    assert [(row["text"], row["kind"]) for row in rows] == [("a", GOOD), (None, BAD), ("c", GOOD)]
    source = TextSource(folder=str(tmp_path), test_one_in=0, key_field="id", bad_lines="skip")
    language = read_languages(source)["en"]
    assert list(language.train) == ["a", "c"]
    assert language.skipped == 1


def test_fields_of_parquet_are_named(tmp_path):
    path = tmp_path / "en.parquet"
    path.write_bytes(parquet(tmp_path))
    with pytest.raises(UserError, match=r"en.parquet row 1 has no field 'txt'.*mean 'text'"):
        texts(path, text_field="txt")
    with pytest.raises(UserError, match=r"en.parquet row 1 .*string in field 'id', got int"):
        texts(path, text_field="id")


@pytest.mark.parametrize("ending", ["jsonl", "JSONL", "ndjson", "Jsonl.GZ"])
def test_endings_in_any_case(tmp_path, ending):
    path = tmp_path / f"en.{ending}"
    (gzip.open if ending.endswith("GZ") else open)(path, "wb").write(b'{"text": "a"}\n')
    assert texts(path) == ["a"]


def test_marks_and_blank_lines_of_files_that_were_joined(tmp_path):
    mark = codecs.BOM_UTF8
    (tmp_path / "en.txt").write_bytes(mark + b"one\r\n\r\n" + mark + b"two\n")
    assert texts(tmp_path / "en.txt") == ["one", "two"]
    (tmp_path / "en.jsonl").write_bytes(mark + b'{"text": "a"}\r\n' + mark + b'{"text": "b"}')
    assert texts(tmp_path / "en.jsonl") == ["a", "b"]
    for start in (b"\n", b" \r\n\n" + mark, mark):
        (tmp_path / "en.json").write_bytes(start + b'[{"text": "a"},\n{"text": "b"}]')
        assert texts(tmp_path / "en.json") == ["a", "b"]
    (tmp_path / "en.json").write_bytes(b"\n\n{\n")
    with pytest.raises(UserError, match=r"en.json line 3 is no JSON"):
        texts(tmp_path / "en.json")


@pytest.mark.parametrize("ending", ["txt", "jsonl", "json"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, ending, encoding):
    path = tmp_path / f"en.{ending}"
    path.write_bytes('\ufeff{"text": "a"}\n'.encode(encoding))
    with pytest.raises(UserError, match=rf"en.{ending} as {ending}: it is text in UTF-16"):
        texts(path)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("filling", [b"\n", b"a", b'{"text": "a"}\n'])
def test_a_file_that_expands_without_end_is_refused(tmp_path, monkeypatch, ending, filling):
    monkeypatch.setattr(module, "LONGEST", 2**16)
    path = tmp_path / f"en.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](filling * (2**22 // len(filling))))
    with pytest.raises(UserError, match=r"expands to more than 250 times|a line is longer than"):
        texts(path)


def test_parquet_that_repeats_a_text_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 2**16)
    text = pa.array(["a" * 1000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), text.dictionary)
    pq.write_table(pa.table({"text": column}), tmp_path / "en.parquet")
    with pytest.raises(UserError, match="expands to more than 250 times its size"):
        texts(tmp_path / "en.parquet")


@pytest.mark.parametrize("content", [b"a" * 70_000, b"a\n" * 40_000])
def test_a_document_without_end_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr(module, "LONGEST", 2**16)
    (tmp_path / "en.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"en.txt as txt: a (line|paragraph) is longer than"):
        texts(tmp_path / "en.txt")


def test_parquet_of_a_text_that_repeats_is_taken_in_few_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 2**16)
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, 0], pa.int32()), ["a" * 2**15, "b"])
    pq.write_table(pa.table({"text": column}), tmp_path / "en.parquet")
    encoded = pq.ParquetFile(tmp_path / "en.parquet", read_dictionary=["text"])
    assert module._rows_at_once(encoded, 0, ["text"]) == 2
    assert texts(tmp_path / "en.parquet") == ["b", "a" * 2**15, "a" * 2**15]


def test_an_array_is_read_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 1000)
    monkeypatch.setattr(module, "_PIECE", 7)  # borders within names, numbers and characters
    items = [{"text": f"ñandú {number} " * (number % 9), "n": [number]} for number in range(1, 60)]
    for indent in (None, 1):
        raw = json.dumps(items, ensure_ascii=False, indent=indent)
        (tmp_path / "en.json").write_text(f" {raw}\n", encoding="utf-8")
        assert texts(tmp_path / "en.json") == [item["text"] for item in items if item["text"]]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"[" * 100_000, "it is nested too deeply"),
        (b'[{"text": "a", "x": ' + b"[" * 100_000, "it is nested too deeply"),
        (b'[{"text": "a"}, {"te', "item 2 is no JSON"),
        (b'[{"text": "a"},]', "item 2 is no JSON"),
        (b'[{"text": "a"} {"text": "b"}]', "after item 1 there is '{' and no comma"),
        (b'[{"text": "a"}', "it ends after item 1, within its array"),
        (b'[{"text": "a"}]\n[{"text": "b"}]', "it goes on after its array"),
        (b'[{"text": "caf\xe9"}]', "it is not text in UTF-8"),
        (b'[{"text": ' + b"9" * 5000 + b"}]", "it holds a number of too many digits"),
        (b'[{"text": "' + b"a" * 2**17, "item 1 is longer than"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, monkeypatch, raw, complaint):
    monkeypatch.setattr(module, "LONGEST", 2**16)
    monkeypatch.setattr(module, "_PIECE", 2**12)
    (tmp_path / "en.json").write_bytes(raw)
    with pytest.raises(UserError, match=rf"en.json as json: {complaint}"):
        texts(tmp_path / "en.json")


def test_zeros_are_no_other_encoding(tmp_path):
    (tmp_path / "en.jsonl").write_bytes(b'{"text": "a"}\n' + b"\0" * 50)
    with pytest.raises(UserError, match=r"en.jsonl line 2 is no JSON: Expecting value"):
        texts(tmp_path / "en.jsonl")


def test_xz_that_asks_for_more_memory_than_any_setting_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**30}]
    raw = lzma.compress(b'{"text": "a"}\n', filters=filters)
    (tmp_path / "en.jsonl.xz").write_bytes(raw)
    with pytest.raises(UserError, match=r"en.jsonl.xz as jsonl: .*Memory usage limit"):
        texts(tmp_path / "en.jsonl.xz")
