import json
import zlib

import pytest

from freezetrain.data.texts import BUILT_IN, languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

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
        assert list(language.test) == [row["text"] for row in rows if row["section"] in wanted]


def write(path, texts):
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_texts_are_read_as_a_list_is(tmp_path):
    texts = [f"text {number}" for number in range(700)]
    write(tmp_path / "en.jsonl", texts)
    language = read_languages(TextSource(folder=str(tmp_path)))["en"]
    train = [text for text in texts if zlib.crc32(text.encode()) % 4]
    test = [text for text in texts if zlib.crc32(text.encode()) % 4 == 0]
    assert list(language.train) == train
    assert list(language.test) == test
    assert len(language.train) == len(train)
    assert [language.train[0], language.train[-1], language.train[300]] == [
        train[0],
        train[-1],
        train[300],
    ]
    assert language.train[5:400:7] == train[5:400:7]
    assert language.train[10_000:] == []
    assert train[17] in language.train
    with pytest.raises(IndexError):
        language.train[len(train)]


def test_nothing_held_out_where_asked(tmp_path):
    write(tmp_path / "en.jsonl", [f"text {n}" for n in range(40)])
    language = read_languages(TextSource(folder=str(tmp_path), test_one_in=0))["en"]
    assert len(language.train) == 40
    assert list(language.test) == []
    assert language.test[:3] == []


def test_a_changed_file_is_read_again(tmp_path):
    source = TextSource(folder=str(tmp_path), test_one_in=0)
    write(tmp_path / "en.jsonl", ["one"])
    assert list(read_languages(source)["en"].train) == ["one"]
    write(tmp_path / "en.jsonl", ["two"])
    assert list(read_languages(source)["en"].train) == ["two"]


def test_only_the_first_documents_where_asked(tmp_path):
    folder = tmp_path / "en"
    folder.mkdir()
    write(folder / "1.jsonl", ["a", " ", "b", "c"])
    write(folder / "2.jsonl", ["d", "e"])
    for documents, expected in ((2, "ab"), (3, "abc"), (4, "abcd"), (99, "abcde")):
        source = TextSource(folder=str(tmp_path), test_one_in=0, documents=documents)
        assert "".join(read_languages(source)["en"].train) == expected


def test_unknown_language_shows_near_misses():
    with pytest.raises(UserError, match=r"no texts for language 'zhh'.*did you mean 'zh'"):
        read_languages(TextSource(), ["zhh"])


def test_blank_texts_alone_are_refused(tmp_path):
    write(tmp_path / "en.jsonl", ["  ", "\n"])
    with pytest.raises(UserError, match=r"en.jsonl holds no text; give it some"):
        read_languages(TextSource(folder=str(tmp_path)))


def test_bad_lines_alone_are_refused(tmp_path):
    (tmp_path / "en.jsonl").write_text("{\n[]\n")
    with pytest.raises(UserError, match="no text of language 'en', only 2 bad lines"):
        read_languages(TextSource(folder=str(tmp_path), bad_lines="skip"))


def test_all_may_be_held_out_and_training_on_that_is_refused():
    language = read_languages(TextSource(test_one_in=1), ["en"])["en"]
    assert (len(language.train), len(language.test)) == (0, 31)
    with pytest.raises(UserError, match=r"'en' has no training document among 31: all are held"):
        language.to_train()
    with pytest.raises(UserError, match="test_one_in must be 0 or more, got -1"):
        TextSource(test_one_in=-1)


def test_how_text_files_are_cut_is_part_of_what_is_read(tmp_path):
    (tmp_path / "en.txt").write_text("one\ntwo\n\nthree\n")
    for how, expected in (
        ("paragraphs", ["one\ntwo", "three"]),
        ("lines", ["one", "two", "three"]),
    ):
        source = TextSource(folder=str(tmp_path), txt_documents=how, test_one_in=0)
        assert list(read_languages(source)["en"].train) == expected
