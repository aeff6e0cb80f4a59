import json
import math

import pytest

from freezetrain.errors import UserError
from freezetrain.files import write_results


def test_what_is_written_is_read_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "results.json"
    for results in ({"step": 0}, {"step": 1, "name": "日本"}):
        write_results(path, results)
        assert json.loads(path.read_text(encoding="utf-8")) == results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"step": 0})
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"step": math.nan})
    assert json.loads(path.read_text()) == {"step": 0}


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"can be written to, got '.*results\.json'"):
        write_results(tmp_path / "file" / "results.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="can be written to"):
        write_results(tmp_path / "folder", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
