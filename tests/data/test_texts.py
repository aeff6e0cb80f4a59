import gzip
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

from freezetrain.data import texts as module
from freezetrain.data.texts import BUILT_IN, files_not_read, languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

PAPER = "ar zh cs da nl en fi fr de el hu id it ja ko ms ml no fa pl pt ro ru es sw sv ta tr uk vi"


def write(path, texts, keys=None):
    path.parent.mkdir(exist_ok=True)
    rows = zip(texts, keys or range(len(texts)), strict=True)
    lines = [json.dumps({"text": text, "id": key}) + "\n" for text, key in rows]
    path.write_text("".join(lines))


def read(folder, **more):
    """Language → its documents, none of them held out."""
    languages = read_languages(TextSource(folder=str(folder), test_one_in=0, **more))
    return {name: list(language.train) for name, language in languages.items()}


def test_built_in_texts_are_the_papers_30_languages_split_by_section():
    held_out = [n for n in range(31) if zlib.crc32(str(n).encode()) % 4 == 0]
    assert 4 <= len(held_out) <= 12
    assert languages_in(TextSource()) == sorted(PAPER.split())
    for name, language in read_languages(TextSource()).items():
        lines = (BUILT_IN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 31
        assert list(language.test) == [row["text"] for row in rows if row["section"] in held_out]
        assert list(language.train) == [
            row["text"] for row in rows if row["section"] not in held_out
        ]


def test_texts_are_read_as_a_list_is(tmp_path):
    texts = [f"text {number}" for number in range(700)]
    write(tmp_path / "en.jsonl", texts)
    language = read_languages(TextSource(folder=str(tmp_path)))["en"]
    train = [text for text in texts if zlib.crc32(text.encode()) % 4]
    assert list(language.train) == train
    assert list(language.test) == [text for text in texts if text not in set(train)]
    assert len(language.train) == len(train)
    for place in (0, -1, 300, slice(5, 400, 7), slice(10_000, None)):
        assert language.train[place] == train[place]
    assert train[17] in language.train
    with pytest.raises(IndexError):
        language.train[len(train)]


def test_none_or_all_may_be_held_out_and_training_on_none_is_refused(tmp_path):
    write(tmp_path / "en.jsonl", [f"text {n}" for n in range(40)])
    language = read_languages(TextSource(folder=str(tmp_path), test_one_in=0))["en"]
    assert (len(language.to_train()), language.test[:3]) == (40, [])
    language = read_languages(TextSource(folder=str(tmp_path), test_one_in=1))["en"]
    assert (len(language.train), len(language.test)) == (0, 40)
    with pytest.raises(UserError, match=r"'en' has no training document among 40: all are held"):
        language.to_train()
    with pytest.raises(UserError, match="test_one_in must be 0 or more, got -1"):
        TextSource(test_one_in=-1)


def test_what_changes_what_is_read_is_read_again(tmp_path):
    path = tmp_path / "en.txt"
    path.write_text("one\ntwo\n\nthree\n")
    assert read(tmp_path)["en"] == ["one\ntwo", "three"]
    assert read(tmp_path, txt_documents="lines")["en"] == ["one", "two", "three"]
    path.write_text("one\ntwo\n\nfours\n")
    assert read(tmp_path)["en"] == ["one\ntwo", "fours"]


def test_only_the_first_documents_where_asked(tmp_path):
    write(tmp_path / "en" / "1.jsonl", ["a", " ", "b", "c"])
    write(tmp_path / "en" / "2.jsonl", ["d", "e"])
    for documents, expected in ((2, "ab"), (3, "abc"), (4, "abcd"), (99, "abcde")):
        assert "".join(read(tmp_path, documents=documents)["en"]) == expected


def test_what_holds_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no texts for language 'zhh'.*did you mean 'zh'"):
        read_languages(TextSource(), ["zhh"])
    write(tmp_path / "en.jsonl", ["  ", "\n"])
    with pytest.raises(UserError, match=r"en.jsonl holds no text; give it some"):
        read(tmp_path)
    (tmp_path / "en.jsonl").write_text("{\n[]\n")
    with pytest.raises(UserError, match="no text of language 'en', only 2 bad lines"):
        read(tmp_path, bad_lines="skip")


def test_a_language_may_be_a_folder_of_files_read_in_sorted_order(tmp_path):
    write(tmp_path / "en" / "b.jsonl", ["three"])
    write(tmp_path / "en" / "a.jsonl", ["one", "two"])
    (tmp_path / "en" / "c.txt").write_text("four\n\nfive")
    (tmp_path / "en" / "README.md").write_text("not a text")
    write(tmp_path / "zh.part.jsonl", ["hello"])
    (tmp_path / "notes.md").write_text("not a language")
    write(tmp_path / ".hidden" / "x.jsonl", ["no"])
    (tmp_path / "empty").mkdir()
    assert read(tmp_path) == {"en": ["one", "two", "three", "four", "five"], "zh": ["hello"]}


def test_names_say_what_the_folder_calls_a_language(tmp_path):
    write(tmp_path / "eng_Latn.jsonl", ["hello"])
    write(tmp_path / "zho_Hans" / "1.jsonl", ["hi"])
    names = {"en": "eng_Latn", "zh": "zho_Hans"}
    assert read(tmp_path, names=names) == {"en": ["hello"], "zh": ["hi"]}
    assert languages_in(TextSource(folder=str(tmp_path))) == ["eng_Latn", "zho_Hans"]
    with pytest.raises(UserError, match=r"calls language 'en' 'eng_Ltn'.*did you mean 'eng_Latn'"):
        read(tmp_path, names={"en": "eng_Ltn"})


def test_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no texts"):
        read(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="there is a file"):
        read(tmp_path / "file")


@pytest.mark.parametrize("second", ["en.txt", "en/1.jsonl", "en.jsonl.gz"])
def test_two_places_of_one_language_are_refused(tmp_path, second):
    write(tmp_path / "en.jsonl", ["a"])
    write(tmp_path / second, ["b"])
    with pytest.raises(UserError, match=r"two files for 'en'.*put them in a folder en/"):
        read(tmp_path)


def test_several_large_files_are_read_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 100)
    for number in range(4):
        write(tmp_path / "en" / f"{number}.jsonl", [f"text {number} {n}" for n in range(50)])
    assert read(tmp_path)["en"] == [f"text {number} {n}" for number in range(4) for n in range(50)]
    path = tmp_path / "en" / "2.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"2.jsonl line 51 is no JSON"):
        read(tmp_path)
    (language,) = read_languages(TextSource(folder=str(tmp_path), bad_lines="skip")).values()
    assert (len(language.train) + len(language.test), language.skipped) == (200, 1)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
        yield

    write(tmp_path / "en.jsonl", ["a"])
    monkeypatch.setattr(module, "_rows", full)
    with pytest.raises(UserError, match=r"en.jsonl in .*No space left.*set HF_DATASETS_CACHE"):
        read(tmp_path)


def test_flores_200_is_a_sentence_a_line_split_alike_in_all_languages(tmp_path):
    """The release of 2022: flores200_dataset/devtest/eng_Latn.devtest."""
    sentences = {code: [f"{code} {n}" for n in range(1, 41)] for code in ("deu", "eng", "zho")}
    names = {"en": "eng", "zh": "zho"}
    for split in ("dev", "devtest"):
        (tmp_path / split).mkdir()
        for code, lines in sentences.items():
            (tmp_path / split / f"{code}.{split}").write_text("".join(f"{s}\n" for s in lines))
    (tmp_path / "metadata_devtest.tsv").write_text("URL\tdomain\n")
    for split in ("dev", "devtest"):
        source = TextSource(folder=str(tmp_path / split), names=names, key_field="line")
        assert languages_in(source) == ["deu", "en", "zh"]
        for name, code in names.items():
            test = read_languages(source, [name])[name].test
            assert list(test) == [
                sentence
                for number, sentence in enumerate(sentences[code], 1)
                if zlib.crc32(str(number).encode()) % 4 == 0
            ]
    with pytest.raises(UserError, match="holds no texts"):  # it holds splits and no languages
        languages_in(TextSource(folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("place", "ending", "compress"),
    [
        ("{}_meta", ".jsonl.zst", zstandard.ZstdCompressor().compress),  # OSCAR 23.01
        ("{}", ".jsonl.gz", gzip.compress),  # OSCAR 22.01
    ],
)
def test_oscar_is_a_folder_a_language_of_compressed_lines(tmp_path, place, ending, compress):
    for language in ("en", "zh"):
        folder = tmp_path / place.format(language)
        folder.mkdir()
        for part in (1, 2):
            rows = [
                {"content": f"{language} {part} {n}\nnext", "warc_headers": {"content-length": 9}}
                for n in range(20)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{language}_part_{part}{ending}").write_bytes(compress(lines.encode()))
    names = {name: place.format(name) for name in ("en", "zh") if place != "{}"}
    languages = read(tmp_path, names=names, text_field="content")
    assert list(languages) == ["en", "zh"]
    assert languages["zh"] == [f"zh {part} {n}\nnext" for part in (1, 2) for n in range(20)]


def murmur(key):
    """MurmurHash3's finalizer, one number at a time."""
    key ^= key >> 16
    key = key * 0x85EBCA6B % 2**32
    key ^= key >> 13
    key = key * 0xC2B2AE35 % 2**32
    return key ^ (key >> 16)


@pytest.fixture
def parallel(tmp_path):
    """Languages with the same keys, in other orders; vi lacks the even ones below 100."""
    keys = list(range(1000))
    shuffled = np.random.default_rng(0).permutation(keys).tolist()
    some = [key for key in keys if key % 2 or key >= 100]
    for name, ids in {"en": keys, "zh": shuffled, "vi": some}.items():
        write(tmp_path / f"{name}.jsonl", [f"{name} {key}" for key in ids], ids)
    return TextSource(folder=str(tmp_path), key_field="id", test_one_in=2)


def sampled(source, language, count):
    texts = read_languages(source, [language])[language].test.sample(count)
    return [int(text.split()[1]) for text in texts]


def test_a_sample_is_of_the_same_documents_in_parallel_languages(parallel):
    hashes = {n: zlib.crc32(str(n).encode()) for n in range(1000)}
    held_out = [n for n, key in hashes.items() if key % 2 == 0]
    en, zh = sampled(parallel, "en", 50), sampled(parallel, "zh", 50)
    assert en == sorted(sorted(held_out, key=lambda n: murmur(hashes[n]))[:50])
    assert zh != en  # the order is the file's
    assert sorted(zh) == en
    # What a language lacks is replaced; all the others are kept.
    vi = sampled(parallel, "vi", 50)
    lacking = [n for n in en if n % 2 == 0 and n < 100]
    assert lacking
    assert set(en) - set(lacking) <= set(vi)
    assert len(vi) == 50


def test_a_larger_sample_holds_the_smaller_and_all_is_all(parallel):
    small, large = (set(sampled(parallel, "en", count)) for count in (20, 200))
    assert small < large
    test = read_languages(parallel, ["en"])["en"].test
    assert list(test.sample(10_000)) == list(test)


def test_without_a_key_field_the_text_decides(parallel):
    source = TextSource(folder=parallel.folder, test_one_in=1)
    en, zh = (set(sampled(source, name, 50)) for name in ("en", "zh"))
    assert len(en & zh) < 15  # 2.5 are expected


def test_the_hash_of_keys_loses_none():
    keys = np.arange(100_000, dtype=np.uint32)
    assert len(set(module._scattered(keys).tolist())) == 100_000


def test_all_files_are_read_or_named(tmp_path):
    """In folders within a language's, with endings in capitals; each left out has its reason."""
    write(tmp_path / "sw" / "a.jsonl", ["one"])
    write(tmp_path / "sw" / "b.JSONL", ["two"])
    write(tmp_path / "sw" / "c.ndjson", ["three"])
    (tmp_path / "sw" / "2020").mkdir()
    write(tmp_path / "sw" / "2020" / "d.jsonl", ["zero"])
    (tmp_path / "sw" / "2020" / "again").symlink_to(tmp_path / "sw")  # a circle
    (tmp_path / "sw" / "e.jsonl").symlink_to("/nowhere/e.jsonl")
    (tmp_path / "sw" / "f.csv").write_text("text\nfour\n")
    (tmp_path / "sw" / ".g.jsonl").write_text("hidden")
    (tmp_path / "sw" / "._a.jsonl").write_text("of a Mac")
    (tmp_path / "._sw.jsonl").write_text("of a Mac")
    for place in (tmp_path, tmp_path / "sw"):
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text("an old copy")
    os.mkfifo(tmp_path / "sw" / "h.jsonl")
    write(tmp_path / "es.JSONL", ["uno"])
    (tmp_path / "pt.Txt.GZ").write_bytes(gzip.compress(b"\xef\xbb\xbfum\r\n\r\ndois\r\n"))
    (tmp_path / "fr.csv").write_text("text\nun\n")
    source = TextSource(folder=str(tmp_path))
    assert read(tmp_path) == {
        "es": ["uno"],
        "pt": ["um", "dois"],
        "sw": ["zero", "one", "two", "three"],
    }
    assert languages_in(source) == ["es", "pt", "sw"]
    left = [
        "fr.csv (its name ends in none of .jsonl .ndjson .json .txt .parquet .dev .devtest)",
        "sw/e.jsonl (a link to nothing)",
        "sw/f.csv (its name ends in none of .jsonl .ndjson .json .txt .parquet .dev .devtest)",
        "sw/h.jsonl (no file)",
    ]
    assert files_not_read(source) == left
    assert files_not_read(source, ["sw"]) == left[1:]
    with pytest.raises(UserError, match=r"no texts for language 'fr'.*but fr\.csv \(its name ends"):
        read_languages(source, ["fr"])


def test_the_place_of_a_document_is_found_again(tmp_path):
    write(tmp_path / "en" / "a.jsonl", ["one", " ", "two"])
    (tmp_path / "en" / "b.txt").write_text("three\n\nfour\n")
    source = TextSource(folder=str(tmp_path), test_one_in=0)
    train = read_languages(source)["en"].train
    assert train.places([1, 3]) == [
        f"{tmp_path}/en/a.jsonl line 3",
        f"{tmp_path}/en/b.txt line 3",
    ]


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    write(tmp_path / "en.jsonl", ["one"])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "x")
    with pytest.raises(UserError, match=r"cannot keep the texts of .*set HF_DATASETS_CACHE to a"):
        read(tmp_path)


@pytest.mark.parametrize("name", [b"a\nb", b"caf\xe9", b"\x1b[31m", b"n" * 220])
def test_a_file_whose_name_no_language_can_have(tmp_path, name):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "en.txt").write_text("A text.")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), name + b".txt"))).write_text("Another.")
    source = TextSource(str(folder))
    for read in (languages_in, read_languages):
        with pytest.raises(UserError, match="holds a language by its file's name: expected "):
            read(source)
    assert list(read_languages(source, ["en"])) == ["en"]
