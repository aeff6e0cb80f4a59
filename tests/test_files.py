import json
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from freezetrain.errors import UserError
from freezetrain.files import (
    readable,
    remove_unfinished,
    require_space,
    whole,
    write_json,
)


def write_folder(path: Path, name: str) -> None:
    path.mkdir()
    (path / name).write_text("x")


def test_a_file_is_there_at_the_end_of_the_block_and_replaces_another(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with whole(path) as new:
            new.write_text(text)
            assert new.name == "a.txt"  # some libraries look at its ending
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
def test_a_folder_takes_the_place_of_what_is_there_where_that_is_asked_for(tmp_path, before):
    path = tmp_path / "a"
    if before == "file":
        path.write_text("old")
    elif before == "folder":
        write_folder(path, "old")
        with pytest.raises(OSError, match="not empty"), whole(path) as new:
            write_folder(new, "new")
        assert os.listdir(path) == ["old"]
    with whole(path, replace_folder=True) as new:
        write_folder(new, "new")
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("replace_folder", [False, True])
@pytest.mark.parametrize("write", [Path.write_text, write_folder])
def test_after_an_error_all_is_as_it_was(tmp_path, monkeypatch, write, replace_folder):
    path = tmp_path / "a"
    write(path, "old")
    before = path.stat().st_ino, path.stat().st_mtime_ns

    def begin():
        with whole(path, replace_folder) as new:
            write(new, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, no_space)
            with pytest.raises(OSError, match="No space"), whole(path, replace_folder) as new:
                write(new, "new")
        assert os.listdir(tmp_path) == ["a"]
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    path = tmp_path / "a"
    monkeypatch.setattr(os, "open", lambda place, flags: place)
    monkeypatch.setattr(os, "close", lambda place: None)
    monkeypatch.setattr(os, "fsync", lambda place: synced.append((Path(place), path.exists())))
    with whole(path) as new:
        (new / "b").mkdir(parents=True)
        (new / "b" / "c").write_text("x")
    assert {place for place, named in synced if not named} == {new, new / "b", new / "b" / "c"}
    assert synced[-1] == (tmp_path, True)


def test_what_a_kill_left_is_removed_and_no_more(tmp_path, monkeypatch):
    for name in ("a", "b"):
        with monkeypatch.context() as patch, whole(tmp_path / name) as new:
            new.write_text("half")
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(os, "replace", lambda *_: None)
    left = sorted(tmp_path.iterdir())
    remove_unfinished(tmp_path / "a")
    assert list(tmp_path.iterdir()) == left[1:]
    remove_unfinished(tmp_path / "*")
    assert not list(tmp_path.iterdir())


def test_results_are_written_in_new_folders_and_replaced(tmp_path):
    path = tmp_path / "new" / "results.json"
    for results in ({"step": 0}, {"step": 1, "name": "日本"}):
        write_json(path, results)
        assert json.loads(path.read_text(encoding="utf-8")) == results
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"step": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == results
    assert os.listdir(path.parent) == ["results.json"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"can be written to, got '.*results\.json'"):
        write_json(tmp_path / "file" / "results.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="can be written to"):
        write_json(tmp_path / "folder", {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_too_little_room_names_what_and_how_much(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    places = []

    def disk_usage(path):
        places.append(path)
        return usage(10, 9, 1_500_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    folder = tmp_path / "not" / "there"
    require_space(folder, 1_500_000_000, "the model")
    with pytest.raises(UserError, match=r"the model may take 2 GB .* has 1\.5 GB left; free some"):
        require_space(folder, 2_000_000_000, "the model")
    assert places == [tmp_path, tmp_path]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (3e12, "3 TB")]
)
def test_readable(size, text):
    assert readable(size) == text
