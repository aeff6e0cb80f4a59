"""Which texts can be paths and names, and what a path is once ~ and variables are replaced."""

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.text_types import check_name, check_path, check_text, expanded


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("~/run", "/home/me/run"),
        ("~", "/home/me"),
        ("~root/x", "/root/x"),
        ("./~/run", "./~/run"),
        ("a/~", "a/~"),
        ("$DATA/$DATA", "/data/~//data/~"),  # what a variable holds is not looked at again
        ("${DATA}x/1$/$5", "/data/~x/1$/$5"),
        ("meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b"),
    ],
)
def test_a_path_is_expanded(path, place, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data/~")
    assert expanded(path) == place


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("$DTA/x", "cannot expand '$DTA/x': the variable 'DTA' is not set, or empty"),
        ("${DATA-x}", "the variable 'DATA-x' is not set"),
        ("$EMPTY", "the variable 'EMPTY' is not set, or empty"),
        ("~nobody-here/x", "no user is called 'nobody-here'; write ./~nobody-here for a file"),
        ("$LINES", "expected text without control characters"),
        ("$LONG/$LONG", "expected a path of at most 4095 bytes, got 5999"),
    ],
)
def test_a_path_that_cannot_be_expanded(path, complaint, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("LINES", "a\nb")
    monkeypatch.setenv("LONG", "/".join(["x" * 29] * 100)[:3000])
    with pytest.raises(UserError) as error:
        expanded(path)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_text, ["", "a\tb\r\n", "می‌خواهم", "🙂"], ["\0", "\x1b", "\x85", "\u2028", "\udce9"]),
        (check_path, ["a" * 255, "/".join(["é" * 127] * 16), ".."], ["é" * 128, "a\tb", "a\n", ""]),
        (check_name, ["zh-Hant", "a.b", "é" * 100, "-x"], ["é" * 101, "..", " .", "", "a\\b", "/"]),
    ],
)  # fmt: skip
def test_texts_paths_and_names(check, good, bad):
    for text in good:
        check(text)
    for text in bad:
        with pytest.raises(UserError) as error:
            check(text)
        assert len(str(error.value)) < 250
