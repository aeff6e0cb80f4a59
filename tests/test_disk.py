"""Room on the disk is asked about before anything is written."""

import shutil
from collections import namedtuple

import pytest

from freezetrain.errors import UserError
from freezetrain.files import readable, require_space


def test_too_little_room_names_what_and_how_much(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(10, 9, 1_500_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    folder = tmp_path / "not" / "there"
    require_space(folder, 1_500_000_000, "the model")
    with pytest.raises(UserError, match=r"the model may take 2 GB .* has 1\.5 GB left; free some"):
        require_space(folder, 2_000_000_000, "the model")
    assert asked == [tmp_path, tmp_path]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (3e12, "3 TB")]
)
def test_readable(size, said):
    assert readable(size) == said
