"""What goes wrong in a user's file becomes one sentence."""

import logging

import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.user_files import VERBOSE, read_json, reading


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
        (b"[" * 101 + b"]" * 101, "it is nested more than 100 deep"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b"[1,", "it is not JSON (Expecting value, line 1, column 4)"),
        (b"\xff", "it is not text in UTF-8 (byte 0)"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, complaint):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_json(path, "the list", "copy it again")
    assert str(raised.value) == f"cannot read the list {path}: {complaint}; copy it again"


def test_json_of_a_hundred_levels_is_read(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100 + "]" * 100)
    assert len(read_json(tmp_path / "x.json", "the list", "")) == 1


@pytest.mark.parametrize(
    "error", [KeyError("a"), TypeError("a\nb"), RecursionError(), MemoryError(), OSError(2, "no")]
)
def test_whatever_a_library_raises_is_one_line(error):
    with pytest.raises(UserError) as raised, reading("the file", "x", "give another"):
        raise error
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("kind", [UserError, CheckError, KeyboardInterrupt])
def test_our_own_sentences_pass(kind):
    with pytest.raises(kind, match=r"^said$"), reading("the file", "x", "give another"):
        raise kind("said")


@pytest.mark.parametrize("verbose", ["", "1"])
def test_what_transformers_logs_is_kept_for_verbose(monkeypatch, caplog, verbose):
    monkeypatch.setenv(VERBOSE, verbose)
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    with reading("the file", "x", ""):
        logger.getChild("modeling").warning("a long report")
    assert ("a long report" in caplog.text) == bool(verbose)
