"""What of an item is its document: fields by path, lists, several fields, conversations."""

import json
import zlib

import datasets
import pytest

from freezetrain.data.hub import _downloaded, hub_rows
from freezetrain.data.reading import read_file
from freezetrain.data.rows import BAD, BLANK, GOOD, document
from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource

ITEM = {
    "id": 7,
    "title": "Head",
    "subtitle": None,
    "meta": {"text": "deep", "more": {"lines": ["one", " ", "two"], "n": 3}},
    "a.b": "a name with a dot",
    "a": {"b": "never reached"},
    "body": ["first", "second"],
}


def read(item, **fields):
    return document(item, "x line 1", TextSource(folder="x", **fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text_field": "meta.text"}, "deep"),
        ({"text_field": "a.b"}, "a name with a dot"),
        ({"text_field": "meta.more.lines"}, "one\n\ntwo"),
        ({"text_field": "body", "text_separator": "\n"}, "first\nsecond"),
        ({"text_field": ["title", "body"]}, "Head\n\nfirst\n\nsecond"),
        ({"text_field": ["title", "subtitle", "meta.text"], "text_separator": ""}, "Headdeep"),
        ({"text_field": ["subtitle", "title"]}, "Head"),
    ],
)
def test_a_text_by_its_fields(fields, expected):
    for key_field, key in ((None, expected), ("id", "7"), ("meta.more.n", "3")):
        row = read(ITEM, key_field=key_field, **fields)
        assert row == {"text": expected, "key": zlib.crc32(key.encode()), "kind": GOOD}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"text_field": "meta.txt"},
            r"has no field 'meta\.txt' \(did you mean 'meta\.text'\?\); its fields are id title "
            r"subtitle meta\.text meta\.more\.lines meta\.more\.n a\.b a\.b body",
        ),
        ({"text_field": "title.text"}, r"has no field 'title\.text'"),
        ({"text_field": ["title", "boddy"]}, r"has no field 'boddy' \(did you mean 'body'"),
        ({"text_field": "title", "key_field": "meta.m"}, r"has no field 'meta\.m'"),
        ({"text_field": "subtitle"}, "expected a string in field 'subtitle', got NoneType"),
        ({"text_field": ["title", "id"]}, "expected a string in field 'id', got int"),
        ({"messages_field": "title"}, "expected a list of messages in field 'title', got str"),
        ({"messages_field": "body"}, "message 1 of field 'body' is no object but has type str"),
    ],
)
def test_what_it_lacks_is_said_or_skipped(fields, complaint):
    with pytest.raises(UserError, match=rf"^x line 1 .*{complaint}.*; repair it, or skip such"):
        read(ITEM, **fields)
    assert read(ITEM, bad_lines="skip", **fields)["kind"] == BAD


@pytest.mark.parametrize(
    ("fields", "got", "remedy"),
    [
        (
            {"text_field": "meta"},
            "expected a text in field 'meta', got an object with the fields text more.lines more.n",
            "give text_field the path to its text: meta.text or meta.more.lines",
        ),
        (
            {"text_field": ["title", "meta.more"]},
            "expected a text in field 'meta.more', got an object with the fields lines n",
            "give text_field the path to its text: meta.more.lines",
        ),
        (
            {"text_field": "title", "key_field": "meta"},
            "expected a key in field 'meta', got an object with the fields text more.lines more.n",
            "give key_field the path to its key: meta.text or meta.more.n",
        ),
        (
            {"messages_field": "chat"},
            "expected a list of messages in field 'chat', got an object with the fields id turns",
            "give messages_field the path to its list of messages: chat.turns",
        ),
        (
            {"text_field": "numbers"},
            "expected a text in field 'numbers', got an object with the fields n",
            "give text_field the path to another field, or repair it, or skip such lines with "
            "bad_lines: skip",
        ),
        (
            {"text_field": "chat.turns"},
            "expected strings in the list of field 'chat.turns', got objects with the fields role "
            "content",
            "give a conversation as messages_field: chat.turns",
        ),
    ],
)
def test_an_object_in_the_place_of_a_text_is_said_with_the_paths_that_go_on(fields, got, remedy):
    turns = [{"role": "user", "content": "Hello"}]
    item = {**ITEM, "chat": {"id": "c", "turns": turns}, "numbers": {"n": 1}}
    with pytest.raises(UserError) as refused:
        read(item, **fields)
    assert str(refused.value) == f"x line 1 is bad: {got}; {remedy}"
    assert read(item, bad_lines="skip", **fields)["kind"] == BAD


def test_a_list_that_holds_more_than_texts_and_one_that_holds_none():
    with pytest.raises(UserError, match="expected strings in the list of field 'text', got int"):
        read({"text": ["a", 5]})
    assert read({"text": ["", " "]})["kind"] == read({"text": []})["kind"] == BLANK
    assert read({"title": None, "body": " "}, text_field=["title", "body"])["kind"] == BLANK
    with pytest.raises(UserError, match="its field 'title body' is no valid Unicode"):
        read({"title": "\ud800", "body": "b"}, text_field=["title", "body"])


PLAIN = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hi!"},
]


@pytest.mark.parametrize(
    "messages",
    [
        PLAIN,
        [{**message, "name": None} for message in PLAIN],  # as columns give them
        [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi?"},
            {"from": "gpt", "value": "Hi!"},
        ],
        [
            {
                "role": m["role"],
                "content": [{"type": "text", "text": part} for part in m["content"]],
            }
            for m in PLAIN
        ],
    ],
)
def test_ways_to_write_one_conversation(messages):
    for field in ("messages", "data.chat"):
        item = {"messages": messages, "data": {"chat": messages}}
        row = read(item, messages_field=field)
        assert json.loads(row["text"]) == PLAIN
        assert row["key"] == zlib.crc32(row["text"].encode())


def test_a_message_keeps_what_a_template_may_ask_for():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    asked = {"role": "assistant", "content": None, "tool_calls": calls}
    row = read({"m": [PLAIN[1], asked]}, messages_field="m")
    assert json.loads(row["text"]) == [PLAIN[1], {"role": "assistant", "tool_calls": calls}]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"content": "a"}, "message 2 of field 'm' has no role; .*its fields are content"),
        ({"role": 5, "content": "a"}, "message 2 of field 'm' has no role"),
        ({"role": "user"}, "expected a text as the content of message 2 of field 'm', got none"),
        ({"role": "user", "content": 5}, "content of message 2 of field 'm', got int"),
        ({"role": "user", "content": [{"type": "image"}]}, "message 2 .* a part that is no text"),
    ],
)
def test_what_is_no_message(message, complaint):
    with pytest.raises(UserError, match=complaint):
        read({"m": [PLAIN[0], message]}, messages_field="m")
    silent = [{"role": "user", "content": " "}]
    assert read({"m": silent}, messages_field="m")["kind"] == BLANK
    assert read({"m": []}, messages_field="m")["kind"] == BLANK


ROWS = [
    {
        "id": n,
        "meta": {"text": f"text {n}", "parts": [f"a {n}", "b"]},
        "title": None if n % 3 else f"title {n}",
        "messages": [{"role": "user", "content": f"say {n}"}],
    }
    for n in range(20)
]


@pytest.mark.parametrize(
    "fields",
    [
        {"text_field": "meta.text"},
        {"text_field": "meta.parts", "key_field": "id"},
        {"text_field": ["title", "meta.text"]},
        {"messages_field": "messages"},
    ],
)
def test_lines_columns_and_data_sets_give_the_same(tmp_path, fields):
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "en.parquet")
    source = TextSource(folder="x", **fields)
    lines = list(read_file(tmp_path / "en.jsonl", source))
    assert lines == [document(row, "", source) for row in ROWS]
    assert list(read_file(tmp_path / "en.parquet", source)) == lines
    hub = TextSource(hub=str(tmp_path), hub_config="default", **fields)
    (tmp_path / "en.jsonl").unlink()
    for read in (hub_rows, _downloaded):
        rows = read("default", hub)
        assert [dict(row) for row in rows] == lines


def test_columns_lack_a_field(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "en.parquet")
    with pytest.raises(UserError, match=r"en.parquet row 1 has no field 'meta\.txt' .*meta\.text"):
        list(read_file(tmp_path / "en.parquet", TextSource(folder="x", text_field="meta.txt")))
    hub = TextSource(hub=str(tmp_path), hub_config="default", text_field="meta.txt")
    for read in (hub_rows, _downloaded):
        with pytest.raises(UserError, match=r"no field 'meta\.txt' in 'default' .*'meta\.text'"):
            read("default", hub)


def test_columns_hold_objects(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "en.parquet")
    complaint = r"row 1 is bad: .*'meta', got an object .*: meta\.text or meta\.parts$"
    with pytest.raises(UserError, match=rf"en.parquet {complaint}"):
        list(read_file(tmp_path / "en.parquet", TextSource(folder="x", text_field="meta")))
    hub = TextSource(hub=str(tmp_path), hub_config="default", text_field="meta")
    for read in (hub_rows, _downloaded):
        with pytest.raises(UserError, match=complaint):
            read("default", hub)


def test_conversations_are_no_plain_texts(tmp_path):
    (tmp_path / "en.jsonl").write_text(json.dumps({"m": PLAIN}) + "\n")
    source = TextSource(folder=str(tmp_path), messages_field="m", test_one_in=0)
    with pytest.raises(UserError, match="messages_field is 'm', and what is read here must be"):
        read_languages(source)
    assert len(read_languages(source, conversations=True)["en"].train) == 1


def test_other_fields_are_read_anew_and_the_same_are_found_again(tmp_path):
    """What was kept by settings that there were before is found by its name of then."""
    row = {"text": ["a", "b"], "title": "t"}
    (tmp_path / "en.jsonl").write_text(json.dumps(row) + "\n")

    def texts(**fields):
        source = TextSource(folder=str(tmp_path), test_one_in=0, **fields)
        return list(read_languages(source)["en"].train)

    assert texts() == ["a\n\nb"]
    assert texts(text_separator=" ") == ["a b"]
    assert texts(text_field=["title", "text"]) == ["t\n\na\n\nb"]
    assert texts() == ["a\n\nb"]
    assert TextSource(key_field="k", documents=3).read_as == ["text", "k", "stop", 3]
