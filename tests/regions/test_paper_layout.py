"""The paper's folder of dense masks, in and out, without running what a file holds."""

import os
from itertools import count

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Entries, Region
from freezetrain.regions.paper_layout import export_masks, import_masks


def region() -> Region:
    torch.manual_seed(0)
    return Region(
        {
            "model.layers.0.mlp.up_proj.weight": Entries.from_mask(torch.rand(8, 9) < 0.2),
            "model.norm.weight": Entries.whole((9,)),
        }
    )


def test_files_are_bool_tensors_named_by_parameter(tmp_path):
    folder = export_masks(region(), tmp_path / "masks")
    assert sorted(os.listdir(folder)) == [f"{name}.pt" for name in region()]
    for name, entries in region().items():
        mask = torch.load(folder / f"{name}.pt", weights_only=True)
        assert torch.equal(mask, entries.mask())


def test_round_trip(tmp_path):
    assert import_masks(export_masks(region(), tmp_path / "masks")) == region()


def test_masks_written_by_a_plain_loop_are_imported(tmp_path):
    mask = torch.arange(12).view(3, 4) % 5 == 0
    torch.save(mask, tmp_path / "layers.0.weight.pt")
    (tmp_path / "README.md").write_text("not a mask")
    assert import_masks(tmp_path) == Region.from_masks({"layers.0.weight": mask})


@pytest.mark.parametrize("name", ["../up", "a/b", "/root", "a\\b", "..", "", "a..b", "C:x", ".a"])
def test_names_that_leave_the_folder_are_refused_and_nothing_is_written(tmp_path, name):
    bad = Region({"good": Entries.whole((3,)), name: Entries.whole((3,))})
    with pytest.raises(UserError, match="cannot be both a parameter's name and a file's"):
        export_masks(bad, tmp_path / "masks")
    assert os.listdir(tmp_path) == []


def test_odd_file_names_and_links_are_refused(tmp_path):
    torch.save(torch.ones(3, dtype=torch.bool), tmp_path / "outside")
    for file, words in [("a..b.pt", "cannot be both"), ("w.pt", "link or not a file")]:
        folder = tmp_path / f"folder of {file}"
        folder.mkdir()
        (folder / file).symlink_to(tmp_path / "outside")
        with pytest.raises(UserError, match=words):
            import_masks(folder)


class Payload:
    """Creates a folder when unpickled without weights_only."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_hold_anything_else_are_refused_and_never_run(tmp_path):
    folders = (tmp_path / str(number) for number in count())

    def load(thing):
        folder = next(folders)
        folder.mkdir()
        if isinstance(thing, bytes):
            (folder / "w.pt").write_bytes(thing)
        else:
            torch.save(thing, folder / "w.pt")
        return import_masks(folder)

    with pytest.raises(UserError, match="damaged or not a tensor file"):
        load(Payload(str(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(
        UserError, match=r"'w': expected a mask of dtype torch.bool, got torch.float"
    ):
        load(torch.ones(3))
    with pytest.raises(UserError, match=r"expected a bool tensor .* got dict"):
        load({"mask": torch.ones(3, dtype=torch.bool)})
    whole = export_masks(region(), tmp_path / "masks") / "model.norm.weight.pt"
    for data in (b"", b"text", whole.read_bytes()[:-30]):
        with pytest.raises(UserError, match="damaged or not a tensor file"):
            load(data)


def test_missing_or_empty_folders_and_existing_targets_are_refused(tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="found none in"):
            import_masks(folder)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="cannot write masks"):
        export_masks(region(), tmp_path / "there")
