import gzip
import json
import lzma
import zlib

import pytest

from freezetrain.corpora import BUILT_IN, languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe import TextSource

PAPER = "ar zh cs da nl en fi fr de el hu id it ja ko ms ml no fa pl pt ro ru es sw sv ta tr uk vi"


def test_built_in_texts_are_the_papers_30_languages_whole():
    assert languages_in(TextSource()) == sorted(PAPER.split())
    for language in read_languages(TextSource()).values():
        assert len(language.train) + len(language.test) == 31
        assert not set(language.train) & set(language.test)


def test_split_is_by_section_in_every_language():
    wanted = [n for n in range(31) if zlib.crc32(str(n).encode()) % 4 == 0]
    assert 4 <= len(wanted) <= 12
    for name, language in read_languages(TextSource(), ["en", "zh", "ml"]).items():
        lines = (BUILT_IN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert language.test == [row["text"] for row in rows if row["section"] in wanted]


def write(path, texts, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": number, "text": text}) + "\n")


def test_all_formats_give_the_same_texts(tmp_path):
    import datasets

    texts = [f"text {n} ä 中" for n in range(20)]
    write(tmp_path / "aa.jsonl", texts)
    write(tmp_path / "bb.jsonl.gz", texts, gzip.open)
    write(tmp_path / "cc.jsonl.xz", texts, lzma.open)
    (tmp_path / "dd.txt").write_text("\n\n".join(texts), encoding="utf-8")
    datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "ee.parquet")
    (tmp_path / "README.md").write_text("not a language")
    languages = read_languages(TextSource(folder=str(tmp_path)))
    assert list(languages) == ["aa", "bb", "cc", "dd", "ee"]
    first = languages["aa"]
    assert sorted([*first.train, *first.test]) == sorted(texts)
    assert first.test
    for language in languages.values():
        assert (language.train, language.test) == (first.train, first.test)


def test_nothing_held_out_where_asked(tmp_path):
    write(tmp_path / "en.jsonl", [f"text {n}" for n in range(40)])
    language = read_languages(TextSource(folder=str(tmp_path), test_one_in=0))["en"]
    assert len(language.train) == 40
    assert language.test == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ('{"id": 1, "text": "  "}\n', "holds no text"),
        ('{"id": 1, "txet": "hello"}\n', "has no field 'text' .*did you mean 'txet'"),
        ('{"id": 1, "text": "hello"}\n{"id": 2, "te', "cannot read .*en.jsonl as json"),
        ('{"id": 1, "text": 5}\n', "expected a string in field 'text', got int"),
    ],
)
def test_unusable_files_are_refused(tmp_path, content, complaint):
    (tmp_path / "en.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_languages(TextSource(folder=str(tmp_path)))


def test_unknown_language_shows_near_misses(tmp_path):
    with pytest.raises(UserError, match=r"no texts for language 'zhh'.*did you mean 'zh'"):
        read_languages(TextSource(), ["zhh"])


def test_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        read_languages(TextSource(folder=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="holds no texts"):
        read_languages(TextSource(folder=str(tmp_path)))


def test_two_files_of_one_language_are_refused(tmp_path):
    write(tmp_path / "en.jsonl", ["a"])
    write(tmp_path / "en.txt", ["a"])
    with pytest.raises(UserError, match=r"two files for 'en', en.jsonl and en.txt"):
        read_languages(TextSource(folder=str(tmp_path)))
