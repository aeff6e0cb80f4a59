import json

import pytest

from freezetrain.data import texts as module
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource


def write(path, texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def read(folder, **more):
    languages = read_languages(TextSource(folder=str(folder), test_one_in=0, **more))
    return {name: list(language.train) for name, language in languages.items()}


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
    assert read(tmp_path) == {
        "en": [f"text {number} {n}" for number in range(4) for n in range(50)]
    }
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
