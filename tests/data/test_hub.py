"""A folder in the hub's layout reads as a data set of the hub does."""

import json
import zlib

import datasets
import pytest
import yaml

from freezetrain.data.hub import _downloaded, hub_rows
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

TEXTS = {name: [f"{name} text {n}" if n != 5 else " " for n in range(40)] for name in ("en", "vi")}


def write_card(folder, configs):
    """The README that says which files a configuration has; ``configs``: name → data_files."""
    header = [{"config_name": name, "data_files": files} for name, files in configs.items()]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': header})}---\n")


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "data set"
    for name, texts in TEXTS.items():
        (folder / name).mkdir(parents=True)
        rows = [{"id": n, "content": text, "more": {"n": n}} for n, text in enumerate(texts)]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / name / "1.jsonl").write_text("".join(lines[:20]))
        (folder / name / "2.jsonl").write_text("".join(lines[20:]))
    write_card(
        folder, {f"v1.{name}": [{"split": "train", "path": f"{name}/*.jsonl"}] for name in TEXTS}
    )
    return folder


def source_of(hub, **changes):
    settings = {"hub": str(hub), "hub_config": "v1.{language}", "text_field": "content"}
    return TextSource(**{**settings, **changes})


def good(name, first=40):
    return [text for text in TEXTS[name][:first] if text.strip()]


@pytest.mark.parametrize("changes", [{}, {"key_field": "id"}, {"key_field": "content"}])
def test_a_configuration_is_a_language_which_is_split_as_files_are(hub, changes):
    source = source_of(hub, **changes)
    assert languages_in(source) == list(TEXTS)
    from_hub = read_languages(source)
    plain = TextSource(folder=str(hub), text_field="content", **changes)
    from_files = read_languages(plain, list(TEXTS))
    for name, language in from_hub.items():
        assert list(language.train) == list(from_files[name].train)
        assert list(language.test) == list(from_files[name].test)
        assert language.test
        assert sorted([*language.train, *language.test]) == sorted(good(name))
    assert list(read_languages(source, ["vi"])) == ["vi"]


def test_streaming_reads_the_first_documents(hub):
    for streaming in (False, True):
        source = source_of(hub, documents=25, streaming=streaming, test_one_in=0)
        languages = read_languages(source)
        assert {name: list(language.train) for name, language in languages.items()} == {
            name: good(name, 25) for name in TEXTS
        }


def test_what_the_hub_gave_whole_reads_the_same(hub):
    """A folder is always read as a stream is; what was downloaded is not copied."""
    for changes in ({}, {"key_field": "id"}, {"key_field": "content"}, {"documents": 25}):
        source = source_of(hub, **changes)
        streamed, whole = (read("v1.en", source) for read in (hub_rows, _downloaded))
        for name in ("text", "key", "kind"):
            assert whole[name][:] == streamed[name][:]


def test_a_changed_file_is_read_again(hub):
    source = source_of(hub, test_one_in=0)
    before = list(read_languages(source, ["en"])["en"].train)
    path = hub / "en" / "1.jsonl"
    path.write_text(path.read_text().replace("en text 3", "en text drei"))
    after = list(read_languages(source, ["en"])["en"].train)
    assert [text for text in after if text not in before] == ["en text drei"]


def test_streaming_stops_reading(hub):
    """A broken file after the documents asked for is never reached."""
    (hub / "en" / "2.jsonl").write_text("{broken")
    source = source_of(hub, documents=10, streaming=True, test_one_in=0)
    assert list(read_languages(source, ["en"])["en"].train) == good("en", 10)
    with pytest.raises(UserError, match="cannot read the data set in the folder"):
        read_languages(source_of(hub), ["en"])


def test_names_and_single_configurations(hub):
    assert languages_in(source_of(hub, names={"english": "en"})) == ["english", "vi"]
    one = source_of(hub, hub_config="v1.vi")
    assert len(read_languages(one, ["vietnamese"])["vietnamese"].train) > 10
    with pytest.raises(UserError, match="holds one language, and languages names 2"):
        read_languages(one, ["vi", "en"])
    with pytest.raises(UserError, match="holds one language, and languages names 0"):
        languages_in(one)


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "documents": 30}])
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"hub_config": "v2.{language}"},
            "no configuration .* 'v2.{language}'; they are v1.en v1.vi",
        ),
        ({"names": {"en": "eng"}}, "no configuration 'v1.eng' .*did you mean 'v1.en'"),
        ({"hub_config": "v1.eng"}, "no configuration 'v1.eng' .*did you mean 'v1.en'"),
        ({"hub_split": "trian"}, "no split 'trian' of 'v1.en' .*did you mean 'train'"),
        ({"text_field": "contnt"}, "no field 'contnt' in 'v1.en' .*did you mean 'content'"),
        ({"key_field": "idd"}, "no field 'idd' in 'v1.en' .*did you mean 'id'"),
        ({"text_field": "id"}, "v1.en row 1 .*expected a string in field 'id', got int"),
    ],
)
def test_what_the_data_set_lacks_is_source_of(hub, streaming, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read_languages(source_of(hub, **changes, **streaming), ["en"])


def test_bad_documents_are_named_or_skipped(hub):
    path = hub / "en" / "2.jsonl"
    path.write_text(path.read_text() + '{"id": 40, "content": null, "more": {"n": 1}}\n')
    for streaming in ({}, {"streaming": True, "documents": 50}):
        with pytest.raises(UserError, match=r"v1.en row 41 .*'content', got NoneType"):
            read_languages(source_of(hub, **streaming), ["en"])
        language = read_languages(source_of(hub, bad_lines="skip", **streaming), ["en"])["en"]
        assert language.skipped == 1
        assert sorted([*language.train, *language.test]) == sorted(good("en"))


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"'some/one': there is no such folder, the caches .* do not hold it.*download it",
    ):
        read_languages(TextSource(hub="some/one"), ["en"])
    with pytest.raises(UserError, match=r"cannot read the data set ./some/where/else: there is no"):
        languages_in(TextSource(hub="./some/where/else"))


def test_tokens_of_a_data_set_are_those_of_its_training_documents(hub, tokenizer, tmp_path):
    store = tokenize(source_of(hub), "en", tokenizer, tmp_path / "cache", 1)
    expected = []
    for text in read_languages(source_of(hub), ["en"])["en"].train:
        expected += [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    assert store.read(0, len(store)).tolist() == expected


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def test_flores_plus_is_a_configuration_a_language(tmp_path):
    names, splits = {"en": "eng_Latn", "zh": "zho_Hans"}, ("dev", "devtest")
    for code in names.values():
        for split in splits:
            rows = [{"id": n, "iso_639_3": code, "text": f"{split} {n}"} for n in range(40)]
            write_parquet(tmp_path / split / f"{code}.parquet", rows)
    write_card(
        tmp_path,
        {
            code: [{"split": split, "path": f"{split}/{code}.parquet"} for split in splits]
            for code in names.values()
        },
    )
    source = TextSource(
        hub=str(tmp_path), hub_split="devtest", names=names, key_field="id", test_one_in=1
    )
    languages = read_languages(source, ["en", "zh"])
    for name in names:
        assert list(languages[name].test) == [f"devtest {n}" for n in range(40)]


def test_culturax_is_a_configuration_a_language_of_several_files(tmp_path):
    for language in ("en", "vi"):
        for part in range(2):
            rows = [{"text": f"{language} {part} {n}", "url": f"u/{n}"} for n in range(30)]
            write_parquet(tmp_path / language / f"{language}_part_{part:05d}.parquet", rows)
    write_card(tmp_path, {language: f"{language}/*.parquet" for language in ("en", "vi")})
    texts = [f"vi {part} {n}" for part in range(2) for n in range(30)]
    # As a data set, and as the plain folder that it is on disk.
    for place in ({"hub": str(tmp_path)}, {"folder": str(tmp_path)}):
        source = TextSource(**place, key_field="url", test_one_in=2)
        assert languages_in(source) == ["en", "vi"]
        vi = read_languages(source, ["vi"])["vi"]
        held_out = [text for text in texts if zlib.crc32(f"u/{text.split()[2]}".encode()) % 2 == 0]
        assert list(vi.test) == held_out
        assert sorted([*vi.train, *vi.test]) == sorted(texts)
