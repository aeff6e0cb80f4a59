"""A folder in the hub's layout reads as a data set of the hub does."""

import json

import datasets
import pytest

from freezetrain.data.hub import _downloaded, hub_rows
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

TEXTS = {name: [f"{name} text {n}" if n != 5 else " " for n in range(40)] for name in ("en", "vi")}


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "data set"
    configurations = []
    for name, texts in TEXTS.items():
        (folder / name).mkdir(parents=True)
        rows = [{"id": n, "content": text, "more": {"n": n}} for n, text in enumerate(texts)]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / name / "1.jsonl").write_text("".join(lines[:20]))
        (folder / name / "2.jsonl").write_text("".join(lines[20:]))
        configurations += [
            f"- config_name: v1.{name}",
            "  data_files:",
            "  - split: train",
            f"    path: {name}/*.jsonl",
        ]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configurations, "---", ""]))
    return folder


def told(hub, **changes):
    base = {"hub": str(hub), "hub_config": "v1.{language}", "text_field": "content"}
    return TextSource(**{**base, **changes})


def good(name, first=40):
    return [text for text in TEXTS[name][:first] if text.strip()]


def test_a_configuration_is_a_language(hub):
    source = told(hub)
    assert languages_in(source) == ["en", "vi"]
    for name, language in read_languages(source).items():
        assert sorted([*language.train, *language.test]) == sorted(good(name))
    assert list(read_languages(source, ["vi"])) == ["vi"]


def test_the_split_is_that_of_files(hub, tmp_path):
    for changes in ({}, {"key_field": "id"}, {"key_field": "content"}):
        of_hub = read_languages(told(hub, **changes))
        of_files = read_languages(
            TextSource(folder=str(hub), text_field="content", **changes), ["en", "vi"]
        )
        for name in TEXTS:
            assert list(of_hub[name].train) == list(of_files[name].train)
            assert list(of_hub[name].test) == list(of_files[name].test)
            assert of_hub[name].test


def test_streaming_reads_the_first_documents(hub):
    for streaming in (False, True):
        source = told(hub, documents=25, streaming=streaming, test_one_in=0)
        languages = read_languages(source)
        assert {name: list(one.train) for name, one in languages.items()} == {
            name: good(name, 25) for name in TEXTS
        }


def test_what_the_hub_gave_whole_reads_the_same(hub):
    """A folder is always read as a stream is; what was downloaded is not copied."""
    for changes in ({}, {"key_field": "id"}, {"key_field": "content"}, {"documents": 25}):
        source = told(hub, **changes)
        streamed, whole = (read("v1.en", source) for read in (hub_rows, _downloaded))
        for name in ("text", "key", "kind"):
            assert whole[name][:] == streamed[name][:]


def test_a_changed_file_is_read_again(hub):
    source = told(hub, test_one_in=0)
    before = list(read_languages(source, ["en"])["en"].train)
    path = hub / "en" / "1.jsonl"
    path.write_text(path.read_text().replace("en text 3", "en text drei"))
    after = list(read_languages(source, ["en"])["en"].train)
    assert [one for one in after if one not in before] == ["en text drei"]


def test_streaming_stops_reading(hub):
    """A broken file after the documents asked for is never reached."""
    (hub / "en" / "2.jsonl").write_text("{broken")
    source = told(hub, documents=10, streaming=True, test_one_in=0)
    assert list(read_languages(source, ["en"])["en"].train) == good("en", 10)
    with pytest.raises(UserError, match="cannot read the data set in the folder"):
        read_languages(told(hub), ["en"])


def test_names_and_single_configurations(hub):
    assert languages_in(told(hub, names={"english": "en"})) == ["english", "vi"]
    one = told(hub, hub_config="v1.vi")
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
def test_what_the_data_set_lacks_is_told(hub, streaming, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read_languages(told(hub, **changes, **streaming), ["en"])


def test_bad_documents_are_named_or_skipped(hub):
    path = hub / "en" / "2.jsonl"
    path.write_text(path.read_text() + '{"id": 40, "content": null, "more": {"n": 1}}\n')
    for streaming in ({}, {"streaming": True, "documents": 50}):
        with pytest.raises(UserError, match=r"v1.en row 41 .*'content', got NoneType"):
            read_languages(told(hub, **streaming), ["en"])
        language = read_languages(told(hub, bad_lines="skip", **streaming), ["en"])["en"]
        assert language.skipped == 1
        assert sorted([*language.train, *language.test]) == sorted(good("en"))


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"'some/one': it is not a folder here.*without a network, download it"
    ):
        read_languages(TextSource(hub="some/one"), ["en"])
    with pytest.raises(UserError, match=r"cannot read the data set ./some/where/else: there is no"):
        languages_in(TextSource(hub="./some/where/else"))


def test_tokens_are_found_again_by_content(hub, tokenizer, tmp_path, monkeypatch):
    from freezetrain.data import tokens

    store = tokens.tokenize(told(hub), "en", tokenizer, tmp_path / "cache", 1)
    train = read_languages(told(hub), ["en"])["en"].train
    expected = []
    for text in train:
        expected += [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    assert store.read(0, len(store)).tolist() == expected
    monkeypatch.setattr(tokens, "_prepare", None)
    assert tokens.tokenize(told(hub), "en", tokenizer, tmp_path / "cache", 1).digest == store.digest
