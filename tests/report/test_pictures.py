"""Figures as files and in TensorBoard, read back."""

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from freezetrain.analysis.figures import layers_figure
from freezetrain.errors import UserError
from freezetrain.report.charts import HeatMap, heat_maps
from freezetrain.report.pictures import save_pictures, to_tensorboard

FIGURES = {
    "map": lambda width: heat_maps(
        [HeatMap("$a_b$", ["x"], ["1", "2"], np.array([[0.0, 1.0]]))], width, label="", write=str
    ),
    "layers": lambda width: layers_figure({"a": {0: 0.1, 1: 0.2}}, width),
}


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def check(picture: np.ndarray) -> None:
    """On a white ground, twice as fine as the page, with something on it."""
    assert (picture[0, 0] == 255).all()
    assert picture.shape[1] == 2 * 760
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 30


def test_files_hold_the_pictures_and_are_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        paths = save_pictures(FIGURES, tmp_path / folder)
        names = ["map.png", "map.svg", "layers.png", "layers.svg"]
        assert [path.name for path in paths] == names
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(names)
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes()
        if name.endswith("png"):
            check(read(data))
        else:
            root = ElementTree.fromstring(data)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert (root.get("width"), b"#ffffff" in data) == ("760pt", True)
    save_pictures(FIGURES, tmp_path / "a")  # replaced


def test_the_board_holds_each_once_also_of_a_repeated_run(tmp_path):
    for _ in range(2):
        to_tensorboard(FIGURES, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["map", "layers"]
    drawn = []
    for name in FIGURES:
        (image,) = events.Images(name)
        assert image.step == 0
        drawn.append(read(image.encoded_image_string))
        check(drawn[-1])
    save_pictures(FIGURES, tmp_path / "files")
    png = read((tmp_path / "files" / "map.png").read_bytes())
    assert png.shape == drawn[0].shape
    assert np.abs(png.astype(int) - drawn[0]).max() < 3


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write pictures to .*file"):
        save_pictures(FIGURES, tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

    def full(self, path, **options):
        Path(path).write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match="No space left"):
        save_pictures(FIGURES, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
